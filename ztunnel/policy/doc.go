// Package policy decides whether a layer-4 connection may reach a workload, and
// says which policy decided. The node proxy calls Evaluate for each connection it
// accepts for one of its pods, and again for the open ones when a policy changes;
// ztunnel/state compiles policies with Compile when they arrive and collects the
// Set of a workload.
//
// What always holds: Evaluate is pure and allocates nothing unless a dry-run policy
// matched; DENY is asked before ALLOW; one enforced ALLOW policy is enough to deny
// what no ALLOW matches; a dry-run policy never changes the outcome. What a policy
// says but this version cannot read (an unknown field, an extension, a CIDR that
// is none) never opens a door: in an ALLOW such a condition counts as not met, in a
// DENY as met. Extensions of the policy itself, outside its matches, are no
// conditions and are ignored.
//
// It does not know workloads, does not fetch anything, and knows no layer 7.
package policy

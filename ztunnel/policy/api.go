// Package policy decides whether a connection may pass.
package policy

import (
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/identity"
)

// Conn is what a verdict depends on.
type Conn struct {
	Source    identity.Identity
	HasSource bool // false: the peer proved no identity (plaintext)
	SourceIP  netip.Addr
	Dest      netip.AddrPort
}

// Verdict is the outcome with its reason.
type Verdict struct {
	Allowed bool
	Policy  string   // namespace/name of the policy that decided; empty if none did
	Reason  string   // one constant sentence per kind of outcome
	DryRun  []string // dry-run policies that matched, as "deny ns/name" or "allow ns/name"
}

// Policy is one compiled Authorization.
type Policy struct{ name string }

// Set is the policies that apply to one workload.
type Set struct {
	Global    []*Policy
	Namespace []*Policy
	Workload  []*Policy
}

// Evaluate decides.
func Evaluate(s Set, c Conn) Verdict { return Verdict{} }

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Names of the kind in Kubernetes.
const (
	Group   = "policy.ambit.dev"
	Version = "v1alpha1"
	Kind    = "RateLimit"
	Plural  = "ratelimits"
)

// GroupVersion of the kind.
func GroupVersion() schema.GroupVersion { return schema.GroupVersion{Group: Group, Version: Version} }

// Resource names the kind to a dynamic client.
func Resource() schema.GroupVersionResource { return GroupVersion().WithResource(Plural) }

// AddToScheme makes the kind known to a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion(), &RateLimit{}, &RateLimitList{})
	metav1.AddToGroupVersion(s, GroupVersion())
	return nil
}

// RateLimit says how many requests are let through.
type RateLimit struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   RateLimitSpec   `json:"spec,omitempty"`
	Status RateLimitStatus `json:"status,omitempty"`
}

// RateLimitList is a list of them.
type RateLimitList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []RateLimit `json:"items"`
}

// RateLimitSpec holds local limits, a global one, or both; a request must pass all that apply to it.
type RateLimitSpec struct {
	// TargetRefs name what the limits protect, in the same namespace. Empty: every waypoint and gateway of the namespace.
	TargetRefs []TargetReference `json:"targetRefs,omitempty"`
	// Local limits are counted by each replica of a waypoint or gateway for itself.
	Local []LocalLimit `json:"local,omitempty"`
	// Global asks a server that counts for all replicas.
	Global *GlobalLimit `json:"global,omitempty"`
}

// TargetReference names a Gateway, GatewayClass (root namespace only), Service or ServiceEntry.
type TargetReference struct {
	// Group of the kind; empty takes the one that the kind is in.
	Group string `json:"group,omitempty"`
	Kind  string `json:"kind"`
	Name  string `json:"name"`
}

// LocalLimit is a bucket of tokens: it holds up to Burst, every request takes one, and Requests of them come back over Per.
type LocalLimit struct {
	// Name appears in metrics; it is unique in the object.
	Name string `json:"name"`
	// Match selects requests: one of the entries must hold. Empty: every request.
	Match []Match `json:"match,omitempty"`
	// Requests that are let through per Per.
	Requests int32 `json:"requests"`
	// Per is a duration of at least 50ms, such as 1s, 1m or 1h.
	Per metav1.Duration `json:"per"`
	// Burst is how many may come at once. The default is Requests.
	Burst *int32 `json:"burst,omitempty"`
	// PerSource gives every calling identity a bucket of its own; at a gateway, whose clients have none, every address.
	PerSource bool `json:"perSource,omitempty"`
	// PerHeader gives every value of this header a bucket of its own. Requests without it share one.
	PerHeader string `json:"perHeader,omitempty"`
	// Status that refused requests get, 400 to 599. The default is 429.
	Status *int32 `json:"status,omitempty"`
	// DryRun counts, and refuses nothing.
	DryRun bool `json:"dryRun,omitempty"`
}

// Match selects requests; all that is set must hold.
type Match struct {
	Path    *StringMatch  `json:"path,omitempty"`
	Method  string        `json:"method,omitempty"`
	Headers []HeaderMatch `json:"headers,omitempty"`
	// Sources are calling identities, of which one must hold: "spiffe://trust.domain/ns/x/sa/y", "trust.domain/ns/x/sa/y"
	// with an asterisk at one end, or "namespace/account", either of which may be an asterisk.
	Sources []string `json:"sources,omitempty"`
}

// StringMatch compares a string in one of three ways. A regular expression (RE2) must match all of it.
type StringMatch struct {
	Exact  string `json:"exact,omitempty"`
	Prefix string `json:"prefix,omitempty"`
	Regex  string `json:"regex,omitempty"`
}

// HeaderMatch compares a header's value; without a way to compare, the header must be there. Not inverts the verdict.
type HeaderMatch struct {
	Name        string `json:"name"`
	StringMatch `json:",inline"`
	Not         bool `json:"not,omitempty"`
}

// GlobalLimit asks a server of Envoy's rate limit protocol (envoy.service.ratelimit.v3).
type GlobalLimit struct {
	Service ServerReference `json:"service"`
	// Domain under which the server looks limits up.
	Domain string `json:"domain"`
	// Timeout of the question. The default is 100ms.
	Timeout *metav1.Duration `json:"timeout,omitempty"`
	// FailOpen lets requests through when the server cannot be asked; else they are answered with 500.
	FailOpen bool `json:"failOpen,omitempty"`
	// Descriptors of a request: each is looked up for itself, and each may refuse.
	Descriptors []Descriptor `json:"descriptors"`
}

// ServerReference is the host of a Service or ServiceEntry, and a port of it.
type ServerReference struct {
	// Host is fully qualified, such as ratelimit.infra.svc.cluster.local.
	Host string `json:"host"`
	Port int32  `json:"port"`
}

// Descriptor is an ordered list of entries. A request that lacks the value of one is not asked about under this descriptor.
type Descriptor struct {
	Entries []Entry `json:"entries"`
}

// From is a property of a request that gives an entry its value.
type From string

// Properties of requests.
const (
	FromPath            From = "Path"
	FromMethod          From = "Method"
	FromSourcePrincipal From = "SourcePrincipal"
	FromSourceAddress   From = "SourceAddress"
)

// Entry is a key with a value: exactly one of Value, Header and From is set.
type Entry struct {
	Key string `json:"key"`
	// Value is the same for every request.
	Value string `json:"value,omitempty"`
	// Header names the header whose value it is.
	Header string `json:"header,omitempty"`
	From   From   `json:"from,omitempty"`
}

// RateLimitStatus is written by istiod.
type RateLimitStatus struct {
	// Conditions say whether istiod understood the object and found what it is attached to, and if not which field is wrong.
	Conditions         []metav1.Condition `json:"conditions,omitempty"`
	ObservedGeneration int64              `json:"observedGeneration,omitempty"`
}

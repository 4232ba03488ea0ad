package model

// Status is what istiod tells the author of an object. Package layer7 computes it, package status writes it,
// from the leader only. Conditions without a Type of their own are not allowed here.
type Status struct {
	Meta
	// Conditions of the object itself: Gateway, GatewayClass, Service, Istio kinds.
	Conditions []Condition
	// Parents of a route, or ancestors of a policy, by the reference they answer.
	Parents   []ParentStatus
	Listeners []ListenerStatus
	Addresses []GatewayAddress
	// Features that a GatewayClass supports, ordered.
	Features []string
}

// ParentStatus is the verdict on one attachment.
type ParentStatus struct {
	Parent
	Conditions []Condition
}

// ListenerStatus is the verdict on one listener.
type ListenerStatus struct {
	Name       string
	Kinds      []Kind
	Attached   int32
	Conditions []Condition
}

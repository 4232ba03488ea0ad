package model

// GatewayClass is a class of gateways, and whether it is ours.
type GatewayClass struct {
	Meta
	Controller string
	Ours       bool
	Waypoint   bool
	// Parameters of every gateway of the class.
	Parameters *ObjectRef
	Invalid    *Condition
}

// ListenerProtocol is what a listener accepts.
type ListenerProtocol uint8

// Protocols of listeners.
const (
	ListenHTTP ListenerProtocol = iota
	ListenHTTPS
	ListenTLS
	ListenTCP
	ListenHBONE
	ListenUnknown
)

// ListenerTLS is what a listener does with TLS.
type ListenerTLS struct {
	// Passthrough leaves TLS to the backend, which SNI chooses.
	Passthrough bool
	// Certificates are Secrets; several serve several key types.
	Certificates []SecretRef
	// ClientCA are roots of client certificates; empty asks for none. Optional accepts clients without one.
	ClientCA []SecretRef
	Optional bool
	// Insecure lets a client in even if its certificate does not verify (Gateway API's AllowInsecureFallback).
	Insecure bool
	// AutoPassthrough leaves TLS to the service that an SNI of the form outbound_.<port>_.<subset>_.<host> names.
	AutoPassthrough bool
	// IstioMutual uses the mesh's own identity (Istio Gateway only).
	IstioMutual               bool
	Redirect                  bool // answers plain HTTP with 301 (Istio Gateway's httpsRedirect)
	MinVersion                string
	MaxVersion                string
	Ciphers                   []string
	CertFile, KeyFile, CAFile string
	SANs                      []string
}

// SecretRef names a Secret or ConfigMap, and what a ReferenceGrant must allow. A namespace that is empty is the proxy's: an Istio
// Gateway names Secrets beside the pods that it chooses, not beside itself.
type SecretRef struct {
	ObjectRef
	Grant   *Reference
	Invalid *Condition
}

// NamespaceSelector says which namespaces' routes or services may attach.
type NamespaceSelector struct {
	All, Same bool
	// Labels is a selector in the text form of Kubernetes' labels.Parse, used if neither All nor Same is set.
	Labels string
}

// Listener is one listener of a gateway.
type Listener struct {
	Name     string
	Hostname string
	// Hosts are an Istio Gateway's "namespace/host" or "host" entries.
	Hosts    []string
	Port     uint16
	Protocol ListenerProtocol
	TLS      *ListenerTLS
	Allowed  NamespaceSelector
	// AllowedKinds are route kinds; empty follows the protocol.
	AllowedKinds []Kind
	// NoKinds says that kinds were asked for and none of them can attach.
	NoKinds bool
	// Invalid conditions of the listener, such as UnsupportedProtocol.
	Invalid []Condition
}

// Gateway is a Gateway of Gateway API, a waypoint included, or an Istio Gateway (then Selector chooses its proxies).
type Gateway struct {
	Meta
	Class     string
	Waypoint  bool
	Listeners []Listener
	// Addresses asked for, as written.
	Addresses []GatewayAddress
	Selector  map[string]string
	For       Traffic
	// Labels and Annotations of spec.infrastructure, and its parameters.
	Labels, Annotations map[string]string
	Parameters          *ObjectRef
	// ClassParameters are the parameters of the GatewayClass; package layer7 copies them here.
	ClassParameters *ObjectRef
	// ObjectLabels and ObjectAnnotations are the Gateway's own.
	ObjectLabels, ObjectAnnotations map[string]string
	// BackendClientCert is the Secret of the client certificate for backends.
	BackendClientCert *SecretRef
	// InsecureFrontend says that spec.tls.frontend lets clients in whose certificates do not verify, on any port.
	InsecureFrontend bool
	Invalid          *Condition
}

// GatewayAddress is an address as a user wrote it.
type GatewayAddress struct{ Type, Value string }

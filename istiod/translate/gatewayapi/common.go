package gatewayapi

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

const (
	maxPort = 65535
	// maxWeight is the API's bound of a weight.
	maxWeight = 1_000_000
	// maxRegex is the length in bytes up to which an expression is taken, as with Istio: Envoy bounds the size of the
	// compiled program, which nobody else can measure, and that is never smaller than the expression.
	maxRegex = 1024
	// maxDurationText is the longest duration that the API allows (GEP-2257): four numbers of five digits with units.
	maxDurationText = 28
	// durationText is what a duration of the API is written with: of what Go can parse, no signs, fractions or units
	// below a millisecond.
	durationText = "0123456789hms"
)

// routeTranslation is one route while its rules are read.
type routeTranslation struct {
	cfg  translate.Config
	kind string
	meta model.Meta
}

func newRoute(kind model.Kind, cfg translate.Config, o metav1.Object, spec *gwv1.CommonRouteSpec, hostnames []gwv1.Hostname) (*routeTranslation, *model.Route) {
	t := &routeTranslation{cfg: cfg, kind: string(kind), meta: meta(kind, o)}
	out := &model.Route{Meta: t.meta, Parents: parents(spec.ParentRefs, t.meta.Namespace)}
	for i, h := range hostnames {
		name := strings.ToLower(string(h))
		c := hostname(fmt.Sprintf("spec.hostnames[%d]", i), name)
		if c == nil {
			out.Hostnames = append(out.Hostnames, name)
			continue
		}
		// Without this name the route would be for fewer hosts than it says, or for all of them: nobody takes it.
		for p := range out.Parents {
			if out.Parents[p].Invalid == nil {
				out.Parents[p].Invalid = c
			}
		}
	}
	return t, out
}

// hostname holds a name to the API's form: DNS, with a wildcard as the whole first label or none.
func hostname(field, name string) *model.Condition {
	errs := validation.IsDNS1123Subdomain(name)
	if strings.HasPrefix(name, "*.") {
		errs = validation.IsWildcardDNS1123Subdomain(name)
	}
	if len(errs) == 0 {
		return nil
	}
	return unsupported(field, "%q is not a DNS name, with or without a wildcard as the first label", name)
}

// parents reads the references that are for us. One to an unknown kind belongs to another controller, whose status it is.
func parents(refs []gwv1.ParentReference, ns string) []model.Parent {
	var out []model.Parent
	for i, r := range refs {
		p := model.Parent{
			Key:     model.Key{Namespace: string(or(r.Namespace, gwv1.Namespace(ns))), Name: string(r.Name)},
			Section: string(or(r.SectionName, "")),
			Index:   i,
		}
		switch group, kind := or(r.Group, groupGateway), or(r.Kind, kindGateway); {
		case group == groupGateway && kind == kindGateway:
			p.Kind = model.ParentGateway
		case group == groupCore && kind == kindService:
			p.Kind = model.ParentService
		case group == groupIstio && kind == kindServiceEntry:
			p.Kind = model.ParentServiceEntry
		default:
			continue
		}
		if r.Port != nil {
			if *r.Port < 1 || *r.Port > maxPort {
				p.Invalid = notAccepted(gwv1.RouteReasonNoMatchingParent, fmt.Sprintf("spec.parentRefs[%d].port: %d is not a port", i, *r.Port))
			} else {
				p.Port = uint16(*r.Port)
			}
		}
		out = append(out, p)
	}
	return out
}

// backend reads a reference to where requests go. What is wrong with it makes its own share fail and no other.
func (t *routeTranslation) backend(r gwv1.BackendObjectReference, field string) model.Backend {
	out := model.Backend{Weight: 1}
	ns := t.meta.Namespace
	to := string(or(r.Namespace, gwv1.Namespace(ns)))
	group, kind := or(r.Group, groupCore), or(r.Kind, kindService)
	switch {
	case group == groupCore && kind == kindService:
		out.Host = translate.ServiceHostname(t.cfg, model.Key{Namespace: to, Name: string(r.Name)})
		out.Namespace = to
		out.Grant = grant(t.kind, ns, string(group), string(kind), to, string(r.Name))
		if strings.Contains(string(r.Name), ".") {
			out.Invalid = notResolved(gwv1.RouteReasonBackendNotFound, fmt.Sprintf("%s.name: %q is a host and not the name of a Service", field, r.Name))
			return out
		}
	case group == groupIstio && kind == kindHostname:
		out.Host = strings.ToLower(string(r.Name))
		switch {
		case r.Namespace != nil:
			out.Invalid = notResolved(gwv1.RouteReasonInvalidKind, field+".namespace: a Hostname has none")
			return out
		case r.Name == "":
			out.Invalid = notResolved(gwv1.RouteReasonBackendNotFound, field+".name: is empty")
			return out
		}
	default:
		out.Invalid = notResolved(gwv1.RouteReasonInvalidKind, fmt.Sprintf("%s: %s is no backend", field, groupKind(group, kind)))
		return out
	}
	switch {
	case r.Port == nil:
		out.Invalid = notAccepted(gwv1.RouteReasonUnsupportedValue, field+".port: is required")
	case *r.Port < 1 || *r.Port > maxPort:
		out.Invalid = notAccepted(gwv1.RouteReasonUnsupportedValue, fmt.Sprintf("%s.port: %d is not a port", field, *r.Port))
	default:
		out.Port = uint16(*r.Port)
	}
	return out
}

// weighted reads a reference with its weight.
func (t *routeTranslation) weighted(r gwv1.BackendRef, field string) model.Backend {
	out := t.backend(r.BackendObjectReference, field)
	if r.Weight == nil {
		return out
	}
	if *r.Weight < 0 || *r.Weight > maxWeight {
		if out.Invalid == nil {
			out.Invalid = notAccepted(gwv1.RouteReasonUnsupportedValue, fmt.Sprintf("%s.weight: %d is not within 0 and %d", field, *r.Weight, maxWeight))
		}
		return out
	}
	out.Weight = uint32(*r.Weight)
	return out
}

// regex tells what is wrong with an expression, or returns nil.
func regex(field, expr string) *model.Condition {
	if len(expr) > maxRegex {
		return unsupported(field, "is longer than %d bytes", maxRegex)
	}
	if _, err := regexp.Compile(expr); err != nil {
		return unsupported(field, "%v", err)
	}
	return nil
}

// parseDuration reads a duration of the API.
func parseDuration(field string, d gwv1.Duration) (time.Duration, *model.Condition) {
	v, err := time.ParseDuration(string(d))
	if err != nil || len(d) > maxDurationText || strings.Trim(string(d), durationText) != "" {
		return 0, unsupported(field, "%q is not a duration", d)
	}
	return v, nil
}

// token holds a header's, cookie's or method's name to the form of RFC 9110, section 5.6.2.
func token(field, s string) *model.Condition {
	const special = "!#$%&'*+-.^_`|~"
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') && strings.IndexByte(special, c) < 0 {
			return unsupported(field, "%q has a character that such names have not", s)
		}
	}
	if s == "" {
		return unsupported(field, "is empty")
	}
	return nil
}

// text refuses control characters, with which a value would become several lines.
func text(field, s string) *model.Condition {
	for _, c := range []byte(s) {
		if c < ' ' && c != '\t' || c == 0x7f {
			return unsupported(field, "%q has a control character", s)
		}
	}
	return nil
}

// unsupported is the verdict on a value that the API or we do not know.
func unsupported(field, format string, args ...any) *model.Condition {
	return notAccepted(gwv1.RouteReasonUnsupportedValue, field+": "+fmt.Sprintf(format, args...))
}

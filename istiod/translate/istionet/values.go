package istionet

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/ambit-mesh/ambit/istiod/model"
)

const (
	maxPort = 65535
	// maxDomain is the length in bytes of a DNS name (RFC 1035, section 2.3.4).
	maxDomain = 255
	// maxRegex is Istio's bound of an expression in bytes: Envoy bounds the size of the compiled program, which nobody else
	// can measure, and that is never smaller than the expression.
	maxRegex = 1024
	// million is the finest share of requests that Envoy knows.
	million = 1_000_000
	// minPercent is the smallest percentage above zero that is still a millionth.
	minPercent = 0.0001
)

// port reads a port number.
func (o *object) port(field string, n uint32) uint16 {
	if n < 1 || n > maxPort {
		o.fail(field, "%d is not a port", n)
		return 0
	}
	return uint16(n)
}

// duration reads a duration; nil is 0. Like Istio it takes milliseconds and nothing finer.
func (o *object) duration(field string, d *durationpb.Duration) time.Duration {
	if d == nil {
		return 0
	}
	v := d.AsDuration()
	switch {
	case d.CheckValid() != nil:
		o.fail(field, "is not a duration")
	case v < time.Millisecond:
		o.fail(field, "%s is shorter than 1ms", v)
	case v%time.Millisecond != 0:
		o.fail(field, "%s is not a whole number of milliseconds", v)
	default:
		return v
	}
	return 0
}

// durationOrOff is duration where 0 is a value of its own.
func (o *object) durationOrOff(field string, d *durationpb.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	var v time.Duration
	if d.GetSeconds() != 0 || d.GetNanos() != 0 {
		v = o.duration(field, d)
	}
	return &v
}

// regex holds an expression to RE2 and to the length that proxies take.
func (o *object) regex(field, expr string) {
	switch {
	case expr == "":
		o.fail(field, "is empty")
	case len(expr) > maxRegex:
		o.fail(field, "is longer than %d bytes", maxRegex)
	default:
		if _, err := regexp.Compile(expr); err != nil {
			o.fail(field, "%w (expressions are RE2's)", err)
		}
	}
}

// percent reads a percentage; nil is the default.
func (o *object) percent(field string, p *networking.Percent, def model.Fraction) model.Fraction {
	if p == nil {
		return def
	}
	v := p.GetValue()
	if math.IsNaN(v) || v < 0 || v > 100 || v > 0 && v < minPercent {
		o.fail(field+".value", "%v is neither 0 nor within %v and 100", v, minPercent)
		return def
	}
	return model.Fraction{Numerator: uint32(math.Round(v * million / 100)), Denominator: million}
}

// all and none are shares of requests.
func all() model.Fraction  { return model.Fraction{Numerator: 100, Denominator: 100} }
func none() model.Fraction { return model.Fraction{Denominator: 100} }

// fqdn completes a short name in the object's own namespace: "for Kubernetes users", says Istio's API of hosts, "Istio
// will interpret the short name based on the namespace of the rule".
func (o *object) fqdn(host string) string {
	host = strings.ToLower(host)
	if host == "" || host == "*" || strings.Contains(host, ".") || isIP(host) {
		return host
	}
	return host + "." + o.meta.Namespace + ".svc." + o.cfg.Domain
}

func isIP(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// domain holds a host to DNS, with a wildcard at the beginning of its first label.
func (o *object) domain(field, host string) bool {
	if why := badDomain(host); why != "" {
		o.fail(field, "%q %s", host, why)
		return false
	}
	return true
}

func badDomain(host string) string {
	if host == "" {
		return "is no name"
	}
	if len(host) > maxDomain {
		return fmt.Sprintf("is longer than %d bytes", maxDomain)
	}
	first, rest, more := strings.Cut(host, ".")
	switch cut, wild := strings.CutPrefix(first, "*"); {
	case wild && cut == "":
	case !isLabel(strings.TrimPrefix(cut, "-")) || !wild && cut != strings.TrimPrefix(cut, "-"):
		return fmt.Sprintf("is not a DNS name: label %q", first)
	}
	if !more {
		return ""
	}
	// A dot at the end is allowed: the name is absolute.
	labels := strings.Split(strings.TrimSuffix(rest, "."), ".")
	for _, l := range labels {
		if !isLabel(l) {
			return fmt.Sprintf("is not a DNS name: label %q", l)
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return fmt.Sprintf("is not a DNS name: %q is a number", last)
	}
	return ""
}

// isLabel is Istio's idea of a DNS label: as in RFC 1123, in either case.
func isLabel(s string) bool { return len(validation.IsDNS1123Label(strings.ToLower(s))) == 0 }

func isWildcard(host string) bool { return strings.HasPrefix(host, "*") }

// within tells whether every name that inner stands for is one of outer's.
func within(inner, outer string) bool {
	if !isWildcard(outer) {
		return inner == outer
	}
	return strings.HasSuffix(strings.TrimPrefix(inner, "*"), outer[1:])
}

// overlap tells whether one name can belong to both.
func overlap(a, b string) bool { return within(a, b) || within(b, a) }

// labels holds a set of labels to Kubernetes' form.
func (o *object) labels(field string, in map[string]string) map[string]string {
	for _, k := range slices.Sorted(maps.Keys(in)) {
		if errs := validation.IsQualifiedName(k); len(errs) > 0 {
			o.fail(field, "%q is not the name of a label", k)
		}
		if errs := validation.IsValidLabelValue(in[k]); len(errs) > 0 {
			o.fail(field+"["+k+"]", "%q is not the value of a label", in[k])
		}
	}
	return in
}

// exportTo reads to whom an object is visible. The value "~", nobody, is for ServiceEntries only.
func (o *object) exportTo(in []string, nobody bool) []string {
	seen := map[string]bool{}
	for i, e := range in {
		field := fmt.Sprintf("spec.exportTo[%d]", i)
		ns := e
		if e == "." {
			ns = o.meta.Namespace
		}
		switch {
		case seen[ns]:
			o.fail(field, "%q is there twice", e)
		case e == "~" && nobody, e == "*":
			if len(in) > 1 {
				o.fail(field, "%q stands alone", e)
			}
		case !isLabel(ns):
			o.fail(field, "%q is neither *, . nor a namespace", e)
		}
		seen[ns] = true
	}
	return in
}

// prefix reads a CIDR or an address.
func (o *object) prefix(field, s string) (netip.Prefix, bool) {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			o.fail(field, "%q is not a CIDR", s)
			return p, false
		}
		return p.Masked(), true
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		o.fail(field, "%q is neither an address nor a CIDR", s)
		return netip.Prefix{}, false
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), true
}

func (o *object) prefixes(field string, in []string) []netip.Prefix {
	var out []netip.Prefix
	for i, s := range in {
		if p, ok := o.prefix(fmt.Sprintf("%s[%d]", field, i), s); ok {
			out = append(out, p)
		}
	}
	return out
}

// count reads a number that must not be negative.
func (o *object) count(field string, n int32) uint32 {
	if n < 0 {
		o.fail(field, "%d is negative", n)
		return 0
	}
	return uint32(n)
}

// unset fails for a field that is not supported and has a value.
func (o *object) unset(field string, isSet bool) {
	if isSet {
		o.fail(field, "is not supported")
	}
}

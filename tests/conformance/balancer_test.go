package conformance

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestBalancerPicks(t *testing.T) {
	b := NewBalancer(nil, netip.MustParsePrefix("10.97.0.0/29"))
	service := func(name, asked, held string) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
		s.Spec.LoadBalancerIP = asked
		if held != "" {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: held}}
		}
		return s
	}
	usable, unusable := b.Reserved()
	for _, tt := range []struct {
		what string
		s    *corev1.Service
		want string
	}{
		{"the first free one", service("a", "", ""), "10.97.0.2"},
		{"the same again", service("a", "", ""), "10.97.0.2"},
		{"the next", service("b", "", ""), "10.97.0.3"},
		{"the one asked for", service("c", usable.String(), ""), usable.String()},
		{"taken by another", service("d", "10.97.0.3", ""), ""},
		{"outside", service("e", unusable.String(), ""), ""},
		{"held from an earlier run", service("f", "", "10.97.0.5"), "10.97.0.5"},
		{"around what is taken", service("g", "", ""), "10.97.0.4"},
		{"around what is taken, again", service("h", "", ""), "10.97.0.6"},
		{"the last", service("i", "", ""), "10.97.0.7"},
		{"none left", service("j", "", ""), ""},
	} {
		a, ok := b.pick(tt.s)
		if got := a.String(); ok != (tt.want != "") || ok && got != tt.want {
			t.Errorf("%s: got %s, %t, want %s", tt.what, got, ok, tt.want)
		}
	}
}

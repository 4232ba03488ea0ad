package redirect

import (
	"net/netip"
	"os"
	"strings"
	"testing"
)

func TestPodValidate(t *testing.T) {
	ip := func(s ...string) (out []netip.Addr) {
		for _, a := range s {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	for _, tc := range []struct {
		name string
		pod  Pod
		ok   bool
	}{
		{"uuid", Pod{UID: "0b5e7c1e-6b9e-4a58-9d1c-2f2f2f2f2f2f", IPs: ip("10.0.0.1", "fd00::1")}, true},
		{"static pod", Pod{UID: "3f2504e04f8911d39a0c0305e82c3301"}, true},
		{"no uid", Pod{}, false},
		{"path", Pod{UID: "../node"}, false},
		{"dot", Pod{UID: "a.new"}, false},
		{"long", Pod{UID: strings.Repeat("a", maxUID+1)}, false},
		{"loopback", Pod{UID: "a", IPs: ip("127.0.0.1")}, false},
		{"unspecified", Pod{UID: "a", IPs: ip("::")}, false},
		{"zone", Pod{UID: "a", IPs: ip("fe80::1%eth0")}, false},
		{"no address", Pod{UID: "a", IPs: []netip.Addr{{}}}, false},
	} {
		if err := tc.pod.Validate(); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestListeners(t *testing.T) {
	open := func() *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	ls := Listeners{Outbound: open(), InboundHBONE: open()}
	if err := ls.Validate(); err == nil {
		t.Error("an incomplete set is accepted")
	}
	if err := ls.Close(); err != nil {
		t.Errorf("closing an incomplete set: %v", err)
	}
	if err := ls.Outbound.Close(); err == nil {
		t.Error("a listener stayed open")
	}
}

package names

import "testing"

func TestPeerIsUnpackedAsItWasPacked(t *testing.T) {
	for _, p := range []Peer{
		{},
		{Workload: "web", Namespace: "shop", CanonicalName: "web", CanonicalRevision: "v1", App: "web", Version: "v1", Cluster: "Kubernetes"},
	} {
		got, ok := UnpackPeer(p.Pack())
		if !ok || got != p {
			t.Errorf("unpack %q: %+v, %v, want %+v", p.Pack(), got, ok, p)
		}
	}
	if got, ok := UnpackPeer(Peer{Workload: "a;b"}.Pack()); !ok || got.Workload != "a_b" {
		t.Errorf("a separator in a value: %+v, %v", got, ok)
	}
	for _, s := range []string{"", Unknown, "a;b", "a;b;c;d;e;f;g;h"} {
		if p, ok := UnpackPeer(s); ok {
			t.Errorf("unpack %q: %+v, want a refusal", s, p)
		}
	}
}

func FuzzUnpackPeer(f *testing.F) {
	f.Add("web;shop;web;v1;web;v1;Kubernetes")
	f.Add("-")
	f.Fuzz(func(t *testing.T, s string) {
		p, ok := UnpackPeer(s)
		if ok && p.Pack() != s {
			t.Errorf("%q was unpacked to %+v, which packs to %q", s, p, p.Pack())
		}
	})
}

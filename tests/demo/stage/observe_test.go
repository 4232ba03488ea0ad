package stage

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/tests/demo/pcap"
)

func TestParseLogLine(t *testing.T) {
	for text, want := range map[string]LogLine{
		`level=WARN msg="connection denied" policy=shop/p src.identity=spiffe://c/ns/a/sa/b`: {"level": "WARN", "msg": "connection denied", "policy": "shop/p", "src.identity": "spiffe://c/ns/a/sa/b"},
		`a="x=\"y z\"" b=`: {"a": `x="y z"`, "b": ""},
		"no fields":        {},
		"":                 {},
	} {
		if diff := cmp.Diff(want, parseLogLine(text)); diff != "" {
			t.Errorf("%q: %s", text, diff)
		}
	}
}

func TestBetween(t *testing.T) {
	at := netip.MustParseAddrPort
	pods := map[netip.Addr]string{netip.MustParseAddr("10.0.0.1"): "a", netip.MustParseAddr("10.0.0.2"): "b"}
	packet := func(src, dst, payload string) pcap.Packet {
		return pcap.Packet{Src: at(src), Dst: at(dst), Length: len(payload), Payload: []byte(payload)}
	}
	got := Between([]pcap.Packet{
		packet("10.0.0.1:40000", "10.0.0.2:8080", "GET / HTTP/1.1\r\nHost: x\r\n"),
		packet("10.0.0.2:8080", "10.0.0.1:40000", "HTTP/1.1 200 OK\r\n"),
		packet("10.0.0.1:40001", "10.0.0.2:15008", "\x17\x03\x03\x00\x10rest"),
		packet("10.0.0.1:40001", "10.0.0.2:15008", "middle of a record"),
		packet("10.0.0.1:40000", "10.0.0.2:8080", ""),
		packet("10.0.0.9:40000", "10.0.0.2:8080", "GET / of a stranger"),
		{Src: at("10.0.0.1:40000"), Dst: at("10.0.0.2:8080"), SYN: true},
	}, pods)
	want := Traffic{Packets: 4, Bytes: 25 + 17 + 9 + 18, Readable: 2, Example: "10.0.0.1:40000 → 10.0.0.2:8080  GET / HTTP/1.1",
		Tunnel: 27, TLS: 9, Others: map[string]int{"8080": 42}, Opened: map[string]int{"8080": 1}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestShopManifestRenders(t *testing.T) {
	manifest, err := shopManifest("hub", "tag")
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest) < 5000 {
		t.Errorf("manifest of %d bytes", len(manifest))
	}
}

package proxy

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"testing"
)

// wire is a connection that was recorded.
type wire struct {
	io.Reader
	sent bytes.Buffer
}

func (w *wire) Write(p []byte) (int, error) { return w.sent.Write(p) }

func TestSOCKSUnderstandsConnect(t *testing.T) {
	v6 := netip.MustParseAddr("fd00::1").As16()
	for _, tt := range []struct {
		name string
		in   []byte
		want socksRequest
	}{
		{"v4", []byte{5, 1, 0, 5, 1, 0, 1, 10, 0, 0, 1, 0, 80}, socksRequest{addr: netip.MustParseAddrPort("10.0.0.1:80"), port: 80}},
		{"v6", append(append([]byte{5, 2, 2, 0, 5, 1, 0, 4}, v6[:]...), 31, 144), socksRequest{addr: netip.MustParseAddrPort("[fd00::1]:8080"), port: 8080}},
		{"name", []byte{5, 1, 0, 5, 1, 0, 3, 3, 'w', 'e', 'b', 0, 80}, socksRequest{name: "web", port: 80}},
		{"address as name", []byte{5, 1, 0, 5, 1, 0, 3, 7, '1', '.', '2', '.', '3', '.', '4', 0, 80}, socksRequest{addr: netip.MustParseAddrPort("1.2.3.4:80"), port: 80}},
	} {
		w := &wire{Reader: bytes.NewReader(tt.in)}
		got, err := readSOCKS(w)
		if err != nil || got != tt.want {
			t.Errorf("%s: got %+v, %v, want %+v", tt.name, got, err, tt.want)
		}
		if !bytes.Equal(w.sent.Bytes(), []byte{5, 0}) {
			t.Errorf("%s: answered %v", tt.name, w.sent.Bytes())
		}
	}
}

func TestSOCKSRefusesWhatItDoesNotServe(t *testing.T) {
	for name, in := range map[string][]byte{
		"version 4":        {4, 1, 0, 80, 1, 2, 3, 4},
		"passwords only":   {5, 1, 2},
		"BIND":             {5, 1, 0, 5, 2, 0, 1, 1, 2, 3, 4, 0, 80},
		"UDP":              {5, 1, 0, 5, 3, 0, 1, 1, 2, 3, 4, 0, 80},
		"port 0":           {5, 1, 0, 5, 1, 0, 1, 1, 2, 3, 4, 0, 0},
		"unknown address":  {5, 1, 0, 5, 1, 0, 2, 1, 2, 3, 4, 0, 80},
		"empty name":       {5, 1, 0, 5, 1, 0, 3, 0, 0, 80},
		"name with spaces": {5, 1, 0, 5, 1, 0, 3, 2, ' ', 'a', 0, 80},
		"truncated":        {5, 1, 0, 5, 1},
		"empty":            {},
	} {
		if r, err := readSOCKS(&wire{Reader: bytes.NewReader(in)}); !errors.Is(err, errSOCKS) {
			t.Errorf("%s: got %+v, %v", name, r, err)
		}
	}
}

func FuzzSOCKS(f *testing.F) {
	f.Add([]byte{5, 1, 0, 5, 1, 0, 1, 10, 0, 0, 1, 0, 80})
	f.Add([]byte{5, 1, 0, 5, 1, 0, 3, 3, 'w', 'e', 'b', 0, 80})
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := readSOCKS(&wire{Reader: bytes.NewReader(in)})
		if err == nil && (r.port == 0 || (r.name == "") != r.addr.IsValid()) {
			t.Errorf("accepted %+v", r)
		}
	})
}

func TestProxyHeaderNamesClientTargetAndIdentity(t *testing.T) {
	got := proxyHeader(netip.MustParseAddrPort("10.0.0.1:1000"), netip.MustParseAddrPort("10.0.0.2:80"), "ab")
	want := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), 0x21, 0x11, 0, 17, 10, 0, 0, 1, 10, 0, 0, 2, 3, 232, 0, 80, 0xD0, 0, 2, 'a', 'b')
	if !bytes.Equal(got, want) {
		t.Errorf("v4: got %v, want %v", got, want)
	}
	got = proxyHeader(netip.MustParseAddrPort("[fd00::1]:1000"), netip.MustParseAddrPort("10.0.0.2:80"), "")
	if len(got) != 16+36 || got[13] != 0x21 || got[15] != 36 {
		t.Errorf("mixed families: got %v", got)
	}
}

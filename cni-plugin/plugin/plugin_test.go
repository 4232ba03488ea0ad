package plugin

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadResponse(t *testing.T) {
	for _, c := range []struct{ name, in, status, body, err string }{
		{"200", "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{}", "200", "{}", ""},
		{"a server that answers in 1.1", "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n{\"error\":\"x\"}", "503", `{"error":"x"}`, ""},
		{"no body", "HTTP/1.0 404 Not Found\r\n\r\n", "404", "", ""},
		{"no reason", "HTTP/1.0 200\r\n\r\n", "200", "", ""},
		{"not HTTP", "hello\r\n\r\n", "", "", "is not HTTP"},
		{"cut in the headers", "HTTP/1.0 200 OK\r\nA: b", "", "", "EOF"},
		{"nothing", "", "", "", "EOF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, body, err := readResponse(strings.NewReader(c.in))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil || status != c.status || string(body) != c.body {
				t.Errorf("got %q, %q, %v", status, body, err)
			}
		})
	}
}

func FuzzReadResponse(f *testing.F) {
	f.Add("HTTP/1.0 200 OK\r\n\r\n{}")
	f.Fuzz(func(t *testing.T, in string) {
		status, body, err := readResponse(strings.NewReader(in))
		if err == nil && (strings.ContainsAny(status, " \r\n") || len(body) > len(in)) {
			t.Fatalf("%q, %q", status, body)
		}
	})
}

func TestAddresses(t *testing.T) {
	got, err := addresses("1.0.0", []byte(`{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"},{"address":"fd00::2/64"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"10.0.0.2", "fd00::2"}
	if d := cmp.Diff(want, texts(got)); d != "" {
		t.Error(d)
	}
	if _, err := addresses("9.9.9", []byte(`{}`)); err == nil {
		t.Error("an unknown version is accepted")
	}
}

func texts(in []netip.Addr) (out []string) {
	for _, a := range in {
		out = append(out, a.String())
	}
	return out
}

func FuzzAddresses(f *testing.F) {
	f.Add("1.0.0", []byte(`{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}`))
	f.Add("0.2.0", []byte(`{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"}}`))
	f.Fuzz(func(t *testing.T, v string, in []byte) {
		ips, err := addresses(v, in)
		for _, ip := range ips {
			if err == nil && !ip.IsValid() {
				t.Fatalf("invalid address from %q", in)
			}
		}
	})
}

// TestAnswersOfABrokenAgent: what answers on the socket is no agent, or one that dies.
func TestAnswersOfABrokenAgent(t *testing.T) {
	for _, c := range []struct {
		name, answer, want string
		unreachable        bool
	}{
		{"closes at once", "", "EOF", true},
		{"garbage", "no\r\n\r\n", "not HTTP", true},
		{"another server", "HTTP/1.0 404 Not Found\r\n\r\n404 page not found", `answered status "404"`, false},
		{"failure without a cause", "HTTP/1.0 500 Oops\r\n\r\n{}", `answered status "500"`, false},
		{"too long", "HTTP/1.0 200 OK\r\n\r\n{\"reason\":\"" + strings.Repeat("x", 2*maxReply) + "\"}", "answered status", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				b := make([]byte, 4096)
				if _, err := conn.Read(b); err == nil {
					conn.Write([]byte(c.answer)) // The plugin may stop reading: what it saw counts.
				}
			}()
			_, err = ask(context.Background(), path, PathAdd, &Request{PodName: "p"})
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, errUnreachable) != c.unreachable {
				t.Errorf("got %v", err)
			}
			<-ended
		})
	}
}

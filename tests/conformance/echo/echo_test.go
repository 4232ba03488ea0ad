package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	suite "sigs.k8s.io/gateway-api/conformance/utils/echo"
)

// start serves f on a port of its own and returns the address.
func start(t *testing.T, f func(context.Context, net.Listener) error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func client(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := call(t.Context(), args, &out); err != nil {
		t.Fatalf("client %v: %v", args, err)
	}
	return out.String()
}

// The suite's own parser reads what we print.
func TestAnswersAreReadByTheSuite(t *testing.T) {
	o, err := parseServer(nil)
	if err != nil {
		t.Fatal(err)
	}
	addr := start(t, o.serveHTTP)
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	r := suite.ParseResponse(client(t, "http://"+addr+"/a/b?c=d", "--method=PUT", "-H", "X-Test:one,two", "-H", "Host:shop.example"))
	got := map[string]string{"code": r.Code, "host": r.Host, "url": r.URL, "method": r.Method, "proto": r.Protocol, "port": r.Port,
		"header": r.RequestHeaders.Get("X-Test"), "type": r.ResponseHeaders.Get("Content-Type"), "ip": r.IP}
	want := map[string]string{"code": "200", "host": "shop.example", "url": "/a/b?c=d", "method": "PUT", "proto": "HTTP/1.1", "port": port,
		"header": "one,two", "type": "text/plain", "ip": "127.0.0.1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if r.Hostname == "" {
		t.Error("no host name")
	}
}

func TestTLS(t *testing.T) {
	addr := start(t, func(ctx context.Context, l net.Listener) error {
		o := &options{tls: portList{ports: []int{portOf(l.Addr())}}, certFile: "/does/not/exist", keyFile: "/does/not/exist"}
		return o.serveHTTP(ctx, l)
	})
	if r := suite.ParseResponse(client(t, "https://"+addr)); r.Code != "200" || r.Hostname == "" {
		t.Errorf("answer is %+v", r)
	}
}

func TestGRPCAndCount(t *testing.T) {
	addr := start(t, serveGRPC)
	out := client(t, "grpc://"+addr, "-H", "x-test:value", "--count=3")
	blocks := strings.Split(strings.TrimSpace(out), "\n\n")
	if len(blocks) != 3 {
		t.Fatalf("%d blocks:\n%s", len(blocks), out)
	}
	for _, b := range blocks {
		if r := suite.ParseResponse(b); r.Code != "200" || r.Hostname == "" || r.RequestHeaders.Get("X-Test") != "value" {
			t.Errorf("block:\n%s", b)
		}
	}
}

func TestTCP(t *testing.T) {
	c, err := net.Dial("tcp", start(t, serveTCP))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil || !strings.Contains(string(b), "StatusCode=200") || !strings.HasSuffix(string(b), "ping") {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestClientFailsWithoutAnswer(t *testing.T) {
	for _, args := range [][]string{
		{"http://127.0.0.1:1/"}, {"grpc://127.0.0.1:1"}, {"ftp://x"}, {}, {"http://a", "http://b"}, {"http://a", "-H", "novalue"}, {"http://a", "--count=0"}, {"http:///x"},
	} {
		if err := call(t.Context(), args, io.Discard); err == nil {
			t.Errorf("client %v succeeds", args)
		}
	}
}

func TestManifestsFlags(t *testing.T) {
	o, err := parseServer(strings.Fields("--tcp=9090 --port=8080 --grpc=7070 --port=8443 --tls=8443 --crt=/cert.crt --key=/cert.key"))
	if err != nil {
		t.Fatal(err)
	}
	got := [][]int{o.http.ports, o.grpc.ports, o.tcp.ports, o.tls.ports}
	if diff := cmp.Diff([][]int{{8080, 8443}, {7070}, {9090}, {8443}}, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"--port=x", "--port=70000", "--port=-1"} {
		if _, err := parseServer([]string{bad}); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

func FuzzClientArguments(f *testing.F) {
	f.Add("http://echo/ --method=GET -H A:b --count=2")
	f.Add("grpc://echo:7070")
	f.Fuzz(func(t *testing.T, line string) {
		c, err := parseClient(strings.Fields(line))
		if err == nil && (c.url.Host == "" || c.count < 1) {
			t.Errorf("accepted %q", line)
		}
	})
}

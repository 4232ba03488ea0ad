package main

import (
	"cmp"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
)

// request is what a server tells of a request.
type request struct {
	port                           int
	host, url, method, proto, alpn string
	ip                             string
	header                         http.Header
}

// String is the answer: a field on each line.
func (r request) String() string {
	var b strings.Builder
	line := func(field, value string) { fmt.Fprintf(&b, "%s=%s\n", field, oneLine(value)) }
	line("ServiceVersion", os.Getenv("VERSION"))
	line("ServicePort", fmt.Sprint(r.port))
	line("Host", r.host)
	if r.url != "" {
		line("URL", r.url)
	}
	if r.method != "" {
		line("Method", r.method)
	}
	line("Proto", r.proto)
	line("Alpn", r.alpn)
	line("IP", r.ip)
	headers(&b, "RequestHeader", r.header)
	name, err := os.Hostname()
	if err != nil {
		name = "unknown"
	}
	line("Hostname", name)
	return b.String()
}

// headers writes each value on a line, in order of name.
func headers(b *strings.Builder, field string, h http.Header) {
	type pair struct{ name, value string }
	var all []pair
	for name, values := range h {
		for _, v := range values {
			all = append(all, pair{name, v})
		}
	}
	slices.SortStableFunc(all, func(x, y pair) int { return cmp.Compare(x.name, y.name) })
	for _, p := range all {
		fmt.Fprintf(b, "%s=%s:%s\n", field, p.name, oneLine(p.value))
	}
}

// oneLine keeps a value from ending its line.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' {
			return ' '
		}
		return r
	}, s)
}

// addressOf is the host of a peer's address.
func addressOf(peer string) string {
	host, _, err := net.SplitHostPort(peer)
	if err != nil {
		return peer
	}
	return host
}

// portOf is the port of a listening address.
func portOf(a net.Addr) int {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.Port
	}
	return 0
}

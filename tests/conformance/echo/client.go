package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	// requestTimeout bounds one request; the suite asks again while it waits.
	requestTimeout = 5 * time.Second
	// maxAnswer bounds how much of an answer is read, in bytes.
	maxAnswer = 1 << 20
)

// calls is what the client was asked to do.
type calls struct {
	url    *url.URL
	method string
	header http.Header
	count  int
}

// headerFlag is a repeatable Name:Value.
type headerFlag http.Header

func (h headerFlag) String() string { return "" }

func (h headerFlag) Set(s string) error {
	name, value, ok := strings.Cut(s, ":")
	if !ok || strings.TrimSpace(name) == "" {
		return fmt.Errorf("header %q is not Name:Value", s)
	}
	http.Header(h).Add(strings.TrimSpace(name), strings.TrimSpace(value))
	return nil
}

// parseClient accepts flags before and after the URL, as the suite writes them after it.
func parseClient(args []string) (*calls, error) {
	c := &calls{header: http.Header{}}
	f := flag.NewFlagSet("client", flag.ContinueOnError)
	f.SetOutput(io.Discard) // the error says it
	f.StringVar(&c.method, "method", http.MethodGet, "HTTP method")
	f.Var(headerFlag(c.header), "H", "header Name:Value; Host sets the authority")
	f.IntVar(&c.count, "count", 1, "number of requests")
	var targets []string
	for {
		if err := f.Parse(args); err != nil {
			return nil, err
		}
		if f.NArg() == 0 {
			break
		}
		targets = append(targets, f.Arg(0))
		args = f.Args()[1:]
	}
	if len(targets) != 1 {
		return nil, fmt.Errorf("want one URL, got %d", len(targets))
	}
	var err error
	if c.url, err = url.Parse(targets[0]); err != nil {
		return nil, err
	}
	if c.url.Host == "" || c.count < 1 {
		return nil, fmt.Errorf("URL %q has no host, or count %d is less than 1", targets[0], c.count)
	}
	return c, nil
}

// call makes the requests one after the other and prints a block for each.
func call(ctx context.Context, args []string, out io.Writer) error {
	c, err := parseClient(args)
	if err != nil {
		return err
	}
	var one func(context.Context) (string, error)
	switch c.url.Scheme {
	case "http", "https":
		one = c.overHTTP()
	case "grpc":
		conn, err := grpc.NewClient("passthrough:"+c.url.Host, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(c.authority()))
		if err != nil {
			return fmt.Errorf("connect to %q: %w", c.url.Host, err)
		}
		defer func() { _ = conn.Close() }()
		one = func(ctx context.Context) (string, error) { return c.overGRPC(ctx, conn) }
	default:
		return fmt.Errorf("scheme %q: only http, https and grpc are known", c.url.Scheme)
	}
	for i := range c.count {
		block, err := limited(ctx, one)
		if err != nil {
			return fmt.Errorf("request %d: %w", i, err)
		}
		if i > 0 {
			block = "\n" + block
		}
		if _, err := io.WriteString(out, block); err != nil {
			return err
		}
	}
	return nil
}

func limited(ctx context.Context, f func(context.Context) (string, error)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return f(ctx)
}

// authority is the Host header if there is one, else the URL's host.
func (c *calls) authority() string {
	if h := c.header.Get("Host"); h != "" {
		return h
	}
	return c.url.Host
}

// overHTTP prints a redirect as it is, and does not follow it.
func (c *calls) overHTTP() func(context.Context) (string, error) {
	client := &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		// The name in the certificate is not what is tested.
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableCompression: true}, //nolint:gosec // see above
	}
	return func(ctx context.Context) (string, error) {
		req, err := http.NewRequestWithContext(ctx, c.method, c.url.String(), nil)
		if err != nil {
			return "", err
		}
		req.Header, req.Host = c.header.Clone(), c.authority()
		req.Header.Del("Host")
		resp, err := client.Do(req)
		if err != nil {
			return "", err
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			return "", err
		}
		var b strings.Builder
		fmt.Fprintf(&b, "StatusCode=%d\n", resp.StatusCode)
		headers(&b, "ResponseHeader", resp.Header)
		writeBody(&b, string(body))
		return b.String(), nil
	}
}

// overGRPC takes OK for 200, which the server writes, and any other status for no answer, as Istio's echo does.
func (c *calls) overGRPC(ctx context.Context, conn *grpc.ClientConn) (string, error) {
	md := metadata.MD{}
	for name, values := range c.header {
		if name != "Host" {
			md.Append(name, values...)
		}
	}
	var header metadata.MD
	answer := &wrapperspb.StringValue{}
	err := conn.Invoke(metadata.NewOutgoingContext(ctx, md), echoMethod, wrapperspb.String("hello"), answer, grpc.Header(&header))
	var b strings.Builder
	if err != nil {
		return "", fmt.Errorf("status %s: %w", status.Code(err), err)
	}
	headers(&b, "ResponseHeader", http.Header(header))
	writeBody(&b, answer.GetValue())
	return b.String(), nil
}

// writeBody leaves out empty lines, which separate answers.
func writeBody(b *strings.Builder, body string) {
	for line := range strings.Lines(body) {
		if line = strings.TrimRight(line, "\r\n"); line != "" {
			b.WriteString(line + "\n")
		}
	}
}

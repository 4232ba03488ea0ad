package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// certificateLife is longer than any test run.
const certificateLife = 30 * 24 * time.Hour

// headerTimeout bounds how long a client may take for a request's header.
const headerTimeout = 10 * time.Second

// portList is a repeatable flag. Giving it once replaces the default.
type portList struct {
	ports []int
	given bool
}

func (p *portList) String() string { return fmt.Sprint(p.ports) }

func (p *portList) Set(s string) error {
	for _, one := range strings.Split(s, ",") {
		n, err := strconv.ParseUint(one, 10, 16)
		if err != nil {
			return fmt.Errorf("port %q: %w", one, err)
		}
		if !p.given {
			p.ports, p.given = nil, true
		}
		p.ports = append(p.ports, int(n))
	}
	return nil
}

// options are the flags that the suite's manifests use. Without any, the ports are those of the Services.
type options struct {
	http, grpc, tcp, tls portList
	certFile, keyFile    string
}

func parseServer(args []string) (*options, error) {
	o := &options{http: portList{ports: []int{8080}}, grpc: portList{ports: []int{7070}}, tcp: portList{ports: []int{9090}}}
	f := flag.NewFlagSet("echo", flag.ContinueOnError)
	f.SetOutput(io.Discard) // the error says it
	f.Var(&o.http, "port", "port for HTTP/1.1 and HTTP/2, also in cleartext")
	f.Var(&o.grpc, "grpc", "port for gRPC")
	f.Var(&o.tcp, "tcp", "port that answers and then returns every byte")
	f.Var(&o.tls, "tls", "which of the ports for HTTP have TLS")
	f.StringVar(&o.certFile, "crt", "", "certificate; one is made if the file does not exist")
	f.StringVar(&o.keyFile, "key", "", "its key")
	return o, f.Parse(args)
}

// serve runs until ctx ends or a port cannot be served.
func serve(ctx context.Context, args []string, _ io.Writer) error {
	o, err := parseServer(args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error)
	n := 0
	start := func(port int, handle func(context.Context, net.Listener) error) error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return fmt.Errorf("listen on port %d: %w", port, err)
		}
		n++
		go func() { ended <- handle(ctx, l) }()
		return nil
	}
	var failed error
	for _, p := range o.http.ports {
		failed = errors.Join(failed, start(p, o.serveHTTP))
	}
	for _, p := range o.grpc.ports {
		failed = errors.Join(failed, start(p, serveGRPC))
	}
	for _, p := range o.tcp.ports {
		failed = errors.Join(failed, start(p, serveTCP))
	}
	if failed != nil {
		cancel()
	}
	for range n {
		failed = errors.Join(failed, <-ended)
		cancel()
	}
	return failed
}

// serveHTTP answers requests until ctx ends.
func (o *options) serveHTTP(ctx context.Context, l net.Listener) error {
	port := portOf(l.Addr())
	s := &http.Server{ReadHeaderTimeout: headerTimeout, Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := request{port: port, host: r.Host, url: r.URL.RequestURI(), method: r.Method, proto: r.Proto, ip: addressOf(r.RemoteAddr), header: r.Header}
		if r.TLS != nil {
			q.alpn = r.TLS.NegotiatedProtocol
		}
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, q.String()) // a client that has gone does not want the answer
	})}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	var err error
	if slices.Contains(o.tls.ports, port) {
		cert, certErr := o.certificate()
		if certErr != nil {
			return errors.Join(certErr, l.Close())
		}
		s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
		err = s.ServeTLS(l, "", "")
	} else {
		err = s.Serve(l)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve port %d: %w", port, err)
}

// certificate reads the files, or makes a certificate if there are none.
func (o *options) certificate() (tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(o.certFile, o.keyFile)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return cert, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "echo"}, DNSNames: []string{"echo", "echo-v1", "echo-v2"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(certificateLife), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

func serveGRPC(ctx context.Context, l net.Listener) error {
	s := newGRPC(portOf(l.Addr()))
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	if err := s.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve port %d: %w", portOf(l.Addr()), err)
	}
	return nil
}

// serveTCP answers the first bytes of a connection with the fields, and returns all bytes.
func serveTCP(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("serve port %d: %w", portOf(l.Addr()), err)
		}
		go echoTCP(ctx, c, portOf(l.Addr()))
	}
}

func echoTCP(ctx context.Context, c net.Conn, port int) {
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	if err != nil {
		return
	}
	answer := "StatusCode=200\n" + request{port: port, proto: "TCP", ip: addressOf(c.RemoteAddr().String())}.String()
	if _, err := c.Write(append([]byte(answer), buf[:n]...)); err != nil {
		return
	}
	_, _ = io.Copy(c, c) // until the client ends it
}

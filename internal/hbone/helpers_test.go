package hbone

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testDeadline bounds every wait of a test.
const testDeadline = 20 * time.Second

const (
	clientID = "spiffe://cluster.local/ns/a/sa/client"
	serverID = "spiffe://cluster.local/ns/b/sa/server"
)

// testCA issues SPIFFE certificates.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newTestCA(t testing.TB) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	ca := &testCA{cert: cert, key: key, pool: x509.NewCertPool()}
	ca.pool.AddCert(cert)
	return ca
}

func (ca *testCA) issue(t testing.TB, id string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{u}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// verify checks the chain and that the peer has one of the names.
func (ca *testCA) verify(names ...string) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("no certificate")
		}
		leaf := s.PeerCertificates[0]
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: ca.pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			return err
		}
		for _, u := range leaf.URIs {
			for _, n := range names {
				if u.String() == n {
					return nil
				}
			}
		}
		return fmt.Errorf("peer is %v, not one of %v", leaf.URIs, names)
	}
}

func (ca *testCA) serverTLS(t testing.TB) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{ca.issue(t, serverID)}, ClientAuth: tls.RequireAnyClientCert,
		VerifyConnection: ca.verify(clientID),
	}
}

func (ca *testCA) clientTLS(t testing.TB, names ...string) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{ca.issue(t, clientID)}, InsecureSkipVerify: true,
		VerifyConnection: ca.verify(names...),
	}
}

// world is a server with an application behind it, and a pool.
type world struct {
	t      testing.TB
	ca     *testCA
	ln     *net.TCPListener
	server *Server
	pool   *Pool
	target Target
	app    *net.TCPListener // the application behind the server
	small  bool

	mu      sync.Mutex
	tunnels int // accepted by ln
	ended   []error
	wg      sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelFunc
}

type worldOptions struct {
	server, client Limits
	handle         func(ctx context.Context, r *Request) // default: splice to app
	app            func(c *net.TCPConn)                  // default: echo
	smallSockets   bool                                  // the kernel holds little for the application
	log            bool
}

func listen(t testing.TB) *net.TCPListener {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func newWorld(t testing.TB, o worldOptions) *world {
	t.Helper()
	leaks := watchLeaks(t)
	w := &world{t: t, ca: newTestCA(t), ln: listen(t), app: listen(t), small: o.smallSockets}
	if w.small {
		setListenBuffer(t, w.app)
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	if o.handle == nil {
		o.handle = w.splice
	}
	if o.app == nil {
		o.app = echo
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if o.log || os.Getenv("HBONE_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	w.server = NewServer(ServerConfig{TLS: w.ca.serverTLS(t), Handle: o.handle, Limits: o.server, Log: log.With("side", "server")})
	cfg := w.ca.clientTLS(t, serverID)
	w.pool = NewPool(PoolConfig{
		Dial:   dialTarget,
		TLS:    func(context.Context, Target) (*tls.Config, error) { return cfg, nil },
		Limits: o.client, Log: log.With("side", "client"),
	})
	w.target = Target{Source: clientID, Dest: []string{serverID}, Addr: addrPort(w.ln.Addr())}
	w.serve(w.ln, func(c *net.TCPConn) {
		w.mu.Lock()
		w.tunnels++
		w.mu.Unlock()
		err := w.server.ServeConn(w.ctx, c)
		w.mu.Lock()
		w.ended = append(w.ended, err)
		w.mu.Unlock()
	})
	w.serve(w.app, o.app)
	t.Cleanup(func() {
		w.ln.Close()
		w.app.Close()
		w.pool.Close()
		w.cancel()
		w.server.Close()
		w.wg.Wait()
		leaks()
	})
	return w
}

func dialTarget(ctx context.Context, t Target) (*net.TCPConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", t.Addr.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (w *world) serve(ln *net.TCPListener, f func(*net.TCPConn)) {
	w.wg.Add(1)
	go func() {
		defer w.wg.Done()
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			w.wg.Add(1)
			go func() {
				defer w.wg.Done()
				f(c)
			}()
		}
	}()
}

func (w *world) tunnelCount() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tunnels
}

// splice is the handler that connects every CONNECT to the application.
func (w *world) splice(ctx context.Context, r *Request) {
	if r.Method != "CONNECT" {
		r.Reject(400)
		return
	}
	app, err := net.DialTCP("tcp", nil, w.app.Addr().(*net.TCPAddr))
	if err != nil {
		r.Reject(503)
		return
	}
	if w.small {
		app.SetWriteBuffer(smallSocket)
	}
	s, err := r.Accept([]Header{{Name: "baggage", Value: "k8s.namespace.name=b"}})
	if err != nil {
		app.Close()
		return
	}
	s.Splice(app)
}

const smallSocket = 32 << 10 // bytes

// setListenBuffer bounds what the kernel receives ahead on accepted connections.
func setListenBuffer(t testing.TB, ln *net.TCPListener) {
	raw, err := ln.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, smallSocket)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func echo(c *net.TCPConn) {
	io.Copy(c, c)
	c.Close()
}

func (w *world) ctxTimeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), testDeadline)
}

// open opens a stream.
func (w *world) open() *Stream {
	w.t.Helper()
	ctx, cancel := w.ctxTimeout()
	defer cancel()
	s, err := w.pool.Open(ctx, w.target, "10.0.0.1:80", nil)
	if err != nil {
		w.t.Fatalf("open: %v", err)
	}
	return s
}

// client is the application in front of the pool: a connection whose other end is spliced to a stream.
type client struct {
	*net.TCPConn
	s      *Stream
	done   chan struct{}
	result Result
	err    error
}

func (w *world) dial() *client {
	w.t.Helper()
	return w.attach(w.open())
}

func (w *world) attach(s *Stream) *client {
	w.t.Helper()
	near, far := tcpPair(w.t)
	c := &client{TCPConn: near, s: s, done: make(chan struct{})}
	near.SetDeadline(time.Now().Add(testDeadline))
	go func() {
		defer close(c.done)
		c.result, c.err = s.Splice(far)
	}()
	w.t.Cleanup(func() {
		near.Close()
		select {
		case <-c.done:
		case <-time.After(testDeadline):
			w.t.Error("Splice did not return after its application was closed")
		}
	})
	return c
}

// wait returns what Splice returned.
func (c *client) wait(t testing.TB) (Result, error) {
	t.Helper()
	select {
	case <-c.done:
	case <-time.After(testDeadline):
		t.Fatal("Splice did not return")
	}
	return c.result, c.err
}

// tcpPair returns the two ends of a TCP connection.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln := listen(t)
	defer ln.Close()
	a, err := net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	b, err = ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

func (c *client) roundTrip(t testing.TB, msg string) {
	t.Helper()
	if _, err := c.Write([]byte(msg)); err != nil {
		t.Fatalf("write: %v", err)
	}
	got := make([]byte, len(msg))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("read: %v", err)
	}
	if string(got) != msg {
		t.Fatalf("got %q, want %q", got, msg)
	}
}

// until waits for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(testDeadline)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting until %s", what)
		}
		<-tick.C
	}
}

// watchLeaks remembers the descriptors there are; the returned function fails the test if goroutines of this package or
// more descriptors are left.
func watchLeaks(t testing.TB) func() {
	fds := countFDs(t)
	return func() {
		deadline := time.Now().Add(testDeadline)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			stacks, n := ourStacks(), countFDs(t)
			if stacks == "" && n <= fds {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("leaked: %d descriptors, were %d; goroutines:\n%s", n, fds, stacks)
				return
			}
			<-tick.C
		}
	}
}

func countFDs(t testing.TB) int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// ourStacks returns the stacks of goroutines of this package's code that is not a test.
func ourStacks() string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var l []string
	for _, g := range strings.Split(string(buf), "\n\n") {
		for _, m := range []string{"hbone.(*conn)", "hbone.(*Stream)", "hbone.(*Pool)", "hbone.(*Server)", "hbone.(*tls13Records)", "hbone.(*stdRecords)"} {
			if strings.Contains(g, m) {
				l = append(l, g)
				break
			}
		}
	}
	return strings.Join(l, "\n\n")
}

func mustAddr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

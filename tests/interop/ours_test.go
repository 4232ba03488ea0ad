package interop

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

// ourServer is internal/hbone as server in front of an application.
type ourServer struct {
	ln *net.TCPListener
	wg sync.WaitGroup

	mu      sync.Mutex
	cur     *hbone.Server
	make    func() *hbone.Server
	tunnels int
}

// startServer serves CONNECT to a, except for the authorities that statusOf knows.
func startServer(t testing.TB, c *ca, a *app) *ourServer {
	t.Helper()
	cfg := c.serverTLS(t)
	s := &ourServer{ln: listen(t)}
	ctx, cancel := context.WithCancel(context.Background())
	s.make = func() *hbone.Server {
		return hbone.NewServer(hbone.ServerConfig{TLS: cfg, Handle: func(_ context.Context, r *hbone.Request) { serveRequest(a, r) }})
	}
	s.cur = s.make()
	servers := []*hbone.Server{s.cur}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		for {
			tcp, err := s.ln.AcceptTCP()
			if err != nil {
				return
			}
			s.mu.Lock()
			srv := s.cur
			s.tunnels++
			servers = append(servers, srv)
			s.mu.Unlock()
			s.wg.Add(1)
			go func() {
				defer s.wg.Done()
				srv.ServeConn(ctx, tcp)
			}()
		}
	}()
	t.Cleanup(func() {
		s.ln.Close()
		cancel()
		s.mu.Lock()
		l := servers
		s.mu.Unlock()
		for _, srv := range l {
			srv.Close()
		}
		s.wg.Wait()
	})
	return s
}

// drain sends GOAWAY on the tunnels there are; later ones are served by a new server.
func (s *ourServer) drain() {
	s.mu.Lock()
	old := s.cur
	s.cur = s.make()
	s.mu.Unlock()
	old.Drain()
}

func (s *ourServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tunnels
}

// statusOf returns the status that an authority asks for: "status-401:80" is refused with 401.
func statusOf(authority string) int {
	n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(authority, "status-"), ":80"))
	if err != nil {
		return 0
	}
	return n
}

func serveRequest(a *app, r *hbone.Request) {
	switch status := statusOf(r.Authority); {
	case r.Method != "CONNECT":
		r.Reject(400)
		return
	case status != 0:
		r.Reject(status)
		return
	}
	up, err := net.DialTCP("tcp", nil, a.addr())
	if err != nil {
		r.Reject(503)
		return
	}
	s, err := r.Accept(nil)
	if err != nil {
		up.Close()
		return
	}
	s.Splice(up)
}

// ourClient is internal/hbone as client of a server somewhere.
type ourClient struct {
	pool   *hbone.Pool
	target hbone.Target
	wg     sync.WaitGroup
}

func startClient(t testing.TB, c *ca, addr netip.AddrPort) *ourClient {
	t.Helper()
	cfg := c.clientTLS(t)
	o := &ourClient{target: hbone.Target{Source: clientID, Dest: []string{serverID}, Addr: addr}}
	o.pool = hbone.NewPool(hbone.PoolConfig{
		Dial: func(ctx context.Context, tg hbone.Target) (*net.TCPConn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", tg.Addr.String())
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		},
		TLS: func(context.Context, hbone.Target) (*tls.Config, error) { return cfg, nil },
	})
	t.Cleanup(func() {
		o.pool.Close()
		o.wg.Wait()
	})
	return o
}

func (o *ourClient) open(t testing.TB, authority string) (*hbone.Stream, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	return o.pool.Open(ctx, o.target, authority, []hbone.Header{{Name: "baggage", Value: "k8s.namespace.name=shop"}})
}

// dial returns a connection that is spliced to a new stream.
func (o *ourClient) dial(t testing.TB) *net.TCPConn {
	t.Helper()
	s, err := o.open(t, "app:80")
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	near, far := tcpPair(t)
	o.wg.Add(1)
	go func() {
		defer o.wg.Done()
		s.Splice(far)
	}()
	return near
}

func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln := listen(t)
	defer ln.Close()
	a = must(net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr)))(t)
	return a, must(ln.AcceptTCP())(t)
}

// wantStatus opens a stream that the server refuses.
func (o *ourClient) wantStatus(t *testing.T, authority string, status int) {
	t.Helper()
	_, err := o.open(t, authority)
	var st *hbone.StatusError
	if !errors.As(err, &st) || st.Status != status {
		t.Errorf("open %s: %v, want status %d", authority, err, status)
	}
}

// until waits for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(deadline)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting until %s", what)
		}
		<-tick.C
	}
}

package proxy

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect/choose"
	"github.com/ambit-mesh/ambit/internal/identity/ca"
	"github.com/ambit-mesh/ambit/internal/linux"
	"github.com/ambit-mesh/ambit/tests/node/topology"
)

// Time limits of the tests: patience for something that must happen, and what counts as at once.
const (
	patience = 20 * time.Second
	atOnce   = 2 * time.Second
)

// mesh is two nodes with their proxies.
type mesh struct {
	t     *testing.T
	fab   *topology.Fabric
	nodes []*node
	dir   string
	kind  string // of capture
	v1    bool   // agents speak as Istio's: no listeners, and first
	pods  map[string]*pod
	// Appended to the state file.
	services, policies string
}

// node is a node with its agent and its proxy.
type node struct {
	m     *mesh
	top   *topology.Node
	agent *agent
	proxy *process
	dir   string
}

// pod is a pod that the tests run apps in.
type pod struct {
	*topology.Pod
	uid, sa  string
	node     *node
	redirect redirect.Pod
	lent     redirect.Listeners
	services string // YAML of the workload's services
	unknown  bool   // not in the state file
	plain    bool   // in the state file, not in the mesh
}

// newMesh makes pods a and a2 on node 1 and b on node 2, all in the mesh, and c on node 2, which is not.
func newMesh(t *testing.T) *mesh {
	t.Helper()
	m := &mesh{t: t, dir: t.TempDir(), kind: redirect.ModeEBPF, pods: map[string]*pod{}}
	var err error
	if m.fab, err = topology.New(2); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.fab.Close() })
	if err := ca.CreateDirectory(filepath.Join(m.dir, "ca"), "cluster.local"); err != nil {
		t.Fatal(err)
	}
	for i, top := range m.fab.Nodes {
		m.nodes = append(m.nodes, &node{m: m, top: top, dir: filepath.Join(m.dir, top.Name)})
		if err := os.MkdirAll(m.nodes[i].dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	m.addPod("a", m.nodes[0])
	m.addPod("a2", m.nodes[0])
	m.addPod("b", m.nodes[1])
	m.addPod("c", m.nodes[1]).unknown = true
	return m
}

func (m *mesh) addPod(name string, n *node) *pod {
	m.t.Helper()
	top, err := n.top.AddPod(name)
	if err != nil {
		m.t.Fatal(err)
	}
	p := &pod{Pod: top, uid: "uid-" + name, sa: "sa-" + name, node: n}
	p.redirect = redirect.Pod{UID: p.uid, NetNS: p.NetNS, IPs: p.IPs()}
	m.pods[name] = p
	return p
}

// start starts agents and proxies and captures the pods of the mesh.
func (m *mesh) start() *mesh {
	m.t.Helper()
	m.writeState()
	for _, n := range m.nodes {
		n.agent = newAgent(n)
	}
	for _, p := range m.pods {
		if !p.unknown && !p.plain {
			p.node.agent.enrol(p)
		}
	}
	for _, n := range m.nodes {
		n.proxy = n.startProxy()
		n.proxy.waitReady()
	}
	return m
}

// writeState writes the state file, which the proxies read again when it changes.
func (m *mesh) writeState() {
	m.t.Helper()
	var b strings.Builder
	b.WriteString("workloads:\n")
	for _, p := range m.pods {
		if p.unknown {
			continue
		}
		protocol := "HBONE"
		if p.plain {
			protocol = "TCP"
		}
		fmt.Fprintf(&b, "- uid: cluster1//Pod/default/%s\n  name: %s\n  namespace: default\n  serviceAccount: %s\n", p.Name, p.Name, p.sa)
		fmt.Fprintf(&b, "  workloadIps: [%q, %q]\n  protocol: %s\n  node: %s\n  network: \"\"\n  clusterId: cluster1\n", p.IP, p.IP6, protocol, p.node.top.Name)
		fmt.Fprintf(&b, "  workloadName: %s\n  workloadType: deployment\n  canonicalName: %s\n  canonicalRevision: v1\n", p.Name, p.Name)
		if p.services != "" {
			fmt.Fprintf(&b, "  services:\n%s", p.services)
		}
	}
	if m.services != "" {
		b.WriteString("services:\n" + m.services)
	}
	if m.policies != "" {
		b.WriteString("policies:\n" + m.policies)
	}
	tmp := m.stateFile() + ".new"
	if err := os.WriteFile(tmp, []byte(b.String()), 0o600); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(tmp, m.stateFile()); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mesh) stateFile() string { return filepath.Join(m.dir, "state.yaml") }

// vip gives service name a VIP with port 80 on the named pods' port.
func (m *mesh) vip(name, vip string, target int, pods ...string) {
	m.services += fmt.Sprintf("- name: %s\n  namespace: default\n  hostname: %s.default.svc\n  vips: [\"/%s\"]\n  ports:\n    80: %d\n", name, name, vip, target)
	for _, p := range pods {
		m.pods[p].services += fmt.Sprintf("    default/%s.default.svc:\n      80: %d\n", name, target)
	}
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func newRedirector(n *node) redirect.Redirector {
	t := n.m.t
	t.Helper()
	// A BPF filesystem takes no dots in names.
	name := strings.NewReplacer("/", "_", ".", "_").Replace(t.Name()) + "_" + n.top.Name
	cfg := redirect.Config{
		BPFDir: filepath.Join(box.bpffs, name), StateDir: filepath.Join(n.dir, "captured"), CgroupRoot: box.cgroup,
		KubeletCgroups: []string{box.kubelet}, HostNetNS: n.top.NetNS, HostProc: "/proc", Mode: n.m.kind, Log: quiet(),
	}
	r, err := choose.Probe(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close capture: %v", err)
		}
		os.RemoveAll(cfg.BPFDir)
	})
	return r
}

// eachKind runs a test with both kinds of capture.
func eachKind(t *testing.T, test func(t *testing.T, m *mesh)) {
	for _, kind := range []string{redirect.ModeEBPF, redirect.ModeNFT} {
		t.Run(kind, func(t *testing.T) {
			m := newMesh(t)
			m.kind = kind
			test(t, m)
		})
	}
}

// dial connects from the pod as its app would.
func (p *pod) dial(to netip.AddrPort) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := p.NetNS.Dial(ctx, to, linux.DialOptions{})
	if err != nil {
		return nil, err
	}
	return c, c.SetDeadline(time.Now().Add(patience))
}

// mustDial is dial for connections that must work.
func (p *pod) mustDial(to netip.AddrPort) *net.TCPConn {
	t := p.node.m.t
	t.Helper()
	c, err := p.dial(to)
	if err != nil {
		t.Fatalf("%s dials %s: %v", p.Name, to, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// client is an HTTP client inside the pod; each request has a connection of its own.
func (p *pod) client() *http.Client {
	return &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, _, addr string) (net.Conn, error) {
			return p.dial(netip.MustParseAddrPort(addr))
		},
	}}
}

// get fetches http://to/ and returns the body.
func (p *pod) get(to netip.AddrPort) (string, error) {
	r, err := p.client().Get("http://" + to.String() + "/")
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

// listen opens a port in the pod, on all its addresses.
func (p *pod) listen(port uint16) *net.TCPListener {
	t := p.node.m.t
	t.Helper()
	f, err := p.NetNS.Listen(linux.ListenOptions{Addr: netip.AddrPortFrom(netip.IPv6Unspecified(), port), DualStack: true})
	if err != nil {
		t.Fatal(err)
	}
	l, err := linux.ListenerFromFile(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// serveHTTP answers each request with the client's address as the app sees it.
func (p *pod) serveHTTP(port uint16) {
	l := p.listen(port)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ap := netip.MustParseAddrPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s saw %s", p.Name, ap.Addr().Unmap())
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	p.node.m.t.Cleanup(func() { s.Close(); <-done })
}

// serveTCP calls handle for each connection to the port.
func (p *pod) serveTCP(port uint16, handle func(*net.TCPConn)) {
	l := p.listen(port)
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go handle(c)
		}
	}()
}

// serveEcho sends back what it gets.
func (p *pod) serveEcho(port uint16) {
	p.serveTCP(port, func(c *net.TCPConn) {
		defer c.Close()
		_, _ = io.Copy(c, c)
	})
}

func addr(p *pod, port uint16) netip.AddrPort  { return netip.AddrPortFrom(p.IP, port) }
func addr6(p *pod, port uint16) netip.AddrPort { return netip.AddrPortFrom(p.IP6, port) }

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("never: %s", what)
		}
	}
}

package capture

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/api/ports"
	zdspb "github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/internal/linux"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/zds"
	"github.com/ambit-mesh/ambit/tests/node/topology"
	"github.com/ambit-mesh/ambit/ztunnel/proxy"
)

const testDeadline = 10 * time.Second

// fakeServed is a pod whose connections end when the test says so.
type fakeServed struct {
	cfg     proxy.PodConfig
	l       proxy.Listeners
	retired chan struct{}
	once    sync.Once
	end     sync.Once
	done    chan struct{}
	linger  time.Duration
}

func (f *fakeServed) Retire(linger time.Duration) {
	f.once.Do(func() { f.linger = linger; closeListeners(f.l); close(f.retired) })
}
func (f *fakeServed) Cut(error)             { f.Retire(0); f.finish() }
func (f *fakeServed) Done() <-chan struct{} { return f.done }
func (f *fakeServed) finish() {
	f.end.Do(func() { f.cfg.NetNS.Close(); close(f.done) })
}

// rig is a manager with a scripted agent.
type rig struct {
	t        *testing.T
	m        *Manager
	ready    *telemetry.Readiness
	listener *zds.Listener
	conn     *zds.Conn
	pods     []*topology.Pod
	path     string

	mu     sync.Mutex
	served []*fakeServed
	fail   error
}

func newRig(t *testing.T) *rig {
	t.Helper()
	f, err := topology.New(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	r := &rig{t: t, ready: telemetry.NewReadiness(), path: filepath.Join(t.TempDir(), "zds.sock")}
	for _, name := range []string{"a", "b"} {
		p, err := f.Nodes[0].AddPod(name)
		if err != nil {
			t.Fatal(err)
		}
		r.pods = append(r.pods, p)
	}
	r.m = New(Config{Socket: r.path, Serve: r.serve, Ready: r.ready.Condition("pods"), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	r.listen()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		r.m.Drain()
		r.m.Cut(errors.New("test ends"))
		for _, s := range r.all() {
			s.finish()
		}
		r.listener.Close()
	})
	return r
}

func (r *rig) serve(c proxy.PodConfig, l proxy.Listeners) (Served, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		closeListeners(l)
		c.NetNS.Close()
		return nil, r.fail
	}
	s := &fakeServed{cfg: c, l: l, retired: make(chan struct{}), done: make(chan struct{})}
	r.served = append(r.served, s)
	return s, nil
}

func (r *rig) all() []*fakeServed {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*fakeServed(nil), r.served...)
}

func (r *rig) setFail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

func (r *rig) listen() {
	r.t.Helper()
	l, err := zds.Listen(r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	r.listener = l
}

// held is what the proxy gave back.
type held struct {
	uid     string
	l       *zdspb.Listeners
	sockets zds.Sockets
}

// accept is Ambit's agent up to the snapshot.
func (r *rig) accept() []held {
	r.t.Helper()
	r.hello()
	var out []held
	for {
		m, files, err := r.conn.RecvResponse()
		if err != nil {
			r.t.Fatal(err)
		}
		if m.GetHeldEnd() != nil {
			return out
		}
		s, err := zds.Unpack(m.GetHeld().GetListeners(), files)
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(s.Close)
		out = append(out, held{m.GetHeld().GetUid(), m.GetHeld().GetListeners(), s})
	}
}

func (r *rig) hello() {
	r.t.Helper()
	c, err := r.listener.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	r.conn = c
	r.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(testDeadline)); err != nil {
		r.t.Fatal(err)
	}
	h, err := c.RecvHello()
	if err != nil || !h.GetListeners() || h.GetVersion() != zdspb.Version_V1 {
		r.t.Fatalf("hello %v, %v", h, err)
	}
}

// ask sends a request and returns the error in its answer.
func (r *rig) ask(m *zdspb.WorkloadRequest, files ...*os.File) string {
	r.t.Helper()
	if err := r.conn.SendRequest(m, files); err != nil {
		r.t.Fatal(err)
	}
	a, _, err := r.conn.RecvResponse()
	if err != nil || a.GetAck() == nil {
		r.t.Fatalf("answer %v, %v", a, err)
	}
	return a.GetAck().GetError()
}

func addRequest(uid string, l *zdspb.Listeners) *zdspb.WorkloadRequest {
	return &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{Add: &zdspb.AddWorkload{
		Uid: uid, WorkloadInfo: &zdspb.WorkloadInfo{Name: "n-" + uid, Namespace: "ns", ServiceAccount: "sa"}, Listeners: l,
	}}}
}

func del(uid string) *zdspb.WorkloadRequest {
	return &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Del{Del: &zdspb.DelWorkload{Uid: uid}}}
}

func keep(uid string) *zdspb.WorkloadRequest {
	return &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Keep{Keep: &zdspb.KeepWorkload{Uid: uid}}}
}

func snapshotSent() *zdspb.WorkloadRequest {
	return &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_SnapshotSent{SnapshotSent: &zdspb.SnapshotSent{}}}
}

// lend opens listeners in a pod and keeps them, as an agent does.
func (r *rig) lend(pod int) zds.Sockets {
	r.t.Helper()
	var s zds.Sockets
	var err error
	if s.NetNS, err = r.pods[pod].NetNS.File(); err != nil {
		r.t.Fatal(err)
	}
	for _, f := range []**os.File{&s.Outbound, &s.InboundPlaintext, &s.InboundHBONE} {
		if *f, err = r.pods[pod].NetNS.Listen(linux.ListenOptions{Addr: netip.MustParseAddrPort("127.0.0.1:0")}); err != nil {
			r.t.Fatal(err)
		}
	}
	r.t.Cleanup(s.Close)
	return s
}

// add adds a pod with lent listeners.
func (r *rig) add(uid string, s zds.Sockets) string {
	r.t.Helper()
	l, files := s.Pack(zdspb.OriginalDestination_SOCKNAME, 0x53a)
	return r.ask(addRequest(uid, l), files...)
}

func (r *rig) want(step, got, want string) {
	r.t.Helper()
	if (got == "") != (want == "") {
		r.t.Fatalf("%s: answer %q, want %q", step, got, want)
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(testDeadline)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("never: %s", what)
		}
	}
}

func isRetired(s *fakeServed) bool {
	select {
	case <-s.retired:
		return true
	default:
		return false
	}
}

func TestPodsOfTheSnapshotAreServedAndReady(t *testing.T) {
	r := newRig(t)
	if held := r.accept(); len(held) != 0 {
		t.Errorf("gave back %d pods", len(held))
	}
	if r.ready.Ready() {
		t.Error("ready before the snapshot")
	}
	r.want("add", r.add("u1", r.lend(0)), "")
	r.want("keep", r.ask(keep("u2")), "")
	r.want("snapshot", r.ask(snapshotSent()), "")
	if !r.ready.Ready() {
		t.Errorf("not ready: %v", r.ready.Missing())
	}
	s := r.all()
	if len(s) != 1 {
		t.Fatalf("%d pods are served", len(s))
	}
	want := proxy.PodConfig{UID: "u1", Name: "n-u1", Namespace: "ns", ServiceAccount: "sa", OriginalDst: proxy.FromSocket, AppMark: 0x53a}
	got := s[0].cfg
	got.NetNS = nil
	if got != want {
		t.Errorf("served %+v, want %+v", got, want)
	}
	infos := r.m.Pods()
	if d := cmp.Diff([]PodInfo{{UID: "u1", Name: "n-u1", Namespace: "ns", ServiceAccount: "sa", NetNS: r.pods[0].NetNS.Inode(), State: "Up", Listeners: "agent"}}, infos); d != "" {
		t.Error(d)
	}
}

func TestAddIsIdempotentAndOtherSocketsReplace(t *testing.T) {
	r := newRig(t)
	r.accept()
	lent := r.lend(0)
	r.want("add", r.add("u1", lent), "")
	r.want("snapshot", r.ask(snapshotSent()), "")
	r.want("same again", r.add("u1", lent), "")
	if n := len(r.all()); n != 1 || isRetired(r.all()[0]) {
		t.Fatalf("the same add changed something: %d served", n)
	}
	r.want("other listeners", r.add("u1", r.lend(0)), "")
	r.want("other netns", r.add("u1", r.lend(1)), "")
	s := r.all()
	if len(s) != 3 || !isRetired(s[0]) || !isRetired(s[1]) || isRetired(s[2]) {
		t.Fatalf("%d served", len(s))
	}
	if s[2].cfg.NetNS.Inode() != r.pods[1].NetNS.Inode() {
		t.Error("the pod is served in its old netns")
	}
}

func TestPodsMissingFromASnapshotLeave(t *testing.T) {
	r := newRig(t)
	r.accept()
	r.want("add", r.add("u1", r.lend(0)), "")
	r.want("add", r.add("u2", r.lend(1)), "")
	r.want("snapshot", r.ask(snapshotSent()), "")
	r.conn.Close()
	r.accept()
	r.want("keep", r.ask(keep("u2")), "")
	for _, s := range r.all() {
		if isRetired(s) {
			t.Fatal("a pod left before the snapshot was complete")
		}
	}
	r.want("snapshot", r.ask(snapshotSent()), "")
	s := r.all()
	if !isRetired(s[0]) || isRetired(s[1]) {
		t.Errorf("u1 left %t, u2 left %t", isRetired(s[0]), isRetired(s[1]))
	}
}

func TestARestartedAgentGetsItsListenersBack(t *testing.T) {
	r := newRig(t)
	r.accept()
	lent := r.lend(0)
	r.want("add", r.add("u1", lent), "")
	r.want("snapshot", r.ask(snapshotSent()), "")
	r.conn.Close()
	r.listener.Close()
	r.listen()
	back := r.accept()
	if len(back) != 1 || back[0].uid != "u1" || back[0].l.GetOriginalDestination() != zdspb.OriginalDestination_SOCKNAME || back[0].l.GetAppMark() != 0x53a {
		t.Fatalf("gave back %+v", back)
	}
	for _, p := range [][2]*os.File{
		{back[0].sockets.Outbound, lent.Outbound}, {back[0].sockets.InboundPlaintext, lent.InboundPlaintext}, {back[0].sockets.InboundHBONE, lent.InboundHBONE},
	} {
		got, err1 := inode(p[0])
		want, err2 := inode(p[1])
		if err1 != nil || err2 != nil || got != want {
			t.Errorf("got back socket %d, %v; lent %d, %v", got, err1, want, err2)
		}
	}
	// What came back is the same socket: adding with it changes nothing.
	r.want("add", r.add("u1", back[0].sockets), "")
	r.want("snapshot", r.ask(snapshotSent()), "")
	if s := r.all(); len(s) != 1 || isRetired(s[0]) {
		t.Error("the pod's proxy was replaced")
	}
}

func TestIstiosAgentIsServedWithOwnListeners(t *testing.T) {
	r := newRig(t)
	r.hello()
	// It speaks at once, with the netns alone.
	ns, err := r.pods[0].NetNS.File()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	r.want("add", r.ask(addRequest("u1", nil), ns), "")
	r.want("snapshot", r.ask(snapshotSent()), "")
	s := r.all()
	if len(s) != 1 || s[0].cfg.OriginalDst != proxy.FromNAT || s[0].cfg.AppMark != 0 {
		t.Fatalf("served %+v", s)
	}
	for port, l := range map[int]*net.TCPListener{
		ports.ZtunnelOutbound: s[0].l.Outbound, ports.ZtunnelInboundPlaintext: s[0].l.InboundPlaintext, ports.HBONE: s[0].l.InboundHBONE,
	} {
		if got := l.Addr().(*net.TCPAddr).Port; got != port {
			t.Errorf("listens on %d, want %d", got, port)
		}
		ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
		c, err := r.pods[1].NetNS.Dial(ctx, netip.AddrPortFrom(r.pods[0].IP, uint16(port)), linux.DialOptions{})
		cancel()
		if err != nil {
			t.Errorf("connect to port %d from another pod: %v", port, err)
			continue
		}
		c.Close()
	}
	// The next proxy can listen beside this one.
	f, err := r.pods[0].NetNS.Listen(linux.ListenOptions{Addr: netip.MustParseAddrPort("[::]:15008"), DualStack: true, ReusePort: true})
	if err != nil {
		t.Errorf("second proxy: %v", err)
	} else {
		f.Close()
	}
}

func TestDelLetsConnectionsLiveAndNetNSGoAfterThem(t *testing.T) {
	r := newRig(t)
	r.accept()
	r.want("add", r.add("u1", r.lend(0)), "")
	r.want("snapshot", r.ask(snapshotSent()), "")
	r.want("del", r.ask(del("u1")), "")
	s := r.all()[0]
	if !isRetired(s) || s.linger != proxy.HBONELinger {
		t.Errorf("retired %t with linger %v", isRetired(s), s.linger)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := r.m.Wait(ctx); err == nil {
		t.Error("nothing to wait for although connections live")
	}
	s.finish()
	if err := r.m.Wait(context.Background()); err != nil {
		t.Error(err)
	}
	r.want("del again", r.ask(del("u1")), "")
}

func TestFailedAddBlocksReadinessUntilARetryWorks(t *testing.T) {
	r := newRig(t)
	r.accept()
	r.setFail(errors.New("no room"))
	if got := r.add("u1", r.lend(0)); got == "" {
		t.Fatal("a failed add was acknowledged")
	}
	r.want("snapshot", r.ask(snapshotSent()), "")
	if r.ready.Ready() {
		t.Error("ready with a pod that is not served")
	}
	r.setFail(nil)
	eventually(t, "the pod is served after all", r.ready.Ready)
	if p := r.m.Pods(); len(p) != 1 || p[0].State != "Up" || p[0].Listeners != "agent" {
		t.Errorf("pods %+v", p)
	}
}

func TestBadMessagesAreRefusedAloneAndDisorderEndsTheConnection(t *testing.T) {
	r := newRig(t)
	r.accept()
	r.want("add", r.add("u1", r.lend(0)), "")
	r.want("add without netns", r.ask(addRequest("u2", nil)), "refused")
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r.want("add with a file that is no netns", r.ask(addRequest("u2", nil), null), "refused")
	r.want("add without info", r.ask(&zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{Add: &zdspb.AddWorkload{Uid: "u2"}}}, null), "refused")
	r.want("del with a file", r.ask(del("u1"), null), "refused")
	s := r.lend(1)
	l, files := s.Pack(zdspb.OriginalDestination_NAT, 0)
	l.Roles = l.Roles[:2]
	r.want("some listeners", r.ask(addRequest("u2", l), files[:3]...), "refused")
	r.want("snapshot", r.ask(snapshotSent()), "")
	if n := len(r.all()); n != 1 || isRetired(r.all()[0]) {
		t.Fatalf("%d pods served", n)
	}
	for _, m := range []*zdspb.WorkloadRequest{keep("u1"), snapshotSent()} {
		r.want("out of order", r.ask(m), "refused")
		if _, _, err := r.conn.RecvResponse(); !errors.Is(err, io.EOF) {
			t.Errorf("connection goes on: %v", err)
		}
		back := r.accept()
		if len(back) != 1 {
			t.Fatalf("gave back %d pods", len(back))
		}
		r.want("add", r.add("u1", back[0].sockets), "")
		r.want("snapshot", r.ask(snapshotSent()), "")
	}
	if n := len(r.all()); n != 1 || isRetired(r.all()[0]) {
		t.Error("the pod was disturbed")
	}
}

package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/linux"
	"github.com/ambit-mesh/ambit/internal/zds"
)

const testNode = "node-1"

// world is what outlives an agent: the API server, the kernel, the node's directories.
type world struct {
	t       *testing.T
	j       *journal
	kube    *fake.Clientset
	capture *fakeCapture
	dir     string
	zds     string
	plugin  string
	events  *record.FakeRecorder
	// ackTimeout of agents, if not the real one.
	ackTimeout time.Duration
}

func newWorld(t *testing.T) *world {
	t.Helper()
	j := &journal{}
	dir := t.TempDir()
	w := &world{
		t: t, j: j, kube: fake.NewClientset(), capture: newFakeCapture(j), dir: dir,
		zds: filepath.Join(dir, "z.sock"), plugin: filepath.Join(dir, "p.sock"), events: record.NewFakeRecorder(1000),
	}
	w.namespace("shop", "")
	return w
}

func (w *world) namespace(name, mode string) {
	w.t.Helper()
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if mode != "" {
		n.Labels = map[string]string{ports.LabelDataplaneMode: mode}
	}
	ctx := w.t.Context()
	_, err := w.kube.CoreV1().Namespaces().Update(ctx, n, metav1.UpdateOptions{})
	if err != nil {
		_, err = w.kube.CoreV1().Namespaces().Create(ctx, n, metav1.CreateOptions{})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// pod creates a pod as the API server shows it; without an address it has not got its network yet.
func (w *world) pod(name, uid, ip string) {
	w.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(uid)},
		Spec:       corev1.PodSpec{NodeName: testNode, ServiceAccountName: "sa-" + name},
		Status:     corev1.PodStatus{Phase: corev1.PodPending},
	}
	if ip != "" {
		p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}}
	}
	if _, err := w.kube.CoreV1().Pods("shop").Create(w.t.Context(), p, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) annotation(name string) string {
	w.t.Helper()
	p, err := w.kube.CoreV1().Pods("shop").Get(w.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return p.Annotations[ports.AnnotationRedirection]
}

func (w *world) waitAnnotation(name, want string) {
	w.t.Helper()
	waitFor(w.t, "annotation "+want+" on "+name, func() bool { return w.annotation(name) == want })
}

// event waits for an event that contains all texts.
func (w *world) event(texts ...string) {
	w.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case e := <-w.events.Events:
			if !slices.ContainsFunc(texts, func(s string) bool { return !strings.Contains(e, s) }) {
				return
			}
		case <-deadline:
			w.t.Fatalf("no event with %q", texts)
		}
	}
}

func (w *world) start() (a *Agent, stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	level := slog.LevelError + 1
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	a = New(Config{
		NodeName: testNode, Namespace: "istio-system", NetNSDir: w.dir, HostProc: "/proc", ZDSSocket: w.zds, PluginSocket: w.plugin,
	}, Deps{
		Kube: w.kube, Redirector: w.capture, Events: w.events, Metrics: NewMetrics(prometheus.NewRegistry()),
		Log:    slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
		Synced: func(error) {},
	})
	if w.ackTimeout != 0 {
		a.ackTimeout = w.ackTimeout
	}
	var done sync.WaitGroup
	done.Go(func() {
		if err := a.Run(ctx); err != nil {
			w.t.Errorf("agent: %v", err)
		}
	})
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); done.Wait() }) }
	w.t.Cleanup(stop)
	waitFor(w.t, "sync", a.isSynced)
	return a, stop
}

func (w *world) proxy() *fakeProxy {
	w.t.Helper()
	p := &fakeProxy{t: w.t, j: w.j}
	p.connect(w.zds)
	w.t.Cleanup(p.stop)
	return p
}

func TestLabelledNamespaceEnrolsAndUnlabelledReleases(t *testing.T) {
	w := newWorld(t)
	p := newTestPod(t, w.dir, "10.244.1.2")
	w.start()
	z := w.proxy()
	w.pod("web", p.uid, p.ip.String())
	never(t, "a pod without label is captured", 200*time.Millisecond, func() bool { return w.capture.has(p.uid) })

	w.namespace("shop", "ambient")
	w.waitAnnotation("web", "enabled")
	// Nothing is captured before somebody serves.
	if d := cmp.Diff([]string{"open", "ack", "enroll"}, w.j.list()); d != "" {
		t.Error(d)
	}
	z.mu.Lock()
	info := z.infos[p.uid]
	z.mu.Unlock()
	if info.GetName() != "web" || info.GetNamespace() != "shop" || info.GetServiceAccount() != "sa-web" {
		t.Errorf("ztunnel was told %v", info)
	}
	s := z.sockets(p.uid)
	if !s.HasListeners() {
		t.Fatal("ztunnel got no listeners")
	}

	w.namespace("shop", "")
	w.waitAnnotation("web", "")
	waitFor(t, "ztunnel to let the pod go", func() bool { return !z.has(p.uid) })
	if d := cmp.Diff([]string{"open", "ack", "enroll", "unenroll", "del"}, w.j.list()); d != "" {
		t.Error(d)
	}

	w.namespace("shop", "ambient")
	w.waitAnnotation("web", "enabled")
}

func TestWithoutZtunnelNothingIsCaptured(t *testing.T) {
	w := newWorld(t)
	p := newTestPod(t, w.dir, "10.244.1.3")
	w.namespace("shop", "ambient")
	w.pod("web", p.uid, p.ip.String())
	w.start()
	w.waitAnnotation("web", "pending")
	w.event(EventNotCaptured, "no ztunnel is connected", "check DaemonSets ztunnel")
	if w.capture.has(p.uid) {
		t.Error("captured with nobody to serve")
	}
	w.proxy()
	w.waitAnnotation("web", "enabled")
}

func TestRefusedPodStaysPendingAndIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	p := newTestPod(t, w.dir, "10.244.1.4")
	w.namespace("shop", "ambient")
	w.start()
	z := &fakeProxy{t: t, j: w.j, refuse: func(string) error { return errors.New("no room") }}
	z.connect(w.zds)
	defer z.stop()
	w.pod("web", p.uid, p.ip.String())
	w.waitAnnotation("web", "pending")
	w.event(EventNotCaptured, "no room")
	waitFor(t, "a second try", func() bool { z.mu.Lock(); defer z.mu.Unlock(); return z.adds > 1 })
	if w.capture.has(p.uid) {
		t.Error("captured though ztunnel refused it")
	}
	z.setRefuse(nil)
	w.waitAnnotation("web", "enabled")
}

func TestBrokenCaptureIsRepaired(t *testing.T) {
	w := newWorld(t)
	p := newTestPod(t, w.dir, "10.244.1.5")
	w.namespace("shop", "ambient")
	w.pod("web", p.uid, p.ip.String())
	a, _ := w.start()
	w.proxy()
	w.waitAnnotation("web", "enabled")
	w.capture.mu.Lock()
	w.capture.broken[p.uid] = errors.New("rule 100 is missing")
	w.capture.mu.Unlock()
	a.enqueueAll() // what the repair loop does every repairEvery
	w.event(EventRepaired, "rule 100 is missing")
	if err := w.capture.Check(t.Context(), a.get(p.uid).pod()); err != nil {
		t.Errorf("not repaired: %v", err)
	}
}

func TestFailedCaptureIsToldAndTriedAgain(t *testing.T) {
	w := newWorld(t)
	p := newTestPod(t, w.dir, "10.244.1.6")
	w.namespace("shop", "ambient")
	w.pod("web", p.uid, p.ip.String())
	w.capture.failEnrol = errors.New("no such program")
	w.start()
	w.proxy()
	w.waitAnnotation("web", "pending")
	w.event(EventNotCaptured, "no such program")
	w.capture.mu.Lock()
	w.capture.failEnrol = nil
	w.capture.mu.Unlock()
	w.waitAnnotation("web", "enabled")
}

func TestDeletedPodIsRemoved(t *testing.T) {
	w := newWorld(t)
	uid, ip := newUID(t), "10.244.1.7"
	_, ns := newNetNS(t, w.dir, netip.MustParseAddr(ip))
	pid := runIn(t, ns, podCgroup(t, uid))
	w.namespace("shop", "ambient")
	w.pod("web", uid, ip)
	a, _ := w.start()
	z := w.proxy()
	w.waitAnnotation("web", "enabled")
	if err := w.kube.CoreV1().Pods("shop").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	// Deleted by force: its process still runs and must not get past the mesh.
	never(t, "capture of a pod with processes is removed", 300*time.Millisecond, func() bool { return !w.capture.has(uid) })
	proc, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := proc.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := proc.Wait(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "removal", func() bool { return !w.capture.has(uid) && !z.has(uid) && a.get(uid) == nil })
}

func TestStateOfVanishedPodsIsCollected(t *testing.T) {
	w := newWorld(t)
	gone := newUID(t)
	w.capture.captured[gone] = (&tracked{uid: gone}).pod()
	a, _ := w.start()
	waitFor(t, "collection", func() bool { return !w.capture.has(gone) })
	waitFor(t, "nothing left", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.known()) == 0 })
}

// TestUnlabelledWhileAwayIsReleased: the label went while no agent ran.
func TestUnlabelledWhileAwayIsReleased(t *testing.T) {
	w := newWorld(t)
	p := newTestPod(t, w.dir, "10.244.1.8")
	w.pod("web", p.uid, p.ip.String())
	if _, err := w.kube.CoreV1().Pods("shop").Patch(t.Context(), "web", types.MergePatchType,
		[]byte(`{"metadata":{"annotations":{"ambient.istio.io/redirection":"enabled"}}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	w.capture.captured[p.uid] = (&tracked{uid: p.uid}).pod()
	w.start()
	waitFor(t, "release", func() bool { return !w.capture.has(p.uid) })
	w.waitAnnotation("web", "")
}

// TestDuringAnUpgradeTheNewestZtunnelCounts: two are connected; both are told, the newest one's answer decides.
func TestDuringAnUpgradeTheNewestZtunnelCounts(t *testing.T) {
	w := newWorld(t)
	first, second := newTestPod(t, w.dir, "10.244.1.9"), newTestPod(t, w.dir, "10.244.1.10")
	w.namespace("shop", "ambient")
	w.pod("one", first.uid, first.ip.String())
	w.start()
	old := w.proxy()
	w.waitAnnotation("one", "enabled")

	young := &fakeProxy{t: t, j: w.j, refuse: func(uid string) error {
		if uid == second.uid {
			return errors.New("not yet")
		}
		return nil
	}}
	young.connect(w.zds)
	defer young.stop()
	waitFor(t, "the new one's snapshot", func() bool { return young.ready() && young.has(first.uid) })

	w.pod("two", second.uid, second.ip.String())
	waitFor(t, "the old one to be told", func() bool { return old.has(second.uid) })
	w.waitAnnotation("two", "pending")
	if w.capture.has(second.uid) {
		t.Error("captured though the newest ztunnel refused it")
	}
	young.setRefuse(nil)
	w.waitAnnotation("two", "enabled")

	old.stop()
	w.namespace("shop", "")
	waitFor(t, "the new one to let both go", func() bool { return !young.has(first.uid) && !young.has(second.uid) })
}

// TestZtunnelOfV1GetsTheNamespaceAlone: Istio's ztunnel has listeners of its own; the agent's would take a share of
// the connections, so they are closed before anything is captured.
func TestZtunnelOfV1GetsTheNamespaceAlone(t *testing.T) {
	w := newWorld(t)
	w.capture.nat = true
	p := newTestPod(t, w.dir, "10.244.1.11")
	w.namespace("shop", "ambient")
	w.pod("web", p.uid, p.ip.String())
	a, _ := w.start()
	z := &fakeProxy{t: t, j: w.j}
	z.connectAs(w.zds, false)
	defer z.stop()
	w.waitAnnotation("web", "enabled")
	s := z.sockets(p.uid)
	if s.NetNS == nil || s.HasListeners() || s.Outbound != nil {
		t.Errorf("got %+v, want a network namespace alone", s)
	}
	if err := a.get(p.uid).listeners.Outbound.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the agent's listener is still open: %v", err)
	}
	// Ambit's ztunnel takes over and opens its own as well.
	y := w.proxy()
	waitFor(t, "the new ztunnel to have the pod", func() bool { return y.has(p.uid) })
	if y.sockets(p.uid).HasListeners() {
		t.Error("closed listeners were sent")
	}
	w.namespace("shop", "")
	w.waitAnnotation("web", "")
}

func TestZtunnelOfV1WithoutNftablesIsTold(t *testing.T) {
	w := newWorld(t)
	p := newTestPod(t, w.dir, "10.244.1.16")
	w.namespace("shop", "ambient")
	w.pod("web", p.uid, p.ip.String())
	w.start()
	z := &fakeProxy{t: t, j: w.j}
	z.connectAs(w.zds, false)
	defer z.stop()
	w.waitAnnotation("web", "pending")
	w.event(EventNotCaptured, "ZDS V1", "REDIRECT_MODE=nft")
	if w.capture.has(p.uid) {
		t.Error("captured though nobody can serve it")
	}
}

// TestReplacedAgentGetsItsListenersBack: agent A ends, B starts; capture is never without listeners, ztunnel
// serves all the time, and no connection is refused.
func TestReplacedAgentGetsItsListenersBack(t *testing.T) {
	w := newWorld(t)
	p := newTestPod(t, w.dir, "10.244.1.12")
	w.namespace("shop", "ambient")
	w.pod("web", p.uid, p.ip.String())
	_, stopA := w.start()
	z := w.proxy()
	w.waitAnnotation("web", "enabled")
	inode := socketInode(t, z.sockets(p.uid).Outbound)
	stopServing := serveListener(t, z.sockets(p.uid).Outbound)
	defer stopServing()
	addr := localAddr(t, z.sockets(p.uid).Outbound, p.ip)

	ctx, cancel := context.WithCancel(t.Context())
	var refused, served atomic.Int64
	var churn sync.WaitGroup
	churn.Go(func() {
		for ctx.Err() == nil {
			c, err := p.netns.Dial(ctx, addr, linux.DialOptions{})
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("connect: %v", err)
					refused.Add(1)
				}
				continue
			}
			b := make([]byte, 2)
			if _, err := c.Read(b); err != nil && ctx.Err() == nil {
				t.Errorf("read: %v", err)
			}
			served.Add(1)
			c.Close()
		}
	})
	more := func() {
		n := served.Load()
		waitFor(t, "connections", func() bool { return served.Load() > n+50 })
	}
	more()
	for range 3 {
		stopA()
		z.disconnect()
		more()
		if !w.capture.has(p.uid) {
			t.Fatal("an agent that stops takes capture away")
		}
		before := len(w.j.list())
		var b *Agent
		b, stopA = w.start()
		z.connect(w.zds)
		waitFor(t, "the new agent to track the pod", func() bool { return b.get(p.uid) != nil && z.ready() })
		waitFor(t, "the pod in ztunnel", func() bool { return z.has(p.uid) })
		more()
		if got := socketInode(t, b.get(p.uid).listeners.Outbound); got != inode {
			t.Errorf("listener is %s, was %s", got, inode)
		}
		if d := w.j.list()[before:]; slices.Contains(d, "open") || slices.Contains(d, "unenroll") || slices.Contains(d, "del") {
			t.Errorf("the new agent did %v", d)
		}
	}
	cancel()
	churn.Wait()
	if n := refused.Load(); n > 0 {
		t.Errorf("%d connections refused", n)
	}
	t.Logf("%d connections", served.Load())
}

// TestBothRestarted: agent and ztunnel are replaced at once, nothing is given back. The pod stays captured and
// gets new listeners.
func TestBothRestarted(t *testing.T) {
	w := newWorld(t)
	p := newTestPod(t, w.dir, "10.244.1.13")
	w.namespace("shop", "ambient")
	w.pod("web", p.uid, p.ip.String())
	_, stop := w.start()
	z := w.proxy()
	w.waitAnnotation("web", "enabled")
	stop()
	z.stop()
	before := len(w.j.list())
	w.start()
	young := w.proxy()
	waitFor(t, "the new ztunnel to have the pod", func() bool { return young.has(p.uid) })
	waitFor(t, "capture of the new listeners", func() bool { return slices.Contains(w.j.list()[before:], "enroll") })
	if slices.Contains(w.j.list()[before:], "unenroll") {
		t.Error("capture was interrupted")
	}
}

// TestKeepBeforeThePodsAreKnown: ztunnel connects to an agent that cannot reach the API server yet; it must not
// be told that its pods are gone.
func TestKeepBeforeThePodsAreKnown(t *testing.T) {
	p := newProxies(slog.New(slog.DiscardHandler))
	p.keepAlive("a", "b")
	z, stop := serveProxies(t, p)
	defer stop()
	waitFor(t, "snapshot", z.ready)
	keeps, _ := z.told()
	if d := cmp.Diff([]string{"a", "b"}, keeps); d != "" {
		t.Error(d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := p.del(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if _, dels := z.told(); !slices.Equal(dels, []string{"a"}) {
		t.Errorf("deleted %v, want a", dels)
	}
}

// serveProxies runs a ZDS server alone with one proxy.
func serveProxies(t *testing.T, p *proxies) (*fakeProxy, func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "z.sock")
	l, err := zds.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		if err := p.run(ctx, l); err != nil {
			t.Error(err)
		}
	})
	z := &fakeProxy{t: t, j: &journal{}}
	z.connect(path)
	return z, func() { cancel(); done.Wait(); z.stop() }
}

// TestHostileZtunnelHarmsNobodyElse: one connection after another misbehaves; a good one goes on.
func TestHostileZtunnelHarmsNobodyElse(t *testing.T) {
	w := newWorld(t)
	p := newTestPod(t, w.dir, "10.244.1.14")
	w.namespace("shop", "ambient")
	w.start()
	z := w.proxy()
	waitFor(t, "snapshot", z.ready)
	for _, send := range [][]byte{
		{0xff, 0xff, 0xff},                       // no protobuf
		{8, 1, 0xa0, 6, 1},                       // listeners=true, then silence
		{},                                       // nothing
		append([]byte{8, 1}, make([]byte, 9)...), // field number zero
	} {
		c, err := net.Dial("unixpacket", w.zds)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if len(send) > 0 {
			if _, err := c.Write(send); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.pod("web", p.uid, p.ip.String())
	w.waitAnnotation("web", "enabled")
}

func TestNothingLeaks(t *testing.T) {
	w := newWorld(t)
	p := newTestPod(t, w.dir, "10.244.1.15")
	w.namespace("shop", "ambient")
	w.pod("web", p.uid, p.ip.String())
	cycle := func() {
		_, stop := w.start()
		z := &fakeProxy{t: t, j: w.j}
		z.connect(w.zds)
		w.waitAnnotation("web", "enabled")
		w.namespace("shop", "")
		w.waitAnnotation("web", "")
		w.namespace("shop", "ambient")
		w.waitAnnotation("web", "enabled")
		stop()
		z.stop()
	}
	cycle() // what a first run opens once and for all
	fds, goroutines := openFDs(t), runtime.NumGoroutine()
	for range 3 {
		cycle()
	}
	waitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines })
	if d := cmp.Diff(fds, openFDs(t)); d != "" {
		t.Errorf("file descriptors: %s", d)
	}
}

func socketInode(t *testing.T, f *os.File) string {
	t.Helper()
	var to string
	if err := linux.WithFD(f, func(fd int) (err error) {
		to, err = os.Readlink(filepath.Join("/proc/self/fd", strconv.Itoa(fd)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return to
}

// listener makes a second handle on a listening socket.
func listener(t *testing.T, f *os.File) *net.TCPListener {
	t.Helper()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	return l.(*net.TCPListener)
}

// serveListener answers every connection with "ok", as ztunnel would serve it.
func serveListener(t *testing.T, f *os.File) (stop func()) {
	l := listener(t, f)
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := c.Write([]byte("ok")); err != nil {
				t.Log(err)
			}
			c.Close()
		}
	})
	return func() { l.Close(); done.Wait() }
}

func localAddr(t *testing.T, f *os.File, ip netip.Addr) netip.AddrPort {
	t.Helper()
	l := listener(t, f)
	defer l.Close()
	return netip.AddrPortFrom(ip, l.Addr().(*net.TCPAddr).AddrPort().Port())
}

func (w *world) metrics() *Metrics { return NewMetrics(prometheus.NewRegistry()) }

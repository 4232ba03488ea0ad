package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/ports"
	zdspb "github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/internal/linux"
	"github.com/ambit-mesh/ambit/internal/zds"
)

// journal is the order in which things happened, across fakes.
type journal struct {
	mu sync.Mutex
	s  []string
}

func (j *journal) add(format string, a ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.s = append(j.s, fmt.Sprintf(format, a...))
}

func (j *journal) list() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.s)
}

// fakeCapture is a Redirector whose kernel is a map; its listeners are real. It outlives an agent, as the kernel does.
type fakeCapture struct {
	j *journal

	mu        sync.Mutex
	captured  map[string]redirect.Pod
	broken    map[string]error // by UID: what Check says until Enroll
	failOpen  error
	failEnrol error
	removed   bool
	checks    int
	nat       bool // captures by port, as nftables does
}

var _ redirect.Redirector = (*fakeCapture)(nil)

func newFakeCapture(j *journal) *fakeCapture {
	return &fakeCapture{j: j, captured: map[string]redirect.Pod{}, broken: map[string]error{}}
}

func (f *fakeCapture) Name() string { return "fake" }

func (f *fakeCapture) OriginalDestination() zdspb.OriginalDestination {
	if f.nat {
		return zdspb.OriginalDestination_NAT
	}
	return zdspb.OriginalDestination_SOCKNAME
}

func (f *fakeCapture) AppMark() uint32 { return ports.MarkApp }

func (f *fakeCapture) OpenListeners(p redirect.Pod) (redirect.Listeners, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.j.add("open")
	if f.failOpen != nil {
		return redirect.Listeners{}, f.failOpen
	}
	var l redirect.Listeners
	for _, to := range []**os.File{&l.Outbound, &l.InboundPlaintext, &l.InboundHBONE} {
		s, err := p.NetNS.Listen(linux.ListenOptions{Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), 0)})
		if err != nil {
			return redirect.Listeners{}, errors.Join(err, l.Close())
		}
		*to = s
	}
	return l, nil
}

func (f *fakeCapture) Enroll(_ context.Context, p redirect.Pod, l redirect.Listeners) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := errors.Join(p.Validate(), l.Validate(), f.failEnrol); err != nil {
		return err
	}
	if p.NetNS == nil || len(p.IPs) == 0 {
		return errors.New("no network namespace or address")
	}
	f.j.add("enroll")
	f.captured[p.UID] = p
	delete(f.broken, p.UID)
	return nil
}

func (f *fakeCapture) Unenroll(_ context.Context, p redirect.Pod) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.j.add("unenroll")
	delete(f.captured, p.UID)
	return nil
}

func (f *fakeCapture) Check(_ context.Context, p redirect.Pod) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.checks++
	if _, ok := f.captured[p.UID]; !ok {
		return errors.New("not captured")
	}
	return f.broken[p.UID]
}

func (f *fakeCapture) Enrolled(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.captured)), nil
}

func (f *fakeCapture) Remove(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removed = true
	return nil
}

func (f *fakeCapture) isRemoved() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.removed
}

func (f *fakeCapture) Degraded() error { return nil }
func (f *fakeCapture) Close() error    { return nil }

func (f *fakeCapture) ips(uid string) []netip.Addr {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.captured[uid].IPs
}

func (f *fakeCapture) has(uid string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.captured[uid]
	return ok
}

// fakeProxy is a scripted ztunnel on a real ZDS connection. It keeps the sockets that it is given, as ztunnel does.
type fakeProxy struct {
	t *testing.T
	j *journal
	// refuse decides about each pod; nil takes all.
	refuse func(uid string) error

	mu       sync.Mutex
	pods     map[string]zds.Sockets
	infos    map[string]*zdspb.WorkloadInfo
	snapshot bool
	adds     int
	keeps    []string
	dels     []string
	conn     *zds.Conn
	done     sync.WaitGroup
}

// connect greets the agent and gives back what it holds. It tries until there is an agent.
func (f *fakeProxy) connect(path string) {
	f.t.Helper()
	f.connectAs(path, true)
}

func (f *fakeProxy) connectAs(path string, listeners bool) {
	f.t.Helper()
	if f.pods == nil {
		f.pods, f.infos = map[string]zds.Sockets{}, map[string]*zdspb.WorkloadInfo{}
	}
	waitFor(f.t, "agent's ZDS socket", func() bool {
		c, err := zds.Dial(f.t.Context(), path)
		f.conn = c
		return err == nil
	})
	if err := f.conn.SendHello(&zdspb.ZdsHello{Version: zdspb.Version_V1, Listeners: listeners}); err != nil {
		f.t.Fatal(err)
	}
	if listeners {
		f.giveBack()
	}
	f.mu.Lock()
	f.snapshot, f.keeps, f.dels = false, nil, nil
	f.mu.Unlock()
	c := f.conn
	f.done.Go(func() {
		for {
			req, files, err := c.RecvRequest()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
					f.t.Errorf("ztunnel receives: %v", err)
				}
				return
			}
			if err := c.SendResponse(zds.AckMessage(f.handle(req, files)), nil); err != nil {
				return
			}
		}
	})
}

func (f *fakeProxy) giveBack() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for uid, s := range f.pods {
		l, files := s.Pack(zdspb.OriginalDestination_SOCKNAME, ports.MarkApp)
		if err := f.conn.SendResponse(&zdspb.WorkloadResponse{Payload: &zdspb.WorkloadResponse_Held{
			Held: &zdspb.HeldWorkload{Uid: uid, Listeners: l}}}, files); err != nil {
			f.t.Fatal(err)
		}
	}
	if err := f.conn.SendResponse(&zdspb.WorkloadResponse{Payload: &zdspb.WorkloadResponse_HeldEnd{HeldEnd: &zdspb.HeldEnd{}}}, nil); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fakeProxy) handle(req *zdspb.WorkloadRequest, files []*os.File) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch p := req.GetPayload().(type) {
	case *zdspb.WorkloadRequest_Add:
		f.adds++
		s, err := zds.Unpack(p.Add.GetListeners(), files)
		if err != nil {
			return err
		}
		if f.refuse != nil {
			if err := f.refuse(p.Add.GetUid()); err != nil {
				s.Close()
				f.j.add("nack")
				return err
			}
		}
		f.pods[p.Add.GetUid()].Close()
		f.pods[p.Add.GetUid()] = s
		f.infos[p.Add.GetUid()] = p.Add.GetWorkloadInfo()
		f.j.add("ack")
	case *zdspb.WorkloadRequest_Keep:
		if f.snapshot {
			f.t.Error("Keep after the snapshot")
		}
		f.keeps = append(f.keeps, p.Keep.GetUid())
	case *zdspb.WorkloadRequest_Del:
		if !f.snapshot {
			f.t.Error("Del before the snapshot")
		}
		f.dels = append(f.dels, p.Del.GetUid())
		f.pods[p.Del.GetUid()].Close()
		delete(f.pods, p.Del.GetUid())
		f.j.add("del")
	case *zdspb.WorkloadRequest_SnapshotSent:
		if f.snapshot {
			f.t.Error("second snapshot")
		}
		f.snapshot = true
	}
	return nil
}

func (f *fakeProxy) has(uid string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.pods[uid]
	return ok
}

func (f *fakeProxy) sockets(uid string) zds.Sockets {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pods[uid]
}

// told are the pods named by Keep and by Del on this connection.
func (f *fakeProxy) told() (keeps, dels []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	keeps, dels = slices.Clone(f.keeps), slices.Clone(f.dels)
	slices.Sort(keeps)
	slices.Sort(dels)
	return keeps, dels
}

func (f *fakeProxy) ready() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.snapshot
}

func (f *fakeProxy) setRefuse(r func(string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = r
}

// disconnect ends the connection and keeps the sockets.
func (f *fakeProxy) disconnect() {
	f.conn.Close()
	f.done.Wait()
}

// stop ends the proxy.
func (f *fakeProxy) stop() {
	f.disconnect()
	f.mu.Lock()
	defer f.mu.Unlock()
	for uid, s := range f.pods {
		s.Close()
		delete(f.pods, uid)
	}
}

// waitFor polls until cond holds; the test fails after 20 s.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline.C:
			t.Fatalf("waited in vain for: %s", what)
		case <-tick.C:
		}
	}
}

// never fails the test if cond holds within d.
func never(t *testing.T, what string, d time.Duration, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if cond() {
			t.Fatalf("happened: %s", what)
		}
		select {
		case <-deadline.C:
			return
		case <-tick.C:
		}
	}
}

// openFDs names this process's file descriptors by what they point at, without those that come and go by themselves.
func openFDs(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || strings.Contains(to, "anon_inode") || strings.HasPrefix(to, "/proc/") {
			continue
		}
		kind, _, _ := strings.Cut(to, ":")
		out = append(out, kind)
	}
	slices.Sort(out)
	return out
}

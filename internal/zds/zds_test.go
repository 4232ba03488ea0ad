package zds

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	zdspb "github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/internal/linux"
)

func add(uid string, l *zdspb.Listeners) *zdspb.WorkloadRequest {
	return &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{Add: &zdspb.AddWorkload{
		Uid: uid, WorkloadInfo: &zdspb.WorkloadInfo{Name: "a", Namespace: "ns", ServiceAccount: "sa"}, Listeners: l,
	}}}
}

// pair returns both ends of a connection.
func pair(t *testing.T) (agent, proxy *Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "z.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if proxy, err = Dial(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if agent, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { agent.Close(); proxy.Close() })
	for _, c := range []*Conn{agent, proxy} {
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	return agent, proxy
}

// files opens n files that differ.
func files(t *testing.T, n int) []*os.File {
	t.Helper()
	out := make([]*os.File, n)
	for i := range out {
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		out[i] = f
	}
	return out
}

func same(t *testing.T, a, b *os.File) bool {
	t.Helper()
	x, err := a.Stat()
	if err != nil {
		t.Fatal(err)
	}
	y, err := b.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return os.SameFile(x, y)
}

// openFDs counts this process's file descriptors.
func openFDs(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

func TestRoundTrip(t *testing.T) {
	agent, proxy := pair(t)
	hello := &zdspb.ZdsHello{Version: zdspb.Version_V1, Listeners: true}
	if err := proxy.SendHello(hello); err != nil {
		t.Fatal(err)
	}
	got, err := agent.RecvHello()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(hello, got, protocmp.Transform()); d != "" {
		t.Error(d)
	}

	f := files(t, 4)
	s := Sockets{NetNS: f[0], Outbound: f[1], InboundPlaintext: f[2], InboundHBONE: f[3]}
	l, send := s.Pack(zdspb.OriginalDestination_SOCKNAME, 0x53a)
	want := add("uid", l)
	if err := agent.SendRequest(want, send); err != nil {
		t.Fatal(err)
	}
	req, recv, err := proxy.RecvRequest()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, req, protocmp.Transform()); d != "" {
		t.Error(d)
	}
	r, err := Unpack(req.GetAdd().GetListeners(), recv)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if !same(t, r.NetNS, f[0]) || !same(t, r.Outbound, f[1]) || !same(t, r.InboundPlaintext, f[2]) || !same(t, r.InboundHBONE, f[3]) {
		t.Error("files arrived in another order")
	}

	held := &zdspb.WorkloadResponse{Payload: &zdspb.WorkloadResponse_Held{Held: &zdspb.HeldWorkload{Uid: "uid", Listeners: l}}}
	if err := proxy.SendResponse(held, send); err != nil {
		t.Fatal(err)
	}
	resp, back, err := agent.RecvResponse()
	if err != nil {
		t.Fatal(err)
	}
	CloseFiles(back)
	if d := cmp.Diff(held, resp, protocmp.Transform()); d != "" || len(back) != 4 {
		t.Error(d, len(back))
	}
	proxy.Close()
	if _, _, err := agent.RecvResponse(); !errors.Is(err, io.EOF) {
		t.Errorf("after close: %v, want EOF", err)
	}
}

func TestAckIsCutToFit(t *testing.T) {
	agent, proxy := pair(t)
	if err := proxy.SendResponse(AckMessage(errors.New(strings.Repeat("ä", MaxMessage))), nil); err != nil {
		t.Fatal(err)
	}
	m, _, err := agent.RecvResponse()
	if err != nil {
		t.Fatal(err)
	}
	if n := len(m.GetAck().GetError()); n != maxAckError {
		t.Errorf("ack of %d bytes, want %d", n, maxAckError)
	}
}

// TestHostilePacketsAreRefusedOneByOne sends every kind of wrong packet: each is ErrInvalid, leaves no file
// descriptor behind, and the packet after it is understood.
func TestHostilePacketsAreRefusedOneByOne(t *testing.T) {
	listeners := func(r ...zdspb.ListenerRole) *zdspb.Listeners { return &zdspb.Listeners{Roles: r} }
	out := zdspb.ListenerRole_OUTBOUND
	enc := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	keep := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Keep{Keep: &zdspb.KeepWorkload{Uid: "u"}}}
	del := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Del{Del: &zdspb.DelWorkload{Uid: "u"}}}
	noUID := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Del{Del: &zdspb.DelWorkload{}}}
	snap := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_SnapshotSent{SnapshotSent: &zdspb.SnapshotSent{}}}
	bare := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{Add: &zdspb.AddWorkload{Uid: "u"}}}
	cases := []struct {
		name  string
		bytes []byte
		files int
	}{
		{"garbage", []byte("\xff\xff\xff\xff"), 0},
		{"garbage with files", []byte("\xff\xff\xff\xff"), 3},
		{"add without netns", enc(add("u", nil)), 0},
		{"add without info", enc(bare), 1},
		{"add without uid", enc(add("", nil)), 1},
		{"V1 add with two files", enc(add("u", nil)), 2},
		{"fewer files than roles", enc(add("u", listeners(out))), 1},
		{"role twice", enc(add("u", listeners(out, out))), 3},
		{"unknown role", enc(add("u", listeners(77))), 2},
		{"keep with file", enc(keep), 1},
		{"del with file", enc(del), 1},
		{"del without uid", enc(noUID), 0},
		{"snapshot with file", enc(snap), 1},
		{"too many files", enc(add("u", nil)), MaxFiles + 1},
		{"far too many files", enc(add("u", nil)), 200},
		{"too long", enc(add(strings.Repeat("u", MaxMessage), nil)), 1},
		{"unknown kind", []byte{0x7a, 0x00}, 0},
	}
	agent, proxy := pair(t)
	pool := files(t, 200)
	before := openFDs(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if err := linux.SendMsg(agent.c, c.bytes, pool[:c.files]); err != nil {
				t.Fatal(err)
			}
			m, f, err := proxy.RecvRequest()
			if !IsInvalid(err) || m != nil || f != nil {
				t.Fatalf("got %v, %d files, %v; want ErrInvalid", m, len(f), err)
			}
			if n := openFDs(t); n != before {
				t.Fatalf("%d file descriptors open, %d before", n, before)
			}
			if err := agent.SendRequest(del, nil); err != nil {
				t.Fatal(err)
			}
			if m, _, err := proxy.RecvRequest(); err != nil || m.GetDel().GetUid() != "u" {
				t.Fatalf("the next packet: %v, %v", m, err)
			}
		})
	}
}

func TestHelloWithFilesIsRefused(t *testing.T) {
	agent, proxy := pair(t)
	f := files(t, 1)
	before := openFDs(t)
	if err := linux.SendMsg(proxy.c, []byte{8, 1}, f); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.RecvHello(); !IsInvalid(err) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
	if n := openFDs(t); n != before {
		t.Errorf("%d file descriptors open, %d before", n, before)
	}
}

func TestResponsesAreChecked(t *testing.T) {
	heldOf := func(uid string) *zdspb.WorkloadResponse {
		return &zdspb.WorkloadResponse{Payload: &zdspb.WorkloadResponse_Held{Held: &zdspb.HeldWorkload{Uid: uid}}}
	}
	agent, proxy := pair(t)
	f := files(t, 2)
	before := openFDs(t)
	for _, c := range []struct {
		name  string
		m     *zdspb.WorkloadResponse
		files int
		ok    bool
	}{
		{"ack", AckMessage(nil), 0, true},
		{"ack with file", AckMessage(nil), 1, false},
		{"held without netns", heldOf("u"), 0, false},
		{"held without uid", heldOf(""), 1, false},
		{"held with netns alone", heldOf("u"), 1, true},
		{"held end", &zdspb.WorkloadResponse{Payload: &zdspb.WorkloadResponse_HeldEnd{HeldEnd: &zdspb.HeldEnd{}}}, 0, true},
	} {
		if err := proxy.SendResponse(c.m, f[:c.files]); err != nil {
			t.Fatal(err)
		}
		_, got, err := agent.RecvResponse()
		CloseFiles(got)
		if (err == nil) != c.ok || (err != nil && !IsInvalid(err)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if n := openFDs(t); n != before {
		t.Errorf("%d file descriptors open, %d before", n, before)
	}
}

func TestListenReplacesALeftSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "z.sock")
	old, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	now, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer now.Close()
	// The old agent ends after the new one took the path over.
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if m := fi.Mode().Perm(); m != 0o600 {
		t.Errorf("socket mode %o, want 600", m)
	}
	if _, err := Dial(t.Context(), path+"x"); err == nil || !strings.Contains(err.Error(), path+"x") {
		t.Errorf("dial of nothing: %v", err)
	}
	now.Close()
	if _, err := now.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
}

// FuzzRequest decodes any bytes with any number of files: never a panic, and what is accepted can be unpacked.
func FuzzRequest(f *testing.F) {
	b, _ := proto.Marshal(add("u", &zdspb.Listeners{Roles: []zdspb.ListenerRole{0, 1, 2}}))
	f.Add(b, 4)
	f.Add([]byte("\xff"), 0)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		m := &zdspb.WorkloadRequest{}
		if n < 0 || n > MaxFiles || proto.Unmarshal(b, m) != nil || checkRequest(m, n) != nil {
			return
		}
		if a := m.GetAdd(); a != nil {
			if n == 0 || a.GetUid() == "" {
				t.Fatalf("accepted %v with %d files", m, n)
			}
			if _, err := Unpack(a.GetListeners(), make([]*os.File, n)); err != nil {
				t.Fatalf("accepted but cannot be unpacked: %v", err)
			}
		} else if n != 0 {
			t.Fatalf("accepted %v with %d files", m, n)
		}
	})
}

// FuzzResponse is FuzzRequest for what a proxy sends.
func FuzzResponse(f *testing.F) {
	b, _ := proto.Marshal(AckMessage(errors.New("no")))
	f.Add(b, 0)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		m := &zdspb.WorkloadResponse{}
		if n < 0 || n > MaxFiles || proto.Unmarshal(b, m) != nil || checkResponse(m, n) != nil {
			return
		}
		if h := m.GetHeld(); h != nil {
			if _, err := Unpack(h.GetListeners(), make([]*os.File, n)); err != nil {
				t.Fatalf("accepted but cannot be unpacked: %v", err)
			}
		} else if n != 0 {
			t.Fatalf("accepted %v with %d files", m, n)
		}
	})
}

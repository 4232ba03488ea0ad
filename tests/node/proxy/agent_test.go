package proxy

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"

	"github.com/ambit-mesh/ambit/api/ports"
	zdspb "github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/internal/linux"
	"github.com/ambit-mesh/ambit/internal/zds"
)

// agent is a node agent by script: it captures pods, and tells every proxy that connects.
type agent struct {
	n        *node
	redirect redirect.Redirector
	listener *zds.Listener

	mu    sync.Mutex
	pods  map[string]*pod
	conns map[*zds.Conn]*sync.Mutex
	held  map[string]int // pods that a proxy gave back
}

func newAgent(n *node) *agent {
	a := &agent{n: n, redirect: newRedirector(n), pods: map[string]*pod{}, conns: map[*zds.Conn]*sync.Mutex{}, held: map[string]int{}}
	a.listen()
	n.m.t.Cleanup(a.close)
	return a
}

func (a *agent) socket() string { return filepath.Join(a.n.dir, "zds.sock") }

func (a *agent) listen() {
	l, err := zds.Listen(a.socket())
	if err != nil {
		a.n.m.t.Fatal(err)
	}
	a.listener = l
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go a.serve(c)
		}
	}()
}

// serve sends the snapshot to a proxy and keeps the connection for later changes.
func (a *agent) serve(c *zds.Conn) {
	h, err := c.RecvHello()
	if err != nil {
		c.Close()
		return
	}
	if !a.n.m.v1 && h.GetListeners() {
		if err := a.takeBack(c); err != nil {
			c.Close()
			return
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.pods {
		if err := a.sendAdd(c, p); err != nil {
			a.n.m.t.Errorf("add %s: %v", p.uid, err)
		}
	}
	if err := ask(c, &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_SnapshotSent{SnapshotSent: &zdspb.SnapshotSent{}}}, nil); err != nil {
		c.Close()
		return
	}
	a.conns[c] = &sync.Mutex{}
}

// takeBack takes the listeners that a proxy holds, as a restarted agent does.
func (a *agent) takeBack(c *zds.Conn) error {
	for {
		r, files, err := c.RecvResponse()
		if err != nil || r.GetHeldEnd() != nil {
			return err
		}
		s, err := zds.Unpack(r.GetHeld().GetListeners(), files)
		if err != nil {
			return err
		}
		a.mu.Lock()
		a.held[r.GetHeld().GetUid()]++
		p := a.pods[r.GetHeld().GetUid()]
		if p == nil || p.lent.Outbound != nil {
			s.Close()
		} else {
			s.NetNS.Close()
			p.lent = redirect.Listeners{Outbound: s.Outbound, InboundPlaintext: s.InboundPlaintext, InboundHBONE: s.InboundHBONE}
		}
		a.mu.Unlock()
	}
}

func (a *agent) sendAdd(c *zds.Conn, p *pod) error {
	ns, err := p.NetNS.File()
	if err != nil {
		return err
	}
	defer ns.Close()
	s := zds.Sockets{NetNS: ns}
	if !a.n.m.v1 {
		s.Outbound, s.InboundPlaintext, s.InboundHBONE = p.lent.Outbound, p.lent.InboundPlaintext, p.lent.InboundHBONE
	}
	l, files := s.Pack(a.redirect.OriginalDestination(), a.redirect.AppMark())
	return ask(c, &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{Add: &zdspb.AddWorkload{
		Uid: p.uid, WorkloadInfo: &zdspb.WorkloadInfo{Name: p.Name, Namespace: "default", ServiceAccount: p.sa}, Listeners: l,
	}}}, files)
}

func ask(c *zds.Conn, m *zdspb.WorkloadRequest, files []*os.File) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if err := c.SendRequest(m, files); err != nil {
		return err
	}
	r, _, err := c.RecvResponse()
	if err != nil {
		return err
	}
	if e := r.GetAck().GetError(); e != "" {
		return fmt.Errorf("refused: %s", e)
	}
	return nil
}

// enrol captures a pod and tells the proxies.
func (a *agent) enrol(p *pod) {
	t := a.n.m.t
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	var err error
	if p.lent, err = a.redirect.OpenListeners(p.redirect); err != nil {
		t.Fatal(err)
	}
	a.pods[p.uid] = p
	for c := range a.conns {
		if err := a.sendAdd(c, p); err != nil {
			t.Logf("add to a proxy: %v", err)
			delete(a.conns, c)
		}
	}
	if err := a.redirect.Enroll(context.Background(), p.redirect, p.lent); err != nil {
		t.Fatal(err)
	}
	if a.n.m.v1 {
		if err := markAsIstio(p.NetNS); err != nil {
			t.Fatal(err)
		}
		p.lent.Close()
		p.lent = redirect.Listeners{}
	}
}

// unenrol stops capture of a pod and tells the proxies.
func (a *agent) unenrol(p *pod) {
	t := a.n.m.t
	t.Helper()
	if err := a.redirect.Unenroll(context.Background(), p.redirect); err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.pods, p.uid)
	for c := range a.conns {
		if err := ask(c, &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Del{Del: &zdspb.DelWorkload{Uid: p.uid}}}, nil); err != nil {
			t.Logf("del to a proxy: %v", err)
			delete(a.conns, c)
		}
	}
	if err := p.lent.Close(); err != nil {
		t.Errorf("close listeners: %v", err)
	}
	p.lent = redirect.Listeners{}
}

// restart ends the agent with its sockets, and starts the next one, which knows the pods but holds nothing.
func (a *agent) restart() {
	a.close()
	a.mu.Lock()
	for _, p := range a.pods {
		p.lent.Close()
		p.lent = redirect.Listeners{}
	}
	a.conns = map[*zds.Conn]*sync.Mutex{}
	a.mu.Unlock()
	a.listen()
}

func (a *agent) close() {
	a.listener.Close()
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := range a.conns {
		c.Close()
	}
}

// markAsIstio adds the rule by which Istio's agent leads the app's answers back
// to a proxy that marks its connections to the app as all others:
//
//	chain mark { type filter hook prerouting priority -150; meta mark 0x539 ct mark set 0x111 }
//
// The rest of the redirection is that of package nft.
func markAsIstio(ns *linux.NetNS) error {
	return ns.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		t := c.AddTable(&nftables.Table{Name: "istio", Family: nftables.TableFamilyINet})
		ch := c.AddChain(&nftables.Chain{Name: "mark", Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle})
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(ports.MarkProxy)},
			&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(ports.MarkCapture)},
			&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
		}})
		return c.Flush()
	})
}

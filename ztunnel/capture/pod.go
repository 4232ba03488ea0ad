package capture

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/ambit-mesh/ambit/api/ports"
	zdspb "github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/internal/linux"
	"github.com/ambit-mesh/ambit/internal/zds"
	"github.com/ambit-mesh/ambit/ztunnel/proxy"
)

// request is what the agent asked for: a pod with its sockets. It owns them.
type request struct {
	uid       string
	cfg       proxy.PodConfig // without NetNS
	netns     *linux.NetNS
	inode     uint64          // of the netns
	lent      proxy.Listeners // the agent's, or none
	listeners [3]uint64       // inodes of lent, zero if none
	err       error           // why it is pending
}

func (r *request) isLent() bool { return r.lent.Outbound != nil }

func (r *request) close() {
	closeListeners(r.lent)
	if r.netns != nil {
		// A namespace handle has nothing to flush: the result says nothing.
		_ = r.netns.Close()
	}
}

func (r *request) destination() zdspb.OriginalDestination {
	if r.cfg.OriginalDst == proxy.FromSocket {
		return zdspb.OriginalDestination_SOCKNAME
	}
	return zdspb.OriginalDestination_NAT
}

func (r *request) podInfo(state string) PodInfo {
	return PodInfo{
		UID: r.uid, Name: r.cfg.Name, Namespace: r.cfg.Namespace, ServiceAccount: r.cfg.ServiceAccount,
		NetNS: r.inode, State: state,
	}
}

// files duplicates the sockets of a pod that is being served.
func (e *entry) files() (zds.Sockets, error) {
	var s zds.Sockets
	var err error
	if s.NetNS, err = e.ns.File(); err != nil {
		return s, err
	}
	for _, p := range []struct {
		to   **os.File
		from *net.TCPListener
	}{
		{&s.Outbound, e.open.Outbound}, {&s.InboundPlaintext, e.open.InboundPlaintext}, {&s.InboundHBONE, e.open.InboundHBONE},
	} {
		if *p.to, err = p.from.File(); err != nil {
			s.Close()
			return zds.Sockets{}, fmt.Errorf("duplicate listener: %w", err)
		}
	}
	return s, nil
}

// addLocked serves a pod. The files are closed or handed on in every case.
func (m *Manager) addLocked(a *zdspb.AddWorkload, files []*os.File) error {
	s, err := zds.Unpack(a.GetListeners(), files)
	if err != nil {
		return err
	}
	if m.draining {
		s.Close()
		return errDraining
	}
	r, err := newRequest(a, s)
	if err != nil {
		return fmt.Errorf("add pod %q: %w", a.GetUid(), err)
	}
	if !m.inSync {
		m.snapshot[r.uid] = true
	}
	if e, ok := m.pods[r.uid]; ok {
		if e.inode == r.inode && e.listeners == r.listeners {
			r.close()
			return nil
		}
		m.cfg.Log.Info("pod comes with other sockets, replacing its proxy", "uid", r.uid, "netns", r.inode)
		m.retireLocked(r.uid, 0)
	}
	if old, ok := m.pending[r.uid]; ok {
		old.close()
		delete(m.pending, r.uid)
	}
	return m.serveLocked(r)
}

// newRequest takes over the files.
func newRequest(a *zdspb.AddWorkload, s zds.Sockets) (*request, error) {
	defer func() { s.Close() }() // what was taken over is nil by then
	info := a.GetWorkloadInfo()
	r := &request{uid: a.GetUid(), cfg: proxy.PodConfig{
		UID: a.GetUid(), Name: info.GetName(), Namespace: info.GetNamespace(), ServiceAccount: info.GetServiceAccount(),
	}}
	lent := s.HasListeners()
	if n := len(a.GetListeners().GetRoles()); n > 0 && !lent {
		return nil, fmt.Errorf("%w: %d listeners, want all or none", zds.ErrInvalid, n)
	}
	f := s.NetNS
	s.NetNS = nil
	var err error
	if r.netns, err = linux.NetNSFromFile(f); err != nil {
		return nil, err
	}
	r.inode = r.netns.Inode()
	if !lent {
		return r, nil
	}
	r.cfg.AppMark = int(a.GetListeners().GetAppMark())
	if a.GetListeners().GetOriginalDestination() == zdspb.OriginalDestination_SOCKNAME {
		r.cfg.OriginalDst = proxy.FromSocket
	}
	for i, p := range []struct {
		from **os.File
		to   **net.TCPListener
	}{
		{&s.Outbound, &r.lent.Outbound}, {&s.InboundPlaintext, &r.lent.InboundPlaintext}, {&s.InboundHBONE, &r.lent.InboundHBONE},
	} {
		if r.listeners[i], err = inode(*p.from); err == nil {
			f := *p.from
			*p.from = nil
			*p.to, err = linux.ListenerFromFile(f)
		}
		if err != nil {
			r.close()
			return nil, err
		}
	}
	return r, nil
}

// inode tells one open socket from another while both are open.
func inode(f *os.File) (uint64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("inspect file: %w", err)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("inspect file %q: no inode", f.Name())
	}
	return sys.Ino, nil
}

// serveLocked starts to serve r, or leaves it pending.
func (m *Manager) serveLocked(r *request) error {
	e, err := m.start(r)
	if err != nil {
		r.err = err
		m.pending[r.uid] = r
		return fmt.Errorf("serve pod %q: %w", r.uid, err)
	}
	r.close()
	delete(m.pending, r.uid)
	m.pods[r.uid] = e
	m.cfg.Log.Info("serving pod", "uid", r.uid, "name", r.cfg.Name, "namespace", r.cfg.Namespace,
		"netns", r.inode, "lent", e.lent)
	return nil
}

// start works on duplicates, so that r can be tried again.
func (m *Manager) start(r *request) (*entry, error) {
	e := &entry{request: *r, lent: r.isLent()}
	e.request.lent, e.request.netns = proxy.Listeners{}, nil
	ns, err := r.netns.Dup()
	if err != nil {
		return nil, err
	}
	open, err := r.listen(ns)
	if err != nil {
		_ = ns.Close() // the error that counts is err
		return nil, err
	}
	e.ns, e.open = ns, open
	cfg := r.cfg
	cfg.NetNS = ns
	if e.served, err = m.cfg.Serve(cfg, open); err != nil {
		return nil, err
	}
	return e, nil
}

// listen duplicates the lent listeners, or opens Istio's where there are none.
func (r *request) listen(ns *linux.NetNS) (proxy.Listeners, error) {
	var l proxy.Listeners
	for _, s := range []struct {
		lent *net.TCPListener
		port uint16
		to   **net.TCPListener
	}{
		{r.lent.Outbound, ports.ZtunnelOutbound, &l.Outbound},
		{r.lent.InboundPlaintext, ports.ZtunnelInboundPlaintext, &l.InboundPlaintext},
		{r.lent.InboundHBONE, ports.HBONE, &l.InboundHBONE},
	} {
		f, err := dupOrListen(s.lent, ns, s.port)
		if err == nil {
			*s.to, err = linux.ListenerFromFile(f)
		}
		if err != nil {
			closeListeners(l)
			return proxy.Listeners{}, err
		}
	}
	return l, nil
}

func dupOrListen(lent *net.TCPListener, ns *linux.NetNS, port uint16) (*os.File, error) {
	if lent != nil {
		return lent.File()
	}
	return ns.Listen(linux.ListenOptions{
		Addr: netip.AddrPortFrom(netip.IPv6Unspecified(), port), DualStack: true,
		// The next proxy listens beside us before we end; the mark keeps our answers from being captured.
		ReusePort: true, Transparent: true, Mark: ports.MarkProxy,
	})
}

func closeListeners(l proxy.Listeners) {
	for _, t := range []*net.TCPListener{l.Outbound, l.InboundPlaintext, l.InboundHBONE} {
		if t != nil {
			t.Close()
		}
	}
}

// Package nft captures pods' traffic with nftables in the pod's netns, for
// kernels that lack what package ebpf needs. It speaks netlink; no nft or
// iptables program is run.
//
// New connections, and only those (packets with SYN alone), are redirected to
// the proxy's well-known ports. Packets of connections that were open before
// match no rule. A connection mark leads the app's answers to the proxy's
// connections, which carry the client's address, back to the proxy.
//
// Un-enrolling empties the chains that redirect and leaves the rest, because
// removing the table would take the address translation of live connections
// with it.
//
// What is enrolled is also noted in Config.StateDir, for the next agent: there
// is no way to ask the kernel for the namespaces that have a table.
package nft

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/google/nftables"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect/kubelet"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect/podnet"
	"github.com/ambit-mesh/ambit/internal/linux"
)

// Redirector captures with nftables.
type Redirector struct {
	cfg    redirect.Config
	host   uint64          // inode of the node's own netns, never captured
	probes *kubelet.Probes // nil where BPF isn't available at all
	reason error           // why probes is nil

	mu sync.Mutex // one change at a time
}

var (
	_ redirect.Redirector = (*Redirector)(nil)
	_ redirect.Remover    = (*Redirector)(nil)
)

// New tries the rules in an empty netns. prepareBPF makes ready what the
// kubelet's probes need; where it fails they are let past by the node's
// addresses.
func New(cfg redirect.Config, prepareBPF func() error) (*Redirector, error) {
	r := &Redirector{cfg: cfg}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	ns, err := linux.NewNetNS()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if err := install(ns, ruleset(nil)); err != nil {
		return nil, fmt.Errorf("try capture in an empty netns: %w", err)
	}
	own := cfg.HostNetNS
	if own == nil {
		if own, err = linux.CurrentNetNS(); err != nil {
			return nil, err
		}
		defer own.Close()
	}
	r.host = own.Inode()
	if r.reason = prepareBPF(); r.reason == nil {
		r.probes, r.reason = kubelet.New(cfg)
	}
	if r.reason != nil {
		cfg.Log.Warn("kubelet can't be told from other processes of this node without BPF: connections from ALL of the node's own addresses bypass the mesh",
			"reason", r.reason)
	}
	return r, nil
}

// Name implements redirect.Redirector.
func (r *Redirector) Name() string { return redirect.ModeNFT }

// OriginalDestination implements redirect.Redirector.
func (r *Redirector) OriginalDestination() zds.OriginalDestination {
	return zds.OriginalDestination_NAT
}

// AppMark implements redirect.Redirector.
func (r *Redirector) AppMark() uint32 { return ports.MarkApp }

// Degraded implements redirect.Redirector.
func (r *Redirector) Degraded() error {
	if r.probes == nil {
		return r.reason
	}
	return r.probes.Degraded()
}

// Remove implements redirect.Remover. The rules of a pod go with its netns;
// Unenroll empties them before, where there is one.
func (r *Redirector) Remove(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	if r.probes != nil {
		errs = append(errs, r.probes.Remove())
	}
	if err := errors.Join(append(errs, os.RemoveAll(r.cfg.StateDir))...); err != nil {
		return fmt.Errorf("remove capture from the node: %w", err)
	}
	return nil
}

// Captured tells whether an earlier agent left pods captured this way.
func Captured(cfg redirect.Config) bool {
	pods, err := os.ReadDir(cfg.StateDir)
	return err == nil && len(pods) > 0
}

// Close implements redirect.Redirector.
func (r *Redirector) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.probes == nil {
		return nil
	}
	return r.probes.Close()
}

// OpenListeners implements redirect.Redirector. The ports are fixed: redirection
// is to a port.
func (r *Redirector) OpenListeners(pod redirect.Pod) (ls redirect.Listeners, err error) {
	for port, f := range map[uint16]**os.File{
		ports.ZtunnelOutbound:         &ls.Outbound,
		ports.ZtunnelInboundPlaintext: &ls.InboundPlaintext,
		ports.HBONE:                   &ls.InboundHBONE,
	} {
		*f, err = pod.NetNS.Listen(linux.ListenOptions{
			Addr:      netip.AddrPortFrom(netip.IPv6Unspecified(), port),
			DualStack: true,
			// A pod that is enrolled again while its former listeners are being closed.
			ReusePort: true,
		})
		if err != nil {
			ls.Close()
			return redirect.Listeners{}, fmt.Errorf("open listeners of pod %q: %w", pod.UID, err)
		}
	}
	return ls, nil
}

// sources returns what is let past: the kubelet's probes.
func (r *Redirector) sources() ([]netip.Addr, error) {
	if r.probes != nil {
		r.probes.Ensure()
		return r.probes.Sources()
	}
	host, err := podnet.Read(r.cfg.HostNetNS)
	if err != nil {
		return nil, fmt.Errorf("read the node's addresses: %w", err)
	}
	return host.Addrs, nil
}

// setup is what a pod's netns needs beside the rules. MarkApp is in it too: a connection that is bound to lo finds no
// other route to the pod's own address.
func setup(t *podnet.Target) podnet.Setup {
	return podnet.Setup{Sources: t.Sources(), Marks: []uint32{ports.MarkCapture, ports.MarkApp}}
}

// Enroll implements redirect.Redirector.
func (r *Redirector) Enroll(_ context.Context, pod redirect.Pod, ls redirect.Listeners) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.enroll(pod, ls); err != nil {
		return fmt.Errorf("enroll pod %q: %w", pod.UID, err)
	}
	return nil
}

func (r *Redirector) enroll(pod redirect.Pod, ls redirect.Listeners) error {
	if err := ls.Validate(); err != nil {
		return err
	}
	t, err := podnet.Inspect(pod, r.host)
	if err != nil {
		return err
	}
	from, err := r.sources()
	if err != nil {
		return err
	}
	if err := r.note(pod.UID, t.Cookie); err != nil {
		return err
	}
	if err := setup(t).Apply(pod.NetNS); err != nil {
		return err
	}
	if r.probes != nil {
		if err := r.probes.SetPod(t.Cookie, t.Unique); err != nil {
			return err
		}
	}
	return install(pod.NetNS, ruleset(from))
}

// Unenroll implements redirect.Redirector.
func (r *Redirector) Unenroll(_ context.Context, pod redirect.Pod) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.unenroll(pod); err != nil {
		return fmt.Errorf("unenroll pod %q: %w", pod.UID, err)
	}
	return nil
}

func (r *Redirector) unenroll(pod redirect.Pod) error {
	if err := pod.Validate(); err != nil {
		return err
	}
	if pod.NetNS != nil && pod.NetNS.Inode() != r.host {
		if err := uninstall(pod.NetNS); err != nil {
			return err
		}
	}
	if cookie, err := r.noted(pod.UID); err == nil && r.probes != nil {
		if err := r.probes.SetPod(cookie, nil); err != nil {
			return err
		}
	}
	if err := os.Remove(r.file(pod.UID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Check implements redirect.Redirector.
func (r *Redirector) Check(_ context.Context, pod redirect.Pod) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, err := podnet.Inspect(pod, r.host)
	if err != nil {
		return fmt.Errorf("check pod %q: %w", pod.UID, err)
	}
	from, err := r.sources()
	if err != nil {
		return fmt.Errorf("check pod %q: %w", pod.UID, err)
	}
	missing := []error{setup(t).Check(pod.NetNS), check(pod.NetNS, ruleset(from)), checkListeners(pod.NetNS)}
	if noted, err := r.noted(pod.UID); err != nil || noted != t.Cookie {
		missing = append(missing, errors.New("note of the pod in the state directory"))
	}
	if r.probes != nil {
		missing = append(missing, r.probes.CheckPod(t.Cookie, t.Unique))
	}
	if err := errors.Join(missing...); err != nil {
		return fmt.Errorf("capture of pod %q is incomplete: %w", pod.UID, err)
	}
	return nil
}

// Enrolled implements redirect.Redirector.
func (r *Redirector) Enrolled(context.Context) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	entries, err := os.ReadDir(r.cfg.StateDir)
	if err != nil {
		return nil, fmt.Errorf("list captured pods: %w", err)
	}
	var uids []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), partial) {
			uids = append(uids, e.Name())
		}
	}
	return uids, nil
}

// partial ends the names of files that are being written; a UID has no dot.
const partial = ".new"

func (r *Redirector) file(uid string) string { return filepath.Join(r.cfg.StateDir, uid) }

func (r *Redirector) note(uid string, cookie uint64) error {
	tmp := r.file(uid) + partial
	if err := os.WriteFile(tmp, []byte(strconv.FormatUint(cookie, 10)), 0o600); err != nil {
		return fmt.Errorf("note pod: %w", err)
	}
	if err := os.Rename(tmp, r.file(uid)); err != nil {
		return fmt.Errorf("note pod: %w", err)
	}
	return nil
}

func (r *Redirector) noted(uid string) (cookie uint64, err error) {
	b, err := os.ReadFile(r.file(uid))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(string(b), 10, 64)
}

// open returns a connection that belongs to ns. The caller closes it.
func open(ns *linux.NetNS) (c *nftables.Conn, err error) {
	err = ns.Do(func() (err error) {
		c, err = nftables.New(nftables.AsLasting())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	return c, nil
}

// Package ebpf captures pods' traffic with BPF alone: no netfilter and no
// connection tracking in the pod. Inbound connections are given to the proxy's
// listeners by a program on socket lookup in the pod's netns. Outbound ones are
// marked by a program on connect at the node's cgroup root, routed to loopback
// by policy routing, and given to the outbound listener by the same lookup. A
// guard on the pod's interfaces drops what is marked and would leave.
//
// All state is in the kernel, pinned below Config.BPFDir:
//
//	node/connect4, connect6       links at the cgroup root
//	node/enrolled                 netns cookies of enrolled pods
//	node/pod_ips                  addresses of enrolled pods (package kubelet)
//	node/probe_sources            sources that are left alone
//	node/kubelet{4,6}-<cgroup>    links at the kubelet's cgroups
//	pods/<uid>/steer              link of the lookup program
//	pods/<uid>/listeners          the pod's sockets
//	pods/<uid>/pod_state          netns cookie, mode, own addresses
//	pods/<uid>/guard-<ifindex>    links of the guard
//
// It therefore survives the agent, and every call finds out anew what there is.
package ebpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect/kubelet"
	"github.com/ambit-mesh/ambit/internal/linux"
)

// Redirector captures with BPF.
type Redirector struct {
	cfg    redirect.Config
	node   string // directory of the node's pinned objects
	pods   string // directory of the pods' directories
	host   uint64 // inode of the node's own netns, never captured
	probes *kubelet.Probes

	mu       sync.Mutex // one change at a time; each takes about a millisecond
	objects  bpf.ConnectObjects
	guard    *ebpf.Program
	sources  *ebpf.Map
	draining map[string]bool // pods whose listeners may still serve
}

var (
	_ redirect.Redirector = (*Redirector)(nil)
	_ redirect.Remover    = (*Redirector)(nil)
)

// New loads and attaches what the node needs, or adopts what an earlier agent
// pinned. An error means that this kernel or node can't capture this way; then
// nothing is attached that was not before.
func New(cfg redirect.Config) (*Redirector, error) {
	r := &Redirector{
		cfg:      cfg,
		node:     filepath.Join(cfg.BPFDir, "node"),
		pods:     filepath.Join(cfg.BPFDir, "pods"),
		draining: map[string]bool{},
	}
	if err := r.prepare(); err != nil {
		return nil, err
	}
	if err := r.open(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// prepare checks the node before anything is loaded.
func (r *Redirector) prepare() error {
	if ok, err := linux.IsCgroup2(r.cfg.CgroupRoot); err != nil || !ok {
		return fmt.Errorf("use cgroup root %q: not in a cgroup2 filesystem: %w", r.cfg.CgroupRoot, errOr(err, fs.ErrInvalid))
	}
	if err := MakeBPFDir(r.node, r.pods); err != nil {
		return err
	}
	// Kernels before 5.11 count BPF memory against this limit.
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("raise limit of locked memory: %w", err)
	}
	ino, err := inode(r.cfg.HostNetNS)
	if err != nil {
		return err
	}
	r.host = ino
	return nil
}

// MakeBPFDir makes directories in a BPF filesystem.
func MakeBPFDir(dirs ...string) error {
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make BPF directory: %w", err)
		}
		if ok, err := linux.IsBPFFS(dir); err != nil {
			return err
		} else if !ok {
			os.Remove(dir)
			return fmt.Errorf("use BPF directory %q: no BPF filesystem is mounted there; mount one on the node with \"mount -t bpf bpf /sys/fs/bpf\" "+
				"and give the agent's container the host path /sys/fs/bpf", dir)
		}
	}
	return nil
}

func (r *Redirector) open() error {
	guard := bpf.GuardPrograms{}
	if err := bpf.LoadGuardObjects(&guard, nil); err != nil {
		return fmt.Errorf("load guard: %w", err)
	}
	r.guard = guard.Guard
	steer, err := bpf.LoadSteer()
	if err != nil {
		return err
	}
	spec := steer.Maps[bpf.SteerMapProbeSources]
	spec.Pinning = ebpf.PinByName
	r.sources, err = ebpf.NewMapWithOptions(spec, ebpf.MapOptions{PinPath: r.node})
	if err != nil {
		return fmt.Errorf("open map of probe sources in %q: %w", r.node, err)
	}
	if err := r.try(); err != nil {
		return fmt.Errorf("try capture in an empty netns: %w", err)
	}
	if r.probes, err = kubelet.New(r.cfg); err != nil {
		return err
	}
	if err := r.syncSources(); err != nil {
		return err
	}
	if err := r.openConnect(); err != nil {
		return err
	}
	return r.findDraining()
}

// openConnect attaches at the cgroup root last: everything else can be tried
// without effect on the node.
func (r *Redirector) openConnect() error {
	spec, err := bpf.LoadConnect()
	if err != nil {
		return err
	}
	spec.Maps[bpf.ConnectMapEnrolled].Pinning = ebpf.PinByName
	err = spec.LoadAndAssign(&r.objects, &ebpf.CollectionOptions{
		Maps:            ebpf.MapOptions{PinPath: r.node},
		MapReplacements: map[string]*ebpf.Map{bpf.ConnectMapPodIps: r.probes.PodIPs()},
	})
	if err != nil {
		return fmt.Errorf("load connect programs: %w", err)
	}
	return r.attachConnect()
}

// connectHooks are the links at the cgroup root by the name of their pin.
func (r *Redirector) connectHooks() map[string]hook {
	return map[string]hook{
		"connect4": {ebpf.AttachCGroupInet4Connect, r.objects.Connect4},
		"connect6": {ebpf.AttachCGroupInet6Connect, r.objects.Connect6},
	}
}

type hook struct {
	at   ebpf.AttachType
	prog *ebpf.Program
}

func (r *Redirector) attachConnect() error {
	for name, h := range r.connectHooks() {
		if err := kubelet.PinCgroup(filepath.Join(r.node, name), r.cfg.CgroupRoot, h.at, h.prog); err != nil {
			return err
		}
	}
	return nil
}

// checkConnect says which links at the cgroup root are missing.
func (r *Redirector) checkConnect() error {
	id, err := linux.CgroupID(r.cfg.CgroupRoot)
	if err != nil {
		return err
	}
	var missing []error
	for name := range r.connectHooks() {
		err := withLink(filepath.Join(r.node, name), func(l link.Link) error {
			info, err := l.Info()
			if err != nil {
				return err
			}
			if c := info.Cgroup(); c == nil || c.CgroupId != id {
				return errors.New("detached")
			}
			return nil
		})
		if err != nil {
			missing = append(missing, fmt.Errorf("link %q at the cgroup root: %w", name, err))
		}
	}
	return errors.Join(missing...)
}

// try attaches the per-pod programs where they can do no harm.
func (r *Redirector) try() error {
	ns, err := linux.NewNetNS()
	if err != nil {
		return err
	}
	defer ns.Close()
	steer, err := bpf.LoadSteer()
	if err != nil {
		return err
	}
	var o bpf.SteerObjects
	if err := steer.LoadAndAssign(&o, nil); err != nil {
		return fmt.Errorf("load lookup program: %w", err)
	}
	defer o.Close()
	ls, err := openListeners(ns)
	if err != nil {
		return err
	}
	defer ls.Close()
	if err := putListeners(o.Listeners, ls); err != nil {
		return err
	}
	l, err := link.AttachNetNs(ns.Fd(), o.Steer)
	if err != nil {
		return fmt.Errorf("attach lookup program: %w", err)
	}
	defer l.Close()
	g, err := r.attachGuard(ns, loIndex)
	if err != nil {
		return err
	}
	return g.Close()
}

// loIndex is lo's in every namespace; the guard is only ever tried there.
const loIndex = 1

// syncSources makes the map hold what the probes say, and nothing else.
func (r *Redirector) syncSources() error {
	want, err := r.probes.Sources()
	if err != nil {
		return err
	}
	keys := map[[16]byte]bool{}
	for _, a := range want {
		keys[bpf.Key(a)] = true
		if err := r.sources.Put(bpf.Key(a), uint32(1)); err != nil {
			return fmt.Errorf("add probe source %q: %w", a, err)
		}
	}
	var key [16]byte
	var value uint32
	var stale [][16]byte
	for it := r.sources.Iterate(); it.Next(&key, &value); {
		if !keys[key] {
			stale = append(stale, key)
		}
	}
	for _, k := range stale {
		if err := r.sources.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove probe source %q: %w", netip.AddrFrom16(k).Unmap(), err)
		}
	}
	return nil
}

// Name implements redirect.Redirector.
func (r *Redirector) Name() string { return redirect.ModeEBPF }

// OriginalDestination implements redirect.Redirector.
func (r *Redirector) OriginalDestination() zds.OriginalDestination {
	return zds.OriginalDestination_SOCKNAME
}

// AppMark implements redirect.Redirector.
func (r *Redirector) AppMark() uint32 { return ports.MarkApp }

// Degraded implements redirect.Redirector.
func (r *Redirector) Degraded() error { return r.probes.Degraded() }

// Remove implements redirect.Remover. The connect programs go first: after that
// no socket is marked that nothing would serve.
func (r *Redirector) Remove(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for name := range r.connectHooks() {
		errs = append(errs, kubelet.Unpin(filepath.Join(r.node, name)))
	}
	pods, err := os.ReadDir(r.pods)
	errs = append(errs, err)
	for _, p := range pods {
		errs = append(errs, r.forget(p.Name(), 0))
	}
	errs = append(errs, r.probes.Remove())
	for _, dir := range []string{r.node, r.pods} {
		errs = append(errs, os.RemoveAll(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove capture from the node: %w", err)
	}
	return nil
}

// Close implements redirect.Redirector.
func (r *Redirector) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	if r.guard != nil {
		errs = append(errs, r.guard.Close())
	}
	if r.sources != nil {
		errs = append(errs, r.sources.Close())
	}
	if r.objects.Connect4 != nil {
		errs = append(errs, r.objects.ConnectPrograms.Close(), r.objects.Enrolled.Close())
	}
	if r.probes != nil {
		errs = append(errs, r.probes.Close())
	}
	return errors.Join(errs...)
}

func inode(ns *linux.NetNS) (uint64, error) {
	if ns != nil {
		return ns.Inode(), nil
	}
	own, err := linux.CurrentNetNS()
	if err != nil {
		return 0, err
	}
	defer own.Close()
	return own.Inode(), nil
}

// Captured tells whether an earlier agent left pods captured this way.
func Captured(cfg redirect.Config) bool {
	pods, err := os.ReadDir(filepath.Join(cfg.BPFDir, "pods"))
	return err == nil && len(pods) > 0
}

func withLink(path string, fn func(link.Link) error) error {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	return fn(l)
}

func errOr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// Package kubelet lets the kubelet's probes reach captured pods. The kubelet's
// connections to enrolled pods get a source address of their own, by a BPF
// program on its cgroup; capture leaves connections from that address alone. All
// other processes of the host are captured as any stranger is.
//
// Both kinds of capture use it. Where the kubelet can't be told from other
// processes it lets all of the node's own addresses past instead, and says so:
// Degraded.
//
// It owns the map of enrolled pods' addresses, pinned in <BPFDir>/node.
package kubelet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect/podnet"
	"github.com/ambit-mesh/ambit/internal/linux"
)

// sources returns the addresses that probes are bound to.
func sources() (v4, v6 netip.Addr) {
	return netip.MustParseAddr(ports.ProbeSourceV4), netip.MustParseAddr(ports.ProbeSourceV6)
}

// Probes lets the kubelet past. Methods may be called from several goroutines.
type Probes struct {
	cfg  redirect.Config
	dir  string // of pinned objects
	maps *ebpf.Map

	mu       sync.Mutex
	programs bpf.KubeletPrograms
	attached map[string]uint64 // cgroup directory → id
	retry    time.Time         // when degraded: not before
	degraded error
}

// retryAfter is how long a missing kubelet is not looked for again; looking
// means reading the names of all processes.
const retryAfter = 10 * time.Second

// New attaches to the kubelet's cgroups and gives the node's lo the addresses.
// It fails only if the map can't be had; anything else degrades.
func New(cfg redirect.Config) (*Probes, error) {
	p := &Probes{cfg: cfg, dir: filepath.Join(cfg.BPFDir, "node")}
	spec, err := bpf.LoadKubelet()
	if err != nil {
		return nil, err
	}
	podIPs := spec.Maps[bpf.KubeletMapPodIps]
	podIPs.Pinning = ebpf.PinByName
	p.maps, err = ebpf.NewMapWithOptions(podIPs, ebpf.MapOptions{PinPath: p.dir})
	if err != nil {
		return nil, fmt.Errorf("open map of pod addresses in %q: %w", p.dir, err)
	}
	if err := p.load(spec); err != nil {
		p.degrade(fmt.Errorf("load kubelet programs: %w", err))
		return p, nil
	}
	p.Ensure()
	return p, nil
}

func (p *Probes) load(spec *ebpf.CollectionSpec) error {
	v4, v6 := sources()
	b4 := v4.As4()
	if err := spec.Variables[bpf.KubeletVarSource4].Set(binary.NativeEndian.Uint32(b4[:])); err != nil {
		return err
	}
	if err := spec.Variables[bpf.KubeletVarSource6].Set(bpf.Key(v6)); err != nil {
		return err
	}
	spec.Maps[bpf.KubeletMapPodIps].Pinning = ebpf.PinNone
	return spec.LoadAndAssign(&p.programs, &ebpf.CollectionOptions{
		MapReplacements: map[string]*ebpf.Map{bpf.KubeletMapPodIps: p.maps},
	})
}

// Ensure attaches again where a kubelet's cgroup was made anew, as systemd does
// when the kubelet restarts, or where it was found only now.
func (p *Probes) Ensure() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.programs.Kubelet4 == nil {
		return // the reason is recorded
	}
	if p.degraded != nil && time.Now().Before(p.retry) || p.degraded == nil && p.intact() {
		return
	}
	if err := p.attach(); err != nil {
		p.degrade(err)
		return
	}
	if p.degraded != nil {
		p.cfg.Log.Info("kubelet probes are recognised again")
	}
	p.degraded = nil
}

// degrade records err, and logs it when it is news. The caller holds mu, or is New.
func (p *Probes) degrade(err error) {
	if p.degraded == nil || p.degraded.Error() != err.Error() {
		p.cfg.Log.Warn("kubelet can't be told from other processes of this node: connections from ALL of the node's own addresses bypass the mesh; "+
			"put the kubelet into a cgroup of its own, or name its cgroup", slog.Any("reason", err))
	}
	p.degraded = err
	p.retry = time.Now().Add(retryAfter)
}

// intact tells whether the cgroups are those that were attached to.
func (p *Probes) intact() bool {
	for dir, id := range p.attached {
		if now, err := linux.CgroupID(dir); err != nil || now != id {
			return false
		}
		for _, version := range []string{"4", "6"} {
			if _, err := os.Stat(p.pin(version, id)); err != nil {
				return false
			}
		}
	}
	return len(p.attached) > 0
}

func (p *Probes) pin(version string, cgroup uint64) string {
	return filepath.Join(p.dir, "kubelet"+version+"-"+strconv.FormatUint(cgroup, 10))
}

func (p *Probes) attach() error {
	dirs := p.cfg.KubeletCgroups
	if len(dirs) == 0 {
		var err error
		if dirs, err = Find(p.cfg.HostProc, p.cfg.CgroupRoot); err != nil {
			return err
		}
	}
	v4, v6 := sources()
	if err := podnet.AddLoopbackAddrs(p.cfg.HostNetNS, v4); err != nil {
		return err
	}
	if err := podnet.AddLoopbackAddrs(p.cfg.HostNetNS, v6); err != nil {
		p.cfg.Log.Debug("node has no IPv6 for probes", slog.Any("reason", err))
	}
	used, attached := map[string]bool{}, map[string]uint64{}
	for _, dir := range dirs {
		id, err := linux.CgroupID(dir)
		if err != nil {
			return err
		}
		for version, prog := range map[string]*ebpf.Program{"4": p.programs.Kubelet4, "6": p.programs.Kubelet6} {
			path := p.pin(version, id)
			used[path] = true
			at := ebpf.AttachCGroupInet4Connect
			if version == "6" {
				at = ebpf.AttachCGroupInet6Connect
			}
			if err := PinCgroup(path, dir, at, prog); err != nil {
				return err
			}
		}
		attached[dir] = id
	}
	p.attached = attached
	return p.collect(used)
}

// collect removes links of cgroups that are no kubelet's any more.
func (p *Probes) collect(used map[string]bool) error {
	pinned, err := filepath.Glob(filepath.Join(p.dir, "kubelet[46]-*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range pinned {
		if !used[path] {
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}

// Sources returns the addresses that capture leaves alone.
func (p *Probes) Sources() ([]netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v4, v6 := sources()
	out := []netip.Addr{v4, v6}
	if p.degraded == nil {
		return out, nil
	}
	host, err := podnet.Read(p.cfg.HostNetNS)
	if err != nil {
		return nil, fmt.Errorf("read the node's addresses: %w", err)
	}
	for _, a := range host.Addrs {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out, nil
}

// Degraded says why the kubelet isn't told from other processes; nil if it is.
func (p *Probes) Degraded() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.degraded
}

// PodIPs returns the map, which stays the Probes'.
func (p *Probes) PodIPs() *ebpf.Map { return p.maps }

// SetPod makes ips, and no others, the addresses of the pod in the netns with
// this cookie. None removes the pod.
func (p *Probes) SetPod(cookie uint64, ips []netip.Addr) error {
	for _, ip := range ips {
		if err := p.maps.Put(bpf.Key(ip), cookie); err != nil {
			return fmt.Errorf("add pod address %q: %w", ip, err)
		}
	}
	var key [16]byte
	var owner uint64
	var stale [][16]byte
	for it := p.maps.Iterate(); it.Next(&key, &owner); {
		if owner == cookie && !slices.Contains(ips, netip.AddrFrom16(key).Unmap()) {
			stale = append(stale, key)
		}
	}
	for _, k := range stale {
		if err := p.maps.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove pod address %q: %w", netip.AddrFrom16(k).Unmap(), err)
		}
	}
	return nil
}

// CheckPod says which of a pod's addresses are missing.
func (p *Probes) CheckPod(cookie uint64, ips []netip.Addr) error {
	var missing []error
	for _, ip := range ips {
		var owner uint64
		if err := p.maps.Lookup(bpf.Key(ip), &owner); err != nil || owner != cookie {
			missing = append(missing, fmt.Errorf("pod address %q is not in the map of pods", ip))
		}
	}
	return errors.Join(missing...)
}

// Close leaves everything attached.
func (p *Probes) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, prog := range []*ebpf.Program{p.programs.Kubelet4, p.programs.Kubelet6} {
		if prog != nil {
			errs = append(errs, prog.Close())
		}
	}
	return errors.Join(append(errs, p.maps.Close())...)
}

// Remove detaches from the kubelet's cgroups and takes the addresses off lo.
func (p *Probes) Remove() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pinned, err := filepath.Glob(filepath.Join(p.dir, "kubelet[46]-*"))
	errs := []error{err}
	for _, path := range pinned {
		errs = append(errs, Unpin(path))
	}
	v4, v6 := sources()
	errs = append(errs, podnet.RemoveLoopbackAddrs(p.cfg.HostNetNS, v4, v6), Unpin(filepath.Join(p.dir, bpf.KubeletMapPodIps)))
	p.attached = nil
	return errors.Join(errs...)
}

// Unpin removes a pinned object; a link is detached at once. Merely removed, it
// would go some time later and be in the way of its successor.
func Unpin(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if err == nil {
		defer l.Close()
		if err := l.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) { // what it was attached to is gone
			return fmt.Errorf("detach link %q: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %q: %w", path, err)
	}
	return nil
}

// PinCgroup makes prog run in cgroup: a link that is pinned at path and still
// attached there gets prog, else a new one takes its place.
func PinCgroup(path, cgroup string, at ebpf.AttachType, prog *ebpf.Program) error {
	id, err := linux.CgroupID(cgroup)
	if err != nil {
		return err
	}
	old, err := link.LoadPinnedLink(path, nil)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open pinned link %q: %w", path, err)
	}
	if err == nil {
		defer old.Close()
		if info, err := old.Info(); err == nil && info.Cgroup() != nil && info.Cgroup().CgroupId == id {
			if err := old.Update(prog); err != nil {
				return fmt.Errorf("update link %q: %w", path, err)
			}
			return nil
		}
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: at, Program: prog})
	if err != nil {
		return fmt.Errorf("attach to cgroup %q: %w", cgroup, err)
	}
	defer l.Close()
	if old != nil {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("replace link %q: %w", path, err)
		}
	}
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin link %q: %w", path, err)
	}
	return nil
}

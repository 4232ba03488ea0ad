package ebpf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect/kubelet"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect/podnet"
	"github.com/ambit-mesh/ambit/internal/linux"
)

const (
	steerPin    = "steer"
	guardPrefix = "guard-"
)

// target is a pod with what was found out about it, and where its pins are.
type target struct {
	*podnet.Target
	dir string
}

func (r *Redirector) inspect(pod redirect.Pod) (*target, error) {
	found, err := podnet.Inspect(pod, r.host)
	if err != nil {
		return nil, err
	}
	if most := len(bpf.SteerPod{}.Addrs); len(found.Own) > most {
		return nil, fmt.Errorf("the netns has %d addresses, at most %d can be captured", len(found.Own), most)
	}
	return &target{Target: found, dir: filepath.Join(r.pods, pod.UID)}, nil
}

func (t *target) setup() podnet.Setup {
	s := podnet.Setup{
		Sources: t.Sources(),
		Marks:   []uint32{ports.MarkCapture, ports.MarkApp},
		// Accepted sockets, and refusals, take the mark of what they answer.
		Sysctls: []string{"ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect"},
	}
	if slices.ContainsFunc(s.Sources, netip.Addr.Is6) {
		s.Sysctls = append(s.Sysctls, "ipv6/fwmark_reflect")
	}
	return s
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
	t, err := r.inspect(pod)
	if err != nil {
		return err
	}
	r.sweep()
	r.probes.Ensure()
	if err := r.syncSources(); err != nil {
		return err
	}
	if r.checkConnect() != nil {
		if err := r.attachConnect(); err != nil {
			return err
		}
	}
	// A pod whose sandbox was made anew keeps its UID.
	if s, err := readState(t.dir); err == nil && s.NetnsCookie != t.Cookie {
		if err := r.forget(pod.UID, s.NetnsCookie); err != nil {
			return err
		}
	}
	if err := t.setup().Apply(pod.NetNS); err != nil {
		return err
	}
	if err := r.steer(t, ls); err != nil {
		return err
	}
	if err := r.guardLinks(t); err != nil {
		return err
	}
	if err := r.probes.SetPod(t.Cookie, t.Unique); err != nil {
		return err
	}
	// Last, since from here on the pod's apps depend on all of the above.
	if err := r.objects.Enrolled.Put(t.Cookie, uint32(1)); err != nil {
		return fmt.Errorf("add to the map of enrolled pods: %w", err)
	}
	delete(r.draining, pod.UID)
	return nil
}

// steer loads the pod's copy of the lookup program and puts it to work.
func (r *Redirector) steer(t *target, ls redirect.Listeners) error {
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return err
	}
	spec, err := bpf.LoadSteer()
	if err != nil {
		return err
	}
	spec.Maps[bpf.SteerMapListeners].Pinning = ebpf.PinByName
	spec.Maps[bpf.SteerMapPodState].Pinning = ebpf.PinByName
	var o bpf.SteerObjects
	err = spec.LoadAndAssign(&o, &ebpf.CollectionOptions{
		Maps:            ebpf.MapOptions{PinPath: t.dir},
		MapReplacements: map[string]*ebpf.Map{bpf.SteerMapProbeSources: r.sources},
	})
	if err != nil {
		return fmt.Errorf("load lookup program: %w", err)
	}
	defer o.Close()
	if err := putListeners(o.Listeners, ls); err != nil {
		return err
	}
	state := bpf.SteerPod{NetnsCookie: t.Cookie, Mode: bpf.SteerModeCAPTURING, AddrsLen: uint32(len(t.Own))}
	for i, a := range t.Own {
		state.Addrs[i] = bpf.SteerAddress(a)
	}
	if err := o.PodState.Put(uint32(0), state); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	pin := filepath.Join(t.dir, steerPin)
	if checkSteer(pin, t.NetNS) == nil {
		return withLink(pin, func(l link.Link) error { return l.Update(o.Steer) })
	}
	l, err := link.AttachNetNs(t.NetNS.Fd(), o.Steer)
	if err != nil {
		return fmt.Errorf("attach lookup program: %w", err)
	}
	return replacePin(l, pin)
}

func checkSteer(pin string, ns *linux.NetNS) error {
	return withLink(pin, func(l link.Link) error {
		info, err := l.Info()
		if err != nil {
			return err
		}
		if n := info.NetNs(); n == nil || uint64(n.NetnsInode) != ns.Inode() {
			return errors.New("detached")
		}
		return nil
	})
}

// replacePin pins l at path and closes it, also when there is an error.
func replacePin(l link.Link, path string) error {
	defer l.Close()
	if err := kubelet.Unpin(path); err != nil {
		return err
	}
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin link %q: %w", path, err)
	}
	return nil
}

func (r *Redirector) attachGuard(ns *linux.NetNS, ifindex int) (link.Link, error) {
	l, err := attachTCX(ns, ifindex, r.guard)
	if errors.Is(err, unix.EEXIST) {
		// A link that somebody unpinned, and that the kernel will let go of some time, is in the way of the
		// same program; not of a copy.
		var again bpf.GuardPrograms
		if err := bpf.LoadGuardObjects(&again, nil); err != nil {
			return nil, fmt.Errorf("load guard: %w", err)
		}
		defer again.Close()
		l, err = attachTCX(ns, ifindex, again.Guard)
	}
	if err != nil {
		return nil, fmt.Errorf("attach guard to interface %d: %w", ifindex, err)
	}
	return l, nil
}

func attachTCX(ns *linux.NetNS, ifindex int, prog *ebpf.Program) (l link.Link, err error) {
	err = ns.Do(func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: ebpf.AttachTCXEgress})
		return err
	})
	return l, err
}

func (t *target) guardPin(l podnet.Link) string {
	return filepath.Join(t.dir, guardPrefix+strconv.Itoa(l.Index))
}

func checkGuard(pin string, ifindex int) error {
	return withLink(pin, func(l link.Link) error {
		info, err := l.Info()
		if err != nil {
			return err
		}
		if x := info.TCX(); x == nil || int(x.Ifindex) != ifindex {
			return errors.New("detached")
		}
		return nil
	})
}

func (r *Redirector) guardLinks(t *target) error {
	for _, i := range t.Found.Links {
		pin := t.guardPin(i)
		if checkGuard(pin, i.Index) == nil {
			err := withLink(pin, func(l link.Link) error { return l.Update(r.guard) })
			if err != nil && !errors.Is(err, unix.EEXIST) { // as in attachGuard; then it stays as it is
				return fmt.Errorf("update guard of interface %q: %w", i.Name, err)
			}
			continue
		}
		l, err := r.attachGuard(t.NetNS, i.Index)
		if err != nil {
			return err
		}
		if err := replacePin(l, pin); err != nil {
			return err
		}
	}
	return nil
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
	dir := filepath.Join(r.pods, pod.UID)
	s, err := readState(dir)
	if errors.Is(err, os.ErrNotExist) {
		return r.forget(pod.UID, 0)
	}
	if err != nil {
		return err
	}
	if err := r.release(s.NetnsCookie); err != nil {
		return err
	}
	guards, err := filepath.Glob(filepath.Join(dir, guardPrefix+"*"))
	if err != nil {
		return err
	}
	for _, g := range guards {
		if err := kubelet.Unpin(g); err != nil {
			return err
		}
	}
	// Sockets that were marked a moment ago still have to be led to the proxy.
	s.Mode = bpf.SteerModeDRAINING
	if err := writeState(dir, s); err != nil {
		return err
	}
	r.draining[pod.UID] = true
	r.sweep()
	return nil
}

// release takes a netns out of the node's maps.
func (r *Redirector) release(cookie uint64) error {
	if err := r.objects.Enrolled.Delete(cookie); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("remove from the map of enrolled pods: %w", err)
	}
	return r.probes.SetPod(cookie, nil)
}

// forget removes all that there is of a pod.
func (r *Redirector) forget(uid string, cookie uint64) error {
	if cookie != 0 {
		if err := r.release(cookie); err != nil {
			return err
		}
	}
	dir := filepath.Join(r.pods, uid)
	links, err := filepath.Glob(filepath.Join(dir, guardPrefix+"*"))
	if err != nil {
		return err
	}
	for _, pin := range append(links, filepath.Join(dir, steerPin)) {
		if err := kubelet.Unpin(pin); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	delete(r.draining, uid)
	return nil
}

// sweep forgets pods that were un-enrolled and whose listeners are closed, or
// whose netns is gone. What fails is tried again with the next change.
func (r *Redirector) sweep() {
	for uid := range r.draining {
		dir := filepath.Join(r.pods, uid)
		if !gone(dir) && len(listeningIn(dir)) > 0 {
			continue
		}
		if err := r.forget(uid, 0); err != nil {
			r.cfg.Log.Warn("cannot remove capture of an un-enrolled pod", slog.String("pod", uid), slog.Any("error", err))
		}
	}
}

// findDraining looks for pods that an earlier agent un-enrolled.
func (r *Redirector) findDraining() error {
	entries, err := os.ReadDir(r.pods)
	if err != nil {
		return fmt.Errorf("list captured pods: %w", err)
	}
	for _, e := range entries {
		if s, err := readState(filepath.Join(r.pods, e.Name())); err == nil && s.Mode != bpf.SteerModeCAPTURING {
			r.draining[e.Name()] = true
		}
	}
	r.sweep()
	return nil
}

// Enrolled implements redirect.Redirector.
func (r *Redirector) Enrolled(context.Context) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	entries, err := os.ReadDir(r.pods)
	if err != nil {
		return nil, fmt.Errorf("list captured pods: %w", err)
	}
	var uids []string
	for _, e := range entries {
		dir := filepath.Join(r.pods, e.Name())
		s, err := readState(dir)
		switch {
		case err == nil && s.Mode == bpf.SteerModeDRAINING:
		case err != nil || gone(dir):
			// Half made, or the netns went away while no agent ran.
			if err := r.forget(e.Name(), s.NetnsCookie); err != nil {
				return nil, fmt.Errorf("remove capture of pod %q that is gone: %w", e.Name(), err)
			}
		default:
			uids = append(uids, e.Name())
		}
	}
	r.sweep()
	return uids, nil
}

// gone tells whether the pod's netns is; then its link knows no inode any more.
func gone(dir string) bool {
	dead := false
	err := withLink(filepath.Join(dir, steerPin), func(l link.Link) error {
		info, err := l.Info()
		if err == nil && info.NetNs() != nil {
			dead = info.NetNs().NetnsInode == 0
		}
		return err
	})
	return dead || errors.Is(err, os.ErrNotExist)
}

func listeningIn(dir string) []bpf.SteerRole {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, bpf.SteerMapListeners), nil)
	if err != nil {
		return nil
	}
	defer m.Close()
	return listening(m)
}

func readState(dir string) (s bpf.SteerPod, err error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, bpf.SteerMapPodState), nil)
	if err != nil {
		return s, fmt.Errorf("open state: %w", err)
	}
	defer m.Close()
	return s, m.Lookup(uint32(0), &s)
}

func writeState(dir string, s bpf.SteerPod) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, bpf.SteerMapPodState), nil)
	if err != nil {
		return fmt.Errorf("open state: %w", err)
	}
	defer m.Close()
	if err := m.Put(uint32(0), s); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

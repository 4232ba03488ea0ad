package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/ports"
	zdspb "github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/internal/linux"
	"github.com/ambit-mesh/ambit/internal/zds"
)

// errLater means that a pod waits for something and is looked at again after askAgain; it is no failure.
var errLater = errors.New("look again later")

// work takes pods from the queue until it is shut down.
func (a *Agent) work(ctx context.Context) {
	for {
		uid, stop := a.queue.Get()
		if stop {
			return
		}
		err := a.reconcile(ctx, uid)
		switch {
		case err == nil:
			a.queue.Forget(uid)
		case errors.Is(err, errLater):
			a.queue.AddAfter(uid, askAgain)
		case ctx.Err() == nil:
			a.log.Error("pod not brought to its wished state; tried again", "uid", uid, "error", err)
			a.metrics.failures.Inc()
			a.queue.AddRateLimited(uid)
		}
		a.queue.Done(uid)
		a.metrics.setPods(a.counts())
	}
}

// reconcile brings one pod from where it is to where it belongs.
func (a *Agent) reconcile(ctx context.Context, uid string) error {
	if !a.isSynced() {
		return nil // All pods are looked at when the caches are full.
	}
	unlock, err := a.locks.lock(ctx, uid)
	if err != nil {
		return err
	}
	defer unlock()
	t := a.get(uid)
	pod := a.podByUID(uid)
	if pod == nil || finished(pod) {
		return a.vanished(ctx, uid, t, pod)
	}
	if t != nil {
		t.seen = true
	}
	ns, err := a.namespaces.Get(pod.Namespace)
	if err != nil {
		// The namespace goes after its pods: this pod's own deletion is about to be seen.
		return nil
	}
	if want, _ := Enrol(pod, &ns.ObjectMeta, a.rules); want {
		return a.enrol(ctx, pod, t)
	}
	return a.unenrol(ctx, pod, t)
}

func (a *Agent) get(uid string) *tracked {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tracked[uid]
}

func (a *Agent) track(t *tracked) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tracked[t.uid] = t
	delete(a.leftover, t.uid)
}

// enrol brings a running pod into the mesh, or makes sure that it is.
func (a *Agent) enrol(ctx context.Context, pod *corev1.Pod, t *tracked) error {
	ips := podIPs(pod)
	if len(ips) == 0 {
		return nil // The runtime has not made its network yet; the plugin will ask.
	}
	if t != nil {
		if err := a.finder.accept(t.netns, ips); errors.Is(err, errNotOwner) {
			a.log.Warn("pod has another network namespace now", "pod", t.ref(), "uid", t.uid)
			if err := a.remove(ctx, t); err != nil {
				return err
			}
			t = nil
		} else if !subset(ips, t.ips) {
			t.ips, t.stale = ips, true
		}
	}
	if t == nil {
		if a.waitsForGiveBack(string(pod.UID)) {
			return errLater
		}
		var err error
		if t, err = a.open(pod); err != nil {
			return a.fail(ctx, pod, err)
		}
	}
	begin := time.Now()
	fresh := !t.captured
	if err := a.complete(ctx, pod, t); err != nil {
		return a.fail(ctx, pod, err)
	}
	if fresh {
		a.metrics.enrolled(begin)
		a.log.Info("pod enrolled", "pod", t.ref(), "uid", t.uid, "ips", t.ips)
	}
	a.unwarn(t.uid)
	return a.annotate(ctx, pod, ports.AnnotationRedirectionEnabled)
}

// waitsForGiveBack: a pod that an earlier agent captured is left alone until ztunnel had the time to give its
// sockets back, so that its capture is never without them.
func (a *Agent) waitsForGiveBack(uid string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, adopted := a.adopted[uid]
	return a.leftover[uid] && !adopted && !a.gaveBack && time.Since(a.started) < giveBack
}

// open finds a running pod's network namespace and its listeners, those that ztunnel gave back or new ones, and
// tracks the pod.
func (a *Agent) open(pod *corev1.Pod) (*tracked, error) {
	uid := string(pod.UID)
	a.mu.Lock()
	inherited := a.leftover[uid]
	given, adopted := a.adopted[uid]
	delete(a.adopted, uid)
	a.mu.Unlock()
	t := newTracked(pod, uid)
	t.ips, t.seen = podIPs(pod), true
	// What an earlier agent captured stays so; what it captured for is about to change.
	t.captured, t.stale = inherited, inherited
	if adopted {
		err := a.useAdopted(t, given)
		if err == nil {
			a.track(t)
			return t, nil
		}
		a.log.Warn("sockets that ztunnel gave back are not the pod's", "pod", t.ref(), "uid", uid, "error", err)
	}
	ns, err := a.finder.byProcess(cgroupUIDs(pod), t.ips)
	if err != nil {
		return nil, fmt.Errorf("find network namespace of pod %q: %w", t.ref(), err)
	}
	if err := a.openListeners(t, ns); err != nil {
		return nil, err
	}
	a.track(t)
	return t, nil
}

func newTracked(pod *corev1.Pod, uid string) *tracked {
	sa := pod.Spec.ServiceAccountName
	if sa == "" {
		sa = "default"
	}
	return &tracked{uid: uid, namespace: pod.Namespace, name: pod.Name, serviceAccount: sa, since: time.Now()}
}

// useAdopted takes over sockets that ztunnel gave back; on error they are closed.
func (a *Agent) useAdopted(t *tracked, s zds.Sockets) error {
	ns, err := linux.NetNSFromFile(s.NetNS)
	s.NetNS = nil
	if err == nil {
		err = a.finder.accept(ns, t.ips)
	}
	var f *os.File
	if err == nil {
		f, err = ns.File()
	}
	if err != nil {
		s.Close()
		if ns != nil {
			err = errors.Join(err, ns.Close())
		}
		return err
	}
	t.netns = ns
	t.listeners = redirect.Listeners{Outbound: s.Outbound, InboundPlaintext: s.InboundPlaintext, InboundHBONE: s.InboundHBONE}
	s.NetNS = f
	t.sockets = s
	return nil
}

// openListeners opens new sockets in ns, which t owns afterwards; on error ns is closed.
func (a *Agent) openListeners(t *tracked, ns *linux.NetNS) error {
	t.netns = ns
	l, err := a.redirect.OpenListeners(t.pod())
	if err == nil {
		t.listeners = l
		t.sockets = zds.Sockets{Outbound: l.Outbound, InboundPlaintext: l.InboundPlaintext, InboundHBONE: l.InboundHBONE}
		t.sockets.NetNS, err = ns.File()
	}
	if err != nil {
		return fmt.Errorf("open listeners of pod %q: %w", t.ref(), errors.Join(err, l.Close(), ns.Close()))
	}
	return nil
}

// complete makes sure that a tracked pod is served and captured. One that was never captured is captured only
// when a proxy has taken it; one that is captured stays so whatever happens to proxies.
func (a *Agent) complete(ctx context.Context, pod *corev1.Pod, t *tracked) error {
	if !t.captured {
		if a.proxies.connected() == 0 {
			return errNoProxy
		}
		if err := a.servable(t); err != nil {
			return err
		}
		if err := a.announce(ctx, t); err != nil {
			return err
		}
		if err := a.yield(t); err != nil {
			return err
		}
		if err := a.redirect.Enroll(ctx, t.pod(), t.listeners); err != nil {
			return fmt.Errorf("capture pod %q: %w", t.ref(), err)
		}
		t.captured = true
		return nil
	}
	a.proxies.publish(t.uid, t.info(), t.sockets)
	if t.stale {
		if err := a.redirect.Enroll(ctx, t.pod(), t.listeners); err != nil {
			return fmt.Errorf("capture pod %q: %w", t.ref(), err)
		}
		t.stale = false
	} else if err := a.redirect.Check(ctx, t.pod()); err != nil {
		if err2 := a.redirect.Enroll(ctx, t.pod(), t.listeners); err2 != nil {
			return fmt.Errorf("repair capture of pod %q (%w): %w", t.ref(), err, err2)
		}
		a.log.Warn("capture was incomplete and is repaired", "pod", t.ref(), "uid", t.uid, "missing", err)
		a.metrics.repairs.Inc()
		a.events.Eventf(pod, corev1.EventTypeWarning, EventRepaired,
			"Traffic capture was incomplete and has been put back: %v. Something on node %q changes the pod's network.", err, a.c.NodeName)
	}
	if a.proxies.connected() == 0 {
		return nil // ztunnel is being replaced; it gets the pod with its snapshot.
	}
	if err := a.servable(t); err != nil {
		return err
	}
	if err := a.announce(ctx, t); err != nil {
		return err
	}
	return a.yield(t)
}

// servable refuses a pod that the newest ztunnel could not be led to: with its own listeners (ZDS V1) it is found
// by port, as nftables redirects, and not by socket.
func (a *Agent) servable(t *tracked) error {
	if a.proxies.opensItsOwn() && a.redirect.OriginalDestination() != zdspb.OriginalDestination_NAT {
		return fmt.Errorf("pod %q: ztunnel on node %q speaks ZDS V1 and takes no sockets, which redirect mode %q needs; "+
			"use Ambit's ztunnel, or set REDIRECT_MODE=nft", t.ref(), a.c.NodeName, a.redirect.Name())
	}
	return nil
}

// yield closes the agent's listeners where the newest ztunnel has its own on the same ports: the kernel would
// give a share of the connections to ours, where nobody accepts.
func (a *Agent) yield(t *tracked) error {
	if t.yielded || !a.proxies.opensItsOwn() {
		return nil
	}
	a.proxies.narrow(t.uid)
	t.sockets, t.yielded = zds.Sockets{NetNS: t.sockets.NetNS}, true
	if err := t.listeners.Close(); err != nil {
		return fmt.Errorf("close listeners of pod %q: %w", t.ref(), err)
	}
	return nil
}

// announce waits until the newest ztunnel has taken the pod.
func (a *Agent) announce(ctx context.Context, t *tracked) error {
	ctx, cancel := context.WithTimeout(ctx, a.ackTimeout)
	defer cancel()
	err := a.proxies.add(ctx, t.uid, t.info(), t.sockets)
	if err != nil {
		return fmt.Errorf("pod %q: ztunnel on node %q did not take the pod within %v: %w; check DaemonSet ztunnel",
			t.ref(), a.c.NodeName, a.ackTimeout, err)
	}
	return nil
}

func (t *tracked) info() *zdspb.WorkloadInfo {
	return &zdspb.WorkloadInfo{Name: t.name, Namespace: t.namespace, ServiceAccount: t.serviceAccount}
}

// fail tells the user why a pod is not (wholly) in the mesh, and returns the cause for the retry.
func (a *Agent) fail(ctx context.Context, pod *corev1.Pod, cause error) error {
	if ctx.Err() != nil {
		return cause // The agent stops: that is not the pod's failure.
	}
	a.warn(pod, EventNotCaptured, fmt.Sprintf(
		"The pod belongs in the mesh but is not served: %v. It is tried again; check DaemonSets ztunnel and istio-cni-node on node %q.", cause, a.c.NodeName))
	return errors.Join(cause, a.annotate(ctx, pod, ports.AnnotationRedirectionPending))
}

// unenrol takes a running pod out of the mesh: capture first, so that nothing new arrives at sockets that nobody serves.
func (a *Agent) unenrol(ctx context.Context, pod *corev1.Pod, t *tracked) error {
	uid := string(pod.UID)
	if t == nil {
		if err := a.releaseUntracked(ctx, pod, uid); err != nil {
			a.warn(pod, EventNotReleased, fmt.Sprintf("The pod left the mesh but its traffic is still captured: %v. It is tried again.", err))
			return err
		}
		return a.annotate(ctx, pod, "")
	}
	if err := a.redirect.Unenroll(ctx, t.pod()); err != nil {
		a.warn(pod, EventNotReleased, fmt.Sprintf("The pod left the mesh but its traffic is still captured: %v. It is tried again.", err))
		return fmt.Errorf("release pod %q: %w", t.ref(), err)
	}
	t.captured = false
	if err := a.forget(ctx, t); err != nil {
		return err
	}
	a.metrics.released.Inc()
	a.log.Info("pod un-enrolled", "pod", t.ref(), "uid", uid)
	return a.annotate(ctx, pod, "")
}

// releaseUntracked takes away what an earlier agent left of a pod; pod may be nil.
func (a *Agent) releaseUntracked(ctx context.Context, pod *corev1.Pod, uid string) error {
	a.mu.Lock()
	left := a.leftover[uid]
	given, adopted := a.adopted[uid]
	delete(a.adopted, uid)
	a.mu.Unlock()
	if !left && !adopted {
		return nil
	}
	p := redirect.Pod{UID: uid}
	var err error
	if pod != nil {
		p.IPs = podIPs(pod)
		// Not found means that no process is left: then there is no namespace to clean either.
		p.NetNS, err = a.finder.byProcess(cgroupUIDs(pod), p.IPs)
		if err != nil {
			a.log.Debug("network namespace not found", "uid", uid, "error", err)
		}
	}
	err = a.redirect.Unenroll(ctx, p)
	if p.NetNS != nil {
		err = errors.Join(err, p.NetNS.Close())
	}
	if adopted {
		given.Close()
	}
	if err != nil {
		return fmt.Errorf("release pod %q that an earlier agent captured: %w", uid, err)
	}
	a.drop(ctx, uid)
	a.mu.Lock()
	delete(a.leftover, uid)
	a.mu.Unlock()
	a.log.Info("capture of an earlier agent removed", "uid", uid)
	return nil
}

// vanished cleans up after a pod that is deleted, or finished (then pod is not nil).
func (a *Agent) vanished(ctx context.Context, uid string, t *tracked, pod *corev1.Pod) error {
	if t == nil {
		a.unwarn(uid)
		return a.releaseUntracked(ctx, nil, uid)
	}
	if pod == nil && !t.seen {
		if exists, err := a.exists(ctx, t); exists || err != nil {
			return errLater
		}
	}
	if pod == nil && len(a.finder.processes([]string{uid})) > 0 {
		// Deleted by force: until the kubelet has killed its processes, they must not talk past the mesh.
		return errLater
	}
	a.unwarn(uid)
	return a.remove(ctx, t)
}

// exists asks the API server about a pod that the plugin announced and the watch has not shown. For a while
// nobody is asked: the watch is about to show it.
func (a *Agent) exists(ctx context.Context, t *tracked) (bool, error) {
	if time.Since(t.since) < unseenFor {
		return true, nil
	}
	p, err := a.kube.CoreV1().Pods(t.namespace).Get(ctx, t.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil && string(p.UID) == t.uid, err
}

// remove ends all that there is of a pod whose processes are gone.
func (a *Agent) remove(ctx context.Context, t *tracked) error {
	if err := a.redirect.Unenroll(ctx, t.pod()); err != nil {
		return fmt.Errorf("release pod %q: %w", t.ref(), err)
	}
	t.captured = false
	a.log.Info("pod removed", "pod", t.ref(), "uid", t.uid)
	return a.forget(ctx, t)
}

// forget takes a pod from proxies and closes its sockets.
func (a *Agent) forget(ctx context.Context, t *tracked) error {
	a.drop(ctx, t.uid)
	a.mu.Lock()
	delete(a.tracked, t.uid)
	a.mu.Unlock()
	return t.close()
}

// drop tells proxies to let a pod go. One that does not answer in time is not waited for: it keeps its own copies.
func (a *Agent) drop(ctx context.Context, uid string) {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	if err := a.proxies.del(ctx, uid); err != nil {
		a.log.Warn("ztunnel did not confirm", "uid", uid, "error", err)
	}
}

// subset: every member of a is in b.
func subset[T comparable](a, b []T) bool {
	return !slices.ContainsFunc(a, func(x T) bool { return !slices.Contains(b, x) })
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/internal/linux"
	"github.com/ambit-mesh/ambit/internal/zds"
)

const (
	// workers is how many pods are worked on at once: enrolling waits for the API server and for ztunnel, not for the CPU.
	workers = 8
	// firstRetry and lastRetry bound the pause before a failed pod is tried again.
	firstRetry = 200 * time.Millisecond
	lastRetry  = 30 * time.Second
	// repairEvery is how long a pod may stay incompletely captured unnoticed.
	repairEvery = 10 * time.Second
	// ackTimeout is how long ztunnel may take for a pod before the pod is refused, or tried again.
	ackTimeout = 15 * time.Second
	// releaseTimeout is how long ztunnel may take to let a pod go before its sockets are closed anyway.
	releaseTimeout = 5 * time.Second
	// giveBack is how long an agent that starts waits for ztunnel to give back the sockets of captured pods.
	// ztunnel connects again within a second; new sockets in place of the old would drop what waits in their queue.
	giveBack = 5 * time.Second
	// askAgain is the pause before a pod that waits for something is looked at again.
	askAgain = 250 * time.Millisecond
	// unseenFor is how long a pod that the plugin announced may be missing from the watch before the API server
	// is asked whether it exists.
	unseenFor = 10 * time.Second
)

// Deps are what an Agent works with. The agent closes none of them.
type Deps struct {
	Kube       kubernetes.Interface
	Redirector redirect.Redirector
	Events     record.EventRecorder
	Metrics    *Metrics
	Log        *slog.Logger
	// Synced is told when the API server's state is known (nil), or why it is not.
	Synced func(error)
}

// Agent is the node agent without its surroundings (servers for people, installer): see Run in app.go for those.
type Agent struct {
	c        Config
	log      *slog.Logger
	kube     kubernetes.Interface
	redirect redirect.Redirector
	events   record.EventRecorder
	metrics  *Metrics
	synced   func(error)
	rules    Rules
	proxies  *proxies
	finder   *finder
	queue    workqueue.TypedRateLimitingInterface[string]
	locks    keyLocks
	started  time.Time
	// ackTimeout is the constant of that name, shorter in tests.
	ackTimeout time.Duration

	podIndex   cache.Indexer
	pods       corelisters.PodLister
	namespaces corelisters.NamespaceLister
	ready      chan struct{} // closed when both caches are full

	mu       sync.Mutex
	tracked  map[string]*tracked
	leftover map[string]bool        // captured by an earlier agent, not tracked yet
	adopted  map[string]zds.Sockets // given back by ztunnel, not tracked yet
	gaveBack bool                   // a proxy has given back all that it had
	warned   map[string]string      // last warning by UID
}

// tracked is a pod that has listeners. Its fields belong to whoever holds the pod's lock.
type tracked struct {
	uid, namespace, name, serviceAccount string

	ips       []netip.Addr
	netns     *linux.NetNS
	listeners redirect.Listeners
	// sockets are what proxies get: a second handle on the netns, and the listeners.
	sockets zds.Sockets
	// captured: new connections reach the listeners. stale: but not yet these listeners, or not for these addresses.
	captured, stale bool
	// yielded: the listeners are closed because ztunnel has its own.
	yielded bool
	// seen: the watch has shown the pod; since: when it was first tracked.
	seen  bool
	since time.Time
}

func (t *tracked) pod() redirect.Pod {
	return redirect.Pod{UID: t.uid, NetNS: t.netns, IPs: t.ips}
}

func (t *tracked) ref() string { return t.namespace + "/" + t.name }

// close gives back every file descriptor. Proxies must not be sent them any more.
func (t *tracked) close() error {
	var err error
	if !t.yielded {
		err = t.listeners.Close()
	}
	return errors.Join(err, t.sockets.NetNS.Close(), t.netns.Close())
}

// New makes an agent; Run starts it.
func New(c Config, d Deps) *Agent {
	a := &Agent{
		c: c, log: d.Log, kube: d.Kube, redirect: d.Redirector, events: d.Events, metrics: d.Metrics, synced: d.Synced,
		rules:   Rules{ExcludeNamespaces: c.excluded()},
		proxies: newProxies(d.Log.With("scope", "zds")),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](firstRetry, lastRetry)),
		ready: make(chan struct{}), ackTimeout: ackTimeout,
		tracked: map[string]*tracked{}, leftover: map[string]bool{}, adopted: map[string]zds.Sockets{}, warned: map[string]string{},
	}
	a.proxies.originalDestination = d.Redirector.OriginalDestination()
	a.proxies.appMark = d.Redirector.AppMark()
	a.proxies.adopt = a.adopt
	a.proxies.greeted = a.greeted
	a.proxies.count = func(n int) { d.Metrics.proxies.Set(float64(n)) }
	return a
}

// Run works until ctx ends. It leaves capture in place and closes its copies of the pods' sockets: ztunnel has its own.
func (a *Agent) Run(ctx context.Context) error {
	a.started = time.Now()
	f, err := newFinder(a.c.HostProc, a.c.NetNSDir)
	if err != nil {
		return err
	}
	a.finder = f
	left, err := a.redirect.Enrolled(ctx)
	if err != nil {
		return fmt.Errorf("find captured pods: %w", err)
	}
	for _, uid := range left {
		a.leftover[uid] = true
	}
	a.proxies.keepAlive(left...)
	a.log.Info("node agent starts", "node", a.c.NodeName, "redirect", a.redirect.Name(), "captured", len(left))

	zl, err := listenZDS(a.c.ZDSSocket)
	if err != nil {
		return err
	}
	pl, err := listenPlugin(a.c.PluginSocket)
	if err != nil {
		return errors.Join(err, zl.Close())
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.proxies.run(ctx, zl) })
	g.Go(func() error { return a.servePlugin(ctx, pl) })
	g.Go(func() error { return a.watch(ctx) })
	g.Go(func() error { return a.repair(ctx) })
	for range workers {
		g.Go(func() error { a.work(ctx); return nil })
	}
	g.Go(func() error {
		<-ctx.Done()
		a.queue.ShutDown()
		return nil
	})
	err = g.Wait()
	return errors.Join(err, a.letGo())
}

// letGo closes this process's copies of all sockets.
func (a *Agent) letGo() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs error
	for uid, t := range a.tracked {
		errs = errors.Join(errs, t.close())
		delete(a.tracked, uid)
	}
	for uid, s := range a.adopted {
		s.Close()
		delete(a.adopted, uid)
	}
	return errs
}

// ReleaseAll un-enrols every pod and takes capture off the node, for when the mesh is uninstalled. Call it after
// Run has returned.
func (a *Agent) ReleaseAll(ctx context.Context) error {
	uids, err := a.redirect.Enrolled(ctx)
	if err != nil {
		return fmt.Errorf("find captured pods: %w", err)
	}
	var errs error
	for _, uid := range uids {
		p := redirect.Pod{UID: uid}
		var pod *corev1.Pod
		if pod = a.podByUID(uid); pod != nil {
			p.IPs = podIPs(pod)
			if p.NetNS, err = a.finder.byProcess(cgroupUIDs(pod), p.IPs); err != nil {
				a.log.Warn("network namespace not found", "uid", uid, "error", err)
			}
		}
		if err := a.redirect.Unenroll(ctx, p); err != nil {
			errs = errors.Join(errs, fmt.Errorf("release pod %q: %w", uid, err))
		} else if pod != nil {
			// The agent's rights may be gone with the chart: the annotation is then left.
			if err := a.annotate(ctx, pod, ""); err != nil {
				a.log.Warn("annotation not removed", "uid", uid, "error", err)
			}
		}
		if p.NetNS != nil {
			errs = errors.Join(errs, p.NetNS.Close())
		}
	}
	if rm, ok := a.redirect.(redirect.Remover); ok {
		errs = errors.Join(errs, rm.Remove(ctx))
	}
	return errs
}

// adopt takes the sockets of a pod that ztunnel held while there was no agent, or another one.
func (a *Agent) adopt(uid string, s zds.Sockets) {
	a.mu.Lock()
	_, have := a.adopted[uid]
	take := a.tracked[uid] == nil && !have && s.HasListeners()
	if take {
		a.adopted[uid] = s
	}
	a.mu.Unlock()
	if !take {
		s.Close()
		return
	}
	a.proxies.keepAlive(uid)
	a.queue.Add(uid)
}

// greeted runs when a proxy has given back what it had.
func (a *Agent) greeted() {
	a.mu.Lock()
	a.gaveBack = true
	uids := a.known()
	a.mu.Unlock()
	for _, uid := range uids {
		a.queue.Add(uid)
	}
	a.enqueueAll()
}

// known lists pods of which there is state. The caller holds a.mu.
func (a *Agent) known() []string {
	var out []string
	for uid := range a.tracked {
		out = append(out, uid)
	}
	for uid := range a.leftover {
		out = append(out, uid)
	}
	for uid := range a.adopted {
		out = append(out, uid)
	}
	return out
}

// counts is how many pods are captured, and how many wait for it.
func (a *Agent) counts() (captured, pending int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for uid := range a.tracked {
		if a.warned[uid] == "" {
			captured++
		} else {
			pending++
		}
	}
	return captured, pending
}

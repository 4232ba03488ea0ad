package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/cni-plugin/plugin"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/internal/zds"
)

const (
	// pluginTimeout bounds one question as a whole; the plugin itself waits 30 s.
	pluginTimeout = 25 * time.Second
	// findPodFor is how long the API server may take to show a pod that the runtime is starting already.
	findPodFor = 5 * time.Second
	// findPodEvery is the pause between two looks.
	findPodEvery = 100 * time.Millisecond
	// maxQuestion bounds a question's body in bytes.
	maxQuestion = 64 << 10
	// maxQuestions bounds questions worked on at once; a kubelet starts ten pods at a time by default.
	maxQuestions = 64
	// socketDirMode and socketMode keep both sockets to root: the plugin and ztunnel are.
	socketDirMode = 0o755
	socketMode    = 0o600
)

// listenPlugin makes the socket that the CNI plugin calls, in place of one that an earlier agent left.
func listenPlugin(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), socketDirMode); err != nil {
		return nil, fmt.Errorf("make directory of socket: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket %q: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", path, err)
	}
	// The next agent may have made its socket at this path before this one closes.
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, fmt.Errorf("restrict socket %q: %w", path, errors.Join(err, l.Close()))
	}
	return l, nil
}

// listenZDS makes the socket that ztunnel calls.
func listenZDS(path string) (*zds.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), socketDirMode); err != nil {
		return nil, fmt.Errorf("make directory of socket: %w", err)
	}
	return zds.Listen(path)
}

// servePlugin answers the plugin until ctx ends; questions under way are answered still, their context ended.
func (a *Agent) servePlugin(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	slots := make(chan struct{}, maxQuestions)
	mux.Handle("POST "+plugin.PathAdd, a.question("ADD", slots, a.startPod))
	mux.Handle("POST "+plugin.PathCheck, a.question("CHECK", slots, a.checkPod))
	srv := &http.Server{
		Handler: mux, ReadTimeout: pluginTimeout, WriteTimeout: 2 * pluginTimeout,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		shut, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
		defer cancel()
		if err := srv.Shutdown(shut); err != nil {
			a.log.Warn("plugin's questions cut off", "error", errors.Join(err, srv.Close()))
		}
	})
	err := srv.Serve(l)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve CNI plugin: %w", err)
}

// question wraps one kind of question: bounds, decoding, metrics, log, and the pod's name around an error.
func (a *Agent) question(verb string, slots chan struct{}, answer func(context.Context, *plugin.Request) (plugin.Reply, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), pluginTimeout)
		defer cancel()
		begin := time.Now()
		var req plugin.Request
		reply, status := plugin.Reply{}, http.StatusOK
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxQuestion)).Decode(&req)
		if err == nil {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
				reply, err = answer(ctx, &req)
			case <-ctx.Done():
				err = fmt.Errorf("wait for %d other pods: %w", maxQuestions, ctx.Err())
			}
		}
		log := a.log.With("verb", verb, "pod", req.PodNamespace+"/"+req.PodName, "uid", req.PodUID, "took", time.Since(begin))
		if err != nil {
			reply, status = plugin.Reply{Error: err.Error()}, http.StatusServiceUnavailable
			log.Error("pod refused", "error", err)
		} else {
			log.Info("pod may go on", "enrolled", reply.Enrolled, "reason", reply.Reason)
		}
		a.metrics.question(verb, reply, begin)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if err := json.NewEncoder(w).Encode(reply); err != nil {
			log.Warn("answer not sent", "error", err)
		}
	})
}

// startPod decides about a pod that the runtime starts, and brings it into the mesh before any container runs.
func (a *Agent) startPod(ctx context.Context, req *plugin.Request) (plugin.Reply, error) {
	if slices.Contains(a.rules.ExcludeNamespaces, req.PodNamespace) {
		return plugin.Reply{Reason: "namespace is excluded"}, nil
	}
	ref := req.PodNamespace + "/" + req.PodName
	pod, ns, err := a.find(ctx, req)
	if err != nil {
		return plugin.Reply{}, fmt.Errorf("pod %q: whether it belongs in the mesh is not known: %w; check that node %q reaches the API server", ref, err, a.c.NodeName)
	}
	want, reason := Enrol(pod, ns, a.rules)
	if !want {
		return plugin.Reply{Reason: reason}, nil
	}
	unlock, err := a.locks.lock(ctx, string(pod.UID))
	if err != nil {
		return plugin.Reply{}, fmt.Errorf("pod %q: wait for earlier work on it: %w", ref, err)
	}
	defer unlock()
	begin := time.Now()
	if err := a.enrolNew(ctx, pod, req); err != nil {
		return plugin.Reply{}, err
	}
	a.metrics.enrolled(begin)
	a.metrics.setPods(a.counts())
	// The annotation follows by the ordinary way: the pod need not wait for the API server.
	a.queue.Add(string(pod.UID))
	return plugin.Reply{Enrolled: true, Reason: reason}, nil
}

// enrolNew captures a pod that has no containers yet. On failure nothing stays: the runtime tries again with
// another network namespace.
func (a *Agent) enrolNew(ctx context.Context, pod *corev1.Pod, req *plugin.Request) error {
	uid := string(pod.UID)
	if old := a.get(uid); old != nil {
		// The pod's sandbox was made anew.
		if err := a.remove(ctx, old); err != nil {
			return err
		}
	} else if err := a.releaseUntracked(ctx, nil, uid); err != nil {
		return err
	}
	if len(req.IPs) == 0 {
		return fmt.Errorf("pod %q: the plugin before ambit-cni gave it no address", req.PodNamespace+"/"+req.PodName)
	}
	t := newTracked(pod, uid)
	t.ips = req.IPs
	if err := a.servable(t); err != nil {
		return err
	}
	ns, err := a.finder.byPath(req.NetNS)
	if err != nil {
		return fmt.Errorf("pod %q: %w", t.ref(), err)
	}
	if err := a.openListeners(t, ns); err != nil {
		return err
	}
	a.track(t)
	if err := a.redirect.Enroll(ctx, t.pod(), t.listeners); err != nil {
		return fmt.Errorf("capture pod %q: %w", t.ref(), errors.Join(err, a.undo(ctx, t)))
	}
	if err := a.announce(ctx, t); err != nil {
		return errors.Join(err, a.undo(ctx, t))
	}
	if err := a.yield(t); err != nil {
		return errors.Join(err, a.undo(ctx, t))
	}
	t.captured = true
	return nil
}

// undo removes a pod that failed to start, also when the question's own time is over.
func (a *Agent) undo(ctx context.Context, t *tracked) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	if err := a.redirect.Unenroll(ctx, redirect.Pod{UID: t.uid, NetNS: t.netns, IPs: t.ips}); err != nil {
		// It stays tracked, and goes with the pod.
		return fmt.Errorf("release pod %q: %w", t.ref(), err)
	}
	return a.forget(ctx, t)
}

// find returns the pod and its namespace: from the cache, else from the API server, which may take a moment to
// show a pod that the kubelet already starts.
func (a *Agent) find(ctx context.Context, req *plugin.Request) (*corev1.Pod, *metav1.ObjectMeta, error) {
	ctx, cancel := context.WithTimeout(ctx, findPodFor)
	defer cancel()
	for {
		pod, ns, err := a.findOnce(ctx, req)
		if err == nil {
			return pod, ns, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil, err
		case <-time.After(findPodEvery):
		}
	}
}

func (a *Agent) findOnce(ctx context.Context, req *plugin.Request) (*corev1.Pod, *metav1.ObjectMeta, error) {
	var pod *corev1.Pod
	var ns *corev1.Namespace
	if a.isSynced() {
		if p, err := a.pods.Pods(req.PodNamespace).Get(req.PodName); err == nil && isPod(p, req.PodUID) {
			pod = p
		}
		if n, err := a.namespaces.Get(req.PodNamespace); err == nil {
			ns = n
		}
	}
	var err error
	if pod == nil {
		pod, err = a.kube.CoreV1().Pods(req.PodNamespace).Get(ctx, req.PodName, metav1.GetOptions{})
		switch {
		case err != nil:
			return nil, nil, fmt.Errorf("get pod: %w", apiError(err))
		case !isPod(pod, req.PodUID):
			return nil, nil, fmt.Errorf("get pod: the API server has UID %q, the runtime starts %q", pod.UID, req.PodUID)
		}
	}
	if ns == nil {
		if ns, err = a.kube.CoreV1().Namespaces().Get(ctx, req.PodNamespace, metav1.GetOptions{}); err != nil {
			return nil, nil, fmt.Errorf("get namespace: %w", apiError(err))
		}
	}
	return pod, &ns.ObjectMeta, nil
}

// apiError drops what client-go adds when a deadline stopped it between two tries.
func apiError(err error) error {
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("the API server does not have it: %w", err)
	}
	return err
}

// isPod: the runtime may not tell the UID, and tells that of the file for a pod from one.
func isPod(p *corev1.Pod, uid string) bool {
	return uid == "" || slices.Contains(cgroupUIDs(p), uid)
}

// checkPod answers the runtime's CHECK: is a pod that ought to be captured captured?
func (a *Agent) checkPod(ctx context.Context, req *plugin.Request) (plugin.Reply, error) {
	pod, ns, err := a.find(ctx, req)
	if err != nil {
		return plugin.Reply{}, err
	}
	want, reason := Enrol(pod, ns, a.rules)
	if !want {
		return plugin.Reply{Reason: reason}, nil
	}
	unlock, err := a.locks.lock(ctx, string(pod.UID))
	if err != nil {
		return plugin.Reply{}, err
	}
	defer unlock()
	t := a.get(string(pod.UID))
	if t == nil {
		return plugin.Reply{}, fmt.Errorf("pod %q belongs in the mesh and is not captured", req.PodNamespace+"/"+req.PodName)
	}
	if err := a.redirect.Check(ctx, t.pod()); err != nil {
		return plugin.Reply{}, fmt.Errorf("capture of pod %q is incomplete: %w", t.ref(), err)
	}
	return plugin.Reply{Enrolled: true, Reason: reason}, nil
}

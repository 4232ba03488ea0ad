package status

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/workqueue"

	"github.com/ambit-mesh/ambit/istiod/model"
)

const (
	// statusRate and statusBurst bound the requests for statuses, per second: a change of one object is seen at once,
	// and a change of ten thousand leaves the API server and the rest of istiod room to work.
	statusRate  = 40
	statusBurst = 100
	// statusWorkers is how many objects are written at once.
	statusWorkers = 4
	// statusRetryMin and statusRetryMax are the pauses between attempts for one object. The first comes soon, because
	// most failures are conflicts with another writer.
	statusRetryMin = 50 * time.Millisecond
	statusRetryMax = time.Minute
	// listFrom is how many objects of a kind make it cheaper to list them all than to get each when a run begins,
	// and listPage how many one answer holds.
	listFrom = 20
	listPage = 500
	// statusManager is our name in the managed fields of a status.
	statusManager = "istiod-status"
)

// Results of a write, for metrics.
const (
	resultWritten   = "written"
	resultUnchanged = "unchanged"
	resultFailed    = "failed"
)

// ref names an object over all kinds.
type ref struct {
	kind model.Kind
	key  model.Key
}

func (r ref) String() string { return string(r.kind) + " " + r.key.String() }

// Writer writes statuses into their objects. Set and Delete may be called at any time, also while another replica
// leads; Run writes. It holds one status per object, the newest.
type Writer struct {
	client dynamic.Interface
	log    *slog.Logger
	limit  *rate.Limiter
	now    func() time.Time
	writes *prometheus.CounterVec

	mu     sync.Mutex
	wanted map[ref]*model.Status
	queue  workqueue.TypedRateLimitingInterface[ref] // nil while not running
}

// NewWriter makes a Writer that does nothing until Run.
func NewWriter(client dynamic.Interface, log *slog.Logger, metrics prometheus.Registerer) (*Writer, error) {
	w := &Writer{
		client: client, log: log, limit: rate.NewLimiter(statusRate, statusBurst), now: time.Now, wanted: map[ref]*model.Status{},
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istiod_status_writes_total", Help: "Objects whose status was compared with what istiod says of them, by what came of it.",
		}, []string{"kind", "result"}),
	}
	if err := metrics.Register(w.writes); err != nil {
		return nil, fmt.Errorf("register metrics of statuses: %w", err)
	}
	return w, nil
}

// Set makes s what its object should say. An equal status costs nothing.
func (w *Writer) Set(s *model.Status) {
	if _, ok := resourceOf(s.Kind); !ok {
		return
	}
	r := ref{s.Kind, s.Key}
	w.mu.Lock()
	defer w.mu.Unlock()
	if old := w.wanted[r]; old != nil && reflect.DeepEqual(old, s) {
		return
	}
	w.wanted[r] = s
	if w.queue != nil {
		w.queue.Add(r)
	}
}

// Delete forgets an object that is gone.
func (w *Writer) Delete(kind model.Kind, key model.Key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.wanted, ref{kind, key})
}

func (w *Writer) get(r ref) *model.Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.wanted[r]
}

// Run writes until ctx ends. It may be run again after it has returned, as leadership comes and goes.
func (w *Writer) Run(ctx context.Context) error {
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[ref](statusRetryMin, statusRetryMax))
	defer queue.ShutDown()
	defer context.AfterFunc(ctx, queue.ShutDown)()
	before := w.start(queue)
	defer w.start(nil)
	var g errgroup.Group
	g.Go(func() error { w.prime(ctx, queue, before); return nil })
	for range statusWorkers {
		g.Go(func() error {
			for w.next(ctx, queue) {
			}
			return nil
		})
	}
	return g.Wait()
}

// start sets the queue, nil for none, and returns what is wanted by then, by kind.
func (w *Writer) start(queue workqueue.TypedRateLimitingInterface[ref]) map[model.Kind][]ref {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = queue
	out := map[model.Kind][]ref{}
	for r := range w.wanted {
		out[r.kind] = append(out[r.kind], r)
	}
	return out
}

// prime queues what differs in the cluster from what was wanted before the run.
func (w *Writer) prime(ctx context.Context, queue workqueue.TypedRateLimitingInterface[ref], before map[model.Kind][]ref) {
	for kind, refs := range before {
		same := map[ref]bool{}
		if len(refs) >= listFrom {
			var err error
			if same, err = w.unchanged(ctx, kind); err != nil && ctx.Err() == nil {
				w.log.Warn("statuses not compared", "kind", string(kind), "error", err)
			}
		}
		for _, r := range refs {
			if !same[r] {
				queue.Add(r)
			}
		}
	}
}

// unchanged lists the objects of a kind that say what they should.
func (w *Writer) unchanged(ctx context.Context, kind model.Kind) (map[ref]bool, error) {
	res, _ := resourceOf(kind)
	out := map[ref]bool{}
	for page := ""; ; {
		if err := w.limit.Wait(ctx); err != nil {
			return out, err
		}
		list, err := w.client.Resource(res.GroupVersionResource).List(ctx, metav1.ListOptions{Limit: listPage, Continue: page})
		if err != nil {
			return out, fmt.Errorf("list %s: %w", res.Resource, err)
		}
		for i := range list.Items {
			live := &list.Items[i]
			r := ref{kind, model.Key{Namespace: live.GetNamespace(), Name: live.GetName()}}
			if s := w.get(r); s != nil {
				if changed, stale := merge(live, s, res.shape, w.now()); changed == nil && !stale {
					out[r] = true
				}
			}
		}
		if page = list.GetContinue(); page == "" {
			return out, nil
		}
	}
}

// next works on one object; it returns false when there will be none.
func (w *Writer) next(ctx context.Context, queue workqueue.TypedRateLimitingInterface[ref]) bool {
	r, done := queue.Get()
	if done {
		return false
	}
	defer queue.Done(r)
	s := w.get(r)
	if s == nil {
		queue.Forget(r)
		return true
	}
	result, err := w.write(ctx, s)
	switch {
	case ctx.Err() != nil:
	case err == nil:
		queue.Forget(r)
		w.writes.WithLabelValues(string(r.kind), result).Inc()
	case apierrors.IsConflict(err):
		queue.AddRateLimited(r) // somebody wrote in between: read again
	default:
		w.writes.WithLabelValues(string(r.kind), resultFailed).Inc()
		w.log.Warn("status not written", "object", r.String(), "error", err)
		queue.AddRateLimited(r)
	}
	return true
}

// write reads the object and changes its status if that differs.
func (w *Writer) write(ctx context.Context, s *model.Status) (string, error) {
	res, _ := resourceOf(s.Kind)
	at := w.client.Resource(res.GroupVersionResource).Namespace(s.Namespace)
	live, err := w.read(ctx, at, s.Name)
	if apierrors.IsNotFound(err) {
		return resultUnchanged, nil // gone, or its kind is
	}
	if err != nil {
		return "", err
	}
	changed, _ := merge(live, s, res.shape, w.now())
	if changed == nil {
		return resultUnchanged, nil
	}
	// The resource version makes the server refuse the change if somebody else's came first.
	patch, err := json.Marshal(object{"metadata": object{"resourceVersion": live.GetResourceVersion()}, "status": changed})
	if err != nil {
		return "", fmt.Errorf("encode status: %w", err)
	}
	if err := w.limit.Wait(ctx); err != nil {
		return "", err
	}
	_, err = at.Patch(ctx, s.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: statusManager}, "status")
	if apierrors.IsNotFound(err) {
		return resultUnchanged, nil
	}
	if err != nil {
		return "", fmt.Errorf("patch status: %w", err)
	}
	return resultWritten, nil
}

func (w *Writer) read(ctx context.Context, at dynamic.ResourceInterface, name string) (*unstructured.Unstructured, error) {
	if err := w.limit.Wait(ctx); err != nil {
		return nil, err
	}
	live, err := at.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get object: %w", err)
	}
	return live, nil
}

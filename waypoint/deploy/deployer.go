package deploy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
)

const (
	// retryMin and retryMax are the pauses between attempts for one gateway: the API server may be restarting, and an
	// object in the way is looked at again now and then.
	retryMin = 200 * time.Millisecond
	retryMax = time.Minute
	// workers is how many gateways are applied at once. One takes three requests, of some milliseconds each.
	workers = 4
)

// ErrForeign is the error of an object that exists and that no mesh has made.
var ErrForeign = errors.New("exists and was not made for this gateway")

// Config is what a Deployer needs.
type Config struct {
	Client kubernetes.Interface
	// Namespace is istiod's own. It holds the ConfigMaps with defaults of classes.
	Namespace string
	// Options of all gateways; overlays are added for each.
	Options Options
	// Report is told what became of a gateway, each time that it differs. It is called from several goroutines.
	Report func(Report)
	Log    *slog.Logger
}

// Deployer keeps the objects of gateways as they should be. Set and Delete may be called at any time, also while
// another replica leads; Run applies.
type Deployer struct {
	cfg Config

	mu      sync.Mutex
	wanted  map[model.Key]*model.Gateway
	reports map[model.Key]Report
	queue   workqueue.TypedRateLimitingInterface[model.Key] // nil while not running
}

// NewDeployer makes a Deployer that does nothing until Run.
func NewDeployer(cfg Config) *Deployer {
	if cfg.Report == nil {
		cfg.Report = func(Report) {}
	}
	return &Deployer{cfg: cfg, wanted: map[model.Key]*model.Gateway{}, reports: map[model.Key]Report{}}
}

// Set makes g wanted. A Gateway that is not to be deployed (see Managed) is as if deleted.
func (d *Deployer) Set(g *model.Gateway) {
	if !Managed(g) {
		d.Delete(g.Key)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wanted[g.Key] = g
	d.enqueue(g.Key)
}

// Delete forgets a Gateway. Kubernetes removes its objects, which it owns.
func (d *Deployer) Delete(k model.Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.wanted, k)
	delete(d.reports, k)
	d.enqueue(k)
}

// enqueue is called with the lock held.
func (d *Deployer) enqueue(k model.Key) {
	if d.queue != nil {
		d.queue.Add(k)
	}
}

// touch has a gateway looked at again, if it is wanted.
func (d *Deployer) touch(k model.Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.wanted[k] != nil {
		d.enqueue(k)
	}
}

func (d *Deployer) touchAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for k := range d.wanted {
		d.enqueue(k)
	}
}

func (d *Deployer) get(k model.Key) *model.Gateway {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.wanted[k]
}

// report passes on what is new.
func (d *Deployer) report(g *model.Gateway, r Report) {
	d.mu.Lock()
	last, known := d.reports[r.Key]
	fresh := d.wanted[r.Key] == g && (!known || !reflect.DeepEqual(last, r))
	if fresh {
		d.reports[r.Key] = r
	}
	d.mu.Unlock()
	if fresh {
		d.cfg.Report(r)
	}
}

// Run applies what is wanted until ctx ends. It may be run again after it has returned, as leadership comes and goes.
func (d *Deployer) Run(ctx context.Context) error {
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[model.Key](retryMin, retryMax))
	defer queue.ShutDown()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// What is touched before the informers have all is worked on after.
	d.start(queue)
	defer d.start(nil)
	c := newController(d)
	defer c.close()
	ok, err := c.watch(ctx)
	if err != nil || !ok {
		return err
	}
	context.AfterFunc(ctx, queue.ShutDown)
	d.touchAll()
	var g errgroup.Group
	for range workers {
		g.Go(func() error {
			for c.next(ctx, queue) {
			}
			return nil
		})
	}
	return g.Wait()
}

// start sets the queue, nil for none; what the last run reported is reported anew, by who leads then.
func (d *Deployer) start(queue workqueue.TypedRateLimitingInterface[model.Key]) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queue = queue
	d.reports = map[model.Key]Report{}
}

// next works on one gateway; it returns false when there will be none.
func (c *controller) next(ctx context.Context, queue workqueue.TypedRateLimitingInterface[model.Key]) bool {
	key, done := queue.Get()
	if done {
		return false
	}
	defer queue.Done(key)
	g := c.d.get(key)
	if g == nil {
		c.forget(key)
		queue.Forget(key)
		return true
	}
	err := c.reconcile(ctx, g)
	if ctx.Err() != nil {
		return true
	}
	r := Report{Key: key, Generation: g.Generation, Problem: problem(err)}
	c.observe(g, &r)
	c.d.report(g, r)
	switch {
	case err == nil:
		queue.Forget(key)
	case errors.Is(err, ErrParameters):
		queue.Forget(key) // a change of the Gateway or the ConfigMap brings it back
		c.d.cfg.Log.Warn("gateway has invalid parameters", "gateway", key.String(), "error", err)
	default:
		queue.AddRateLimited(key)
		c.d.cfg.Log.Warn("gateway not deployed", "gateway", key.String(), "error", err)
	}
	return true
}

// problem says in Gateway API's words what is wrong (GatewayConditionReason).
func problem(err error) *model.Condition {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrParameters):
		return &model.Condition{Type: string(gatewayv1.GatewayConditionAccepted), Reason: string(gatewayv1.GatewayReasonInvalidParameters), Message: err.Error()}
	case errors.Is(err, ErrForeign):
		return &model.Condition{Type: string(gatewayv1.GatewayConditionProgrammed), Reason: string(gatewayv1.GatewayReasonInvalid), Message: err.Error()}
	}
	return &model.Condition{Type: string(gatewayv1.GatewayConditionProgrammed), Reason: string(gatewayv1.GatewayReasonPending), Message: fmt.Sprintf("not applied yet: %v", err)}
}

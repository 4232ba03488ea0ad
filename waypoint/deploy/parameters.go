package deploy

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"

	"github.com/ambit-mesh/ambit/internal/kube"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// parameters follows the ConfigMaps that gateways refer to, each by a watch of its own: a watch of all ConfigMaps
// would hold the whole cluster's in memory for a handful. Close stops every watch.
type parameters struct {
	client  kubernetes.Interface
	changed func(gateway model.Key)

	mu      sync.Mutex
	refs    map[model.Key][]model.Key // by gateway
	watches map[model.Key]*parameterWatch
}

// parameterWatch is one ConfigMap's; it ends when stop is called.
type parameterWatch struct {
	users map[model.Key]bool
	stop  func()
}

func newParameters(client kubernetes.Interface, changed func(model.Key)) *parameters {
	return &parameters{client: client, changed: changed, refs: map[model.Key][]model.Key{}, watches: map[model.Key]*parameterWatch{}}
}

// use makes refs the ConfigMaps of a gateway.
func (p *parameters) use(gateway model.Key, refs []model.Key) {
	p.mu.Lock()
	var stopped []func()
	for _, old := range p.refs[gateway] {
		w := p.watches[old]
		if slices.Contains(refs, old) {
			continue
		}
		delete(w.users, gateway)
		if len(w.users) == 0 {
			delete(p.watches, old)
			stopped = append(stopped, w.stop)
		}
	}
	if delete(p.refs, gateway); len(refs) > 0 {
		p.refs[gateway] = slices.Clone(refs)
	}
	for _, ref := range refs {
		w, ok := p.watches[ref]
		if !ok {
			w = &parameterWatch{users: map[model.Key]bool{}, stop: p.watch(ref)}
			p.watches[ref] = w
		}
		w.users[gateway] = true
	}
	p.mu.Unlock()
	for _, stop := range stopped {
		stop() // waits for handlers, which take the lock
	}
}

// watch tells of every change of a ConfigMap until its result is called.
func (p *parameters) watch(ref model.Key) func() {
	f := kube.Informers(p.client, informers.WithNamespace(ref.Namespace), informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, ref.Name).String()
	}))
	done := make(chan struct{})
	// The handler cannot fail to register: the informer is new.
	_, _ = f.Core().V1().ConfigMaps().Informer().AddEventHandler(onChange(func(o metav1.Object) {
		if o.GetName() == ref.Name {
			p.notify(ref)
		}
	}))
	f.Start(done)
	return func() {
		close(done)
		f.Shutdown()
	}
}

func (p *parameters) notify(ref model.Key) {
	p.mu.Lock()
	var users []model.Key
	if w := p.watches[ref]; w != nil {
		users = slices.Collect(maps.Keys(w.users))
	}
	p.mu.Unlock()
	for _, u := range users {
		p.changed(u)
	}
}

func (p *parameters) close() {
	p.mu.Lock()
	all := p.watches
	p.watches, p.refs = map[model.Key]*parameterWatch{}, map[model.Key][]model.Key{}
	p.mu.Unlock()
	for _, w := range all {
		w.stop()
	}
}

// references are the ConfigMaps that g names: its class's first, so that its own win.
func references(g *model.Gateway) ([]model.Key, error) {
	var out []model.Key
	for _, ref := range []*model.ObjectRef{g.ClassParameters, g.Parameters} {
		if ref == nil {
			continue
		}
		key := ref.Key
		if key.Namespace == "" && ref == g.Parameters {
			key.Namespace = g.Namespace // a LocalParametersReference
		}
		if ref.Kind != model.KindConfigMap || key.Namespace == "" || key.Name == "" {
			return nil, fmt.Errorf("%w: parametersRef to %s %q: want a ConfigMap", ErrParameters, ref.Kind, key)
		}
		out = append(out, key)
	}
	return out, nil
}

// read gets the ConfigMaps as they are now.
func (p *parameters) read(ctx context.Context, refs []model.Key) ([]Overlay, error) {
	var out []Overlay
	for _, ref := range refs {
		cm, err := p.client.CoreV1().ConfigMaps(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("%w: ConfigMap %q does not exist", ErrParameters, ref)
		}
		if err != nil {
			return nil, fmt.Errorf("get ConfigMap %q: %w", ref, err)
		}
		out = append(out, Overlay{Origin: ref.String(), Data: cm.Data})
	}
	return out, nil
}

// classDefaults are the overlays of a class in istiod's namespace, ordered by name.
func classDefaults(store []any, class string) []Overlay {
	var out []Overlay
	for _, o := range store {
		if cm, ok := o.(*corev1.ConfigMap); ok && cm.Labels[LabelClassDefaults] == class {
			out = append(out, Overlay{Origin: cm.Namespace + "/" + cm.Name, Data: cm.Data})
		}
	}
	slices.SortFunc(out, func(a, b Overlay) int { return strings.Compare(a.Origin, b.Origin) })
	return out
}

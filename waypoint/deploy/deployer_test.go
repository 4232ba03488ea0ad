package deploy

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// world is a Deployer that runs on a fake cluster.
type world struct {
	t      *testing.T
	client *fake.Clientset
	d      *Deployer
	stop   context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	reports []Report
}

func newWorld(t *testing.T, objects ...runtime.Object) *world {
	t.Helper()
	w := &world{t: t, client: fake.NewClientset(objects...)}
	w.d = NewDeployer(Config{
		Client: w.client, Namespace: "istio-system", Options: options(), Log: slog.New(slog.DiscardHandler),
		Report: func(r Report) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.reports = append(w.reports, r)
		},
	})
	return w
}

func (w *world) run() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w.stop, w.done = cancel, make(chan struct{})
	go func() {
		defer close(w.done)
		if err := w.d.Run(ctx); err != nil {
			w.t.Errorf("run: %v", err)
		}
	}()
	w.t.Cleanup(w.end)
}

func (w *world) end() {
	w.stop()
	<-w.done
}

// eventually waits until ok holds.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			w.t.Fatalf("%s: not within 20 s; reports: %+v", what, w.all())
		case <-tick.C:
		}
	}
}

func (w *world) all() []Report {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.reports)
}

func (w *world) last(k model.Key) Report {
	var out Report
	for _, r := range w.all() {
		if r.Key == k {
			out = r
		}
	}
	return out
}

func (w *world) deployment(ns, name string) *appsv1.Deployment {
	d, err := w.client.AppsV1().Deployments(ns).Get(context.Background(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

// applies counts what was sent.
func (w *world) applies() int {
	n := 0
	for _, a := range w.client.Actions() {
		if a.GetVerb() == "patch" {
			n++
		}
	}
	return n
}

// settle gives the Deployment a ready pod and the Service an address, as controllers would.
func (w *world) settle(ns, name string) {
	w.t.Helper()
	w.eventually("Deployment and Service", func() bool {
		_, err := w.client.CoreV1().Services(ns).Get(context.Background(), name, metav1.GetOptions{})
		return err == nil && w.deployment(ns, name) != nil
	})
	d := w.deployment(ns, name)
	d.Status.ReadyReplicas = 1
	if _, err := w.client.AppsV1().Deployments(ns).UpdateStatus(context.Background(), d, metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
	s, err := w.client.CoreV1().Services(ns).Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.0.0.9", []string{"10.0.0.9"}
	if _, err := w.client.CoreV1().Services(ns).Update(context.Background(), s, metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func TestDeploysAndReports(t *testing.T) {
	w := newWorld(t)
	g := waypoint()
	w.d.Set(g) // before it leads
	w.run()
	w.eventually("pending", func() bool { return w.last(g.Key).Programmed().Reason == "Pending" })
	w.settle("shop", "waypoint")
	w.eventually("programmed", func() bool { return w.last(g.Key).Programmed().OK })
	want := Report{
		Key: g.Key, Generation: 1, Ready: 1, Wanted: 1,
		Addresses: []model.GatewayAddress{{Type: "IPAddress", Value: "10.0.0.9"}, {Type: "Hostname", Value: "waypoint.shop.svc.cluster.local"}},
	}
	if diff := cmp.Diff(want, w.last(g.Key)); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	d := w.deployment("shop", "waypoint")
	if !slices.ContainsFunc(d.ManagedFields, func(m metav1.ManagedFieldsEntry) bool {
		return m.Manager == fieldManager && m.Operation == metav1.ManagedFieldsOperationApply
	}) {
		t.Errorf("not applied server-side: %v", d.ManagedFields)
	}
}

func TestLoadBalancerAddress(t *testing.T) {
	w := newWorld(t)
	g := ingress()
	w.d.Set(g)
	w.run()
	w.settle("web", "front-istio")
	w.eventually("waits for an address", func() bool { return w.last(g.Key).Programmed().Reason == "AddressNotAssigned" })
	s, err := w.client.CoreV1().Services("web").Get(t.Context(), "front-istio", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.7"}, {Hostname: "lb.example.org"}}
	if _, err := w.client.CoreV1().Services("web").UpdateStatus(t.Context(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("programmed", func() bool { return w.last(g.Key).Programmed().OK })
	want := []model.GatewayAddress{{Type: "IPAddress", Value: "192.0.2.7"}, {Type: "Hostname", Value: "lb.example.org"}}
	if diff := cmp.Diff(want, w.last(g.Key).Addresses); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

// TestAppliesOnlyDifferences: what is as it should be is not written, however often it is looked at.
func TestAppliesOnlyDifferences(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.d.Set(waypoint())
	w.settle("shop", "waypoint")
	key := waypoint().Key
	w.eventually("programmed", func() bool { return w.last(key).Programmed().OK })
	// The Service's address is a change of its specification, which is applied against once more.
	marker := waypoint(func(g *model.Gateway) { g.Name = "marker" })
	w.d.Set(marker)
	w.eventually("marker", func() bool { return w.last(marker.Key).Key == marker.Key })
	w.client.ClearActions()
	for i := range 100 {
		g := waypoint(func(g *model.Gateway) { g.Generation = int64(i + 2) })
		w.d.Set(g)
		w.eventually("looked at", func() bool { return w.last(key).Generation == g.Generation })
	}
	if n := w.applies(); n != 0 {
		t.Errorf("%d objects applied, want none", n)
	}
	w.d.Set(waypoint(note(annotationReplicas, "2"), func(g *model.Gateway) { g.Generation = 200 }))
	w.eventually("two replicas", func() bool {
		d := w.deployment("shop", "waypoint")
		return d.Spec.Replicas != nil && *d.Spec.Replicas == 2
	})
	w.eventually("report", func() bool { return w.last(key).Generation == 200 })
	if n := w.applies(); n != 2 { // the Deployment and a budget; replicas are in no other object
		for _, a := range w.client.Actions() {
			t.Log(a.GetVerb(), a.GetResource().Resource)
		}
		t.Errorf("%d objects applied, want 2", n)
	}
}

func TestRepairs(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.d.Set(waypoint())
	w.settle("shop", "waypoint")
	w.eventually("programmed", func() bool { return w.last(waypoint().Key).Programmed().OK })
	d := w.deployment("shop", "waypoint")
	d.Spec.Template.Spec.Containers[0].Image = "evil"
	if _, err := w.client.AppsV1().Deployments("shop").Update(t.Context(), d, metav1.UpdateOptions{FieldManager: "someone"}); err != nil {
		t.Fatal(err)
	}
	w.eventually("image", func() bool {
		return w.deployment("shop", "waypoint").Spec.Template.Spec.Containers[0].Image == options().Image
	})
	if err := w.client.AppsV1().Deployments("shop").Delete(t.Context(), "waypoint", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("made again", func() bool { return w.deployment("shop", "waypoint") != nil })
}

// TestLeavesForeignObjects: what has our name and no mesh's label is somebody's.
func TestLeavesForeignObjects(t *testing.T) {
	theirs := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "waypoint"}, Spec: corev1.ServiceSpec{ClusterIP: "10.0.0.1"}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "waypoint"}}
	w := newWorld(t, theirs, account)
	w.run()
	w.d.Set(waypoint())
	w.eventually("problem", func() bool { return w.last(waypoint().Key).Problem != nil })
	p := w.last(waypoint().Key).Programmed()
	if p.OK || p.Reason != "Invalid" || p.Message != `Service "waypoint" in namespace "shop" exists and was not made for this gateway` {
		t.Errorf("programmed: %+v", p)
	}
	got, err := w.client.CoreV1().Services("shop").Get(t.Context(), "waypoint", metav1.GetOptions{})
	if err != nil || len(got.Labels) != 0 || len(got.Spec.Ports) != 0 {
		t.Errorf("their Service: %+v, %v", got, err)
	}
	if sa, err := w.client.CoreV1().ServiceAccounts("shop").Get(t.Context(), "waypoint", metav1.GetOptions{}); err != nil || len(sa.Labels) != 0 {
		t.Errorf("their account: %+v, %v", sa, err)
	}
}

// TestTwoGatewaysOneName: the second does not take the first one's Deployment.
func TestTwoGatewaysOneName(t *testing.T) {
	w := newWorld(t)
	w.run()
	first := waypoint()
	w.d.Set(first)
	w.settle("shop", "waypoint")
	w.eventually("first", func() bool { return w.last(first.Key).Programmed().OK })
	second := waypoint(note(annotationName, "waypoint"), func(g *model.Gateway) { g.Name, g.UID = "second", "u-9" })
	w.d.Set(second)
	w.eventually("second refused", func() bool { return w.last(second.Key).Problem != nil })
	if got := w.deployment("shop", "waypoint").Labels[LabelGateway]; got != "waypoint" {
		t.Errorf("Deployment belongs to %q", got)
	}
}

func TestParameters(t *testing.T) {
	w := newWorld(t)
	w.run()
	g := waypoint(func(g *model.Gateway) {
		g.Parameters = &model.ObjectRef{Kind: model.KindConfigMap, Key: model.Key{Name: "params"}}
	})
	w.d.Set(g)
	w.eventually("missing", func() bool { return w.last(g.Key).Problem != nil })
	if p := w.last(g.Key).Problem; p.Type != "Accepted" || p.Reason != "InvalidParameters" {
		t.Errorf("problem: %+v", p)
	}
	replicas := func(n int32) func() bool {
		return func() bool {
			d := w.deployment("shop", "waypoint")
			return d != nil && d.Spec.Replicas != nil && *d.Spec.Replicas == n
		}
	}
	configMaps := w.client.CoreV1().ConfigMaps("shop")
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "params"}, Data: map[string]string{"deployment": "spec: {replicas: 3}"}}
	if _, err := configMaps.Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("created", replicas(3))
	w.eventually("problem is over", func() bool { return w.last(g.Key).Problem == nil })
	w.eventually("budget", func() bool {
		_, err := w.client.PolicyV1().PodDisruptionBudgets("shop").Get(t.Context(), "waypoint", metav1.GetOptions{})
		return err == nil
	})
	cm = cm.DeepCopy()
	cm.Data["deployment"] = "spec: {replicas: 1}"
	if _, err := configMaps.Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("changed", replicas(1))
	w.eventually("budget removed", func() bool {
		_, err := w.client.PolicyV1().PodDisruptionBudgets("shop").Get(t.Context(), "waypoint", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	cm = cm.DeepCopy()
	cm.Data["deployment"] = "spec: {replica: 1}"
	if _, err := configMaps.Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("bad", func() bool { return w.last(g.Key).Problem != nil })
	if d := w.deployment("shop", "waypoint"); d == nil {
		t.Error("a bad ConfigMap removed the Deployment")
	}
}

// TestDefaultsOfClass: a labelled ConfigMap of istiod's namespace changes all gateways of its class, and a gateway's
// own parameters go before it.
func TestDefaultsOfClass(t *testing.T) {
	w := newWorld(t,
		&corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "d", Labels: map[string]string{LabelClassDefaults: "istio-waypoint"}},
			Data:       map[string]string{"deployment": "spec: {replicas: 2, minReadySeconds: 7}"},
		},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "own"}, Data: map[string]string{"deployment": "spec: {replicas: 5}"}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "infra", Name: "class"}, Data: map[string]string{"deployment": "spec: {replicas: 4, revisionHistoryLimit: 3}"}},
	)
	w.run()
	w.d.Set(waypoint(func(g *model.Gateway) {
		g.ClassParameters = &model.ObjectRef{Kind: model.KindConfigMap, Key: model.Key{Namespace: "infra", Name: "class"}}
		g.Parameters = &model.ObjectRef{Kind: model.KindConfigMap, Key: model.Key{Name: "own"}}
	}))
	w.d.Set(ingress())
	w.eventually("both", func() bool {
		return w.deployment("shop", "waypoint") != nil && w.deployment("web", "front-istio") != nil
	})
	d := w.deployment("shop", "waypoint")
	got := []int32{*d.Spec.Replicas, d.Spec.MinReadySeconds, *d.Spec.RevisionHistoryLimit}
	if diff := cmp.Diff([]int32{5, 7, 3}, got); diff != "" {
		t.Errorf("replicas, minReadySeconds, revisionHistoryLimit (-want +got):\n%s", diff)
	}
	if other := w.deployment("web", "front-istio"); other.Spec.Replicas != nil {
		t.Errorf("another class got the defaults: %d replicas", *other.Spec.Replicas)
	}
}

// TestRetries: an API server that fails is asked again until it does not.
func TestRetries(t *testing.T) {
	w := newWorld(t)
	var failures atomic.Int32
	w.client.PrependReactor("patch", "services", func(ktesting.Action) (bool, runtime.Object, error) {
		if failures.Add(1) <= 2 {
			return true, nil, apierrors.NewInternalError(errors.New("etcd is away"))
		}
		return false, nil, nil
	})
	w.run()
	w.d.Set(waypoint())
	w.eventually("service", func() bool {
		_, err := w.client.CoreV1().Services("shop").Get(t.Context(), "waypoint", metav1.GetOptions{})
		return err == nil
	})
	w.eventually("problem is over", func() bool { r := w.last(waypoint().Key); return r.Key.Name != "" && r.Problem == nil })
	if !slices.ContainsFunc(w.all(), func(r Report) bool { return r.Problem != nil && r.Problem.Reason == "Pending" }) {
		t.Errorf("the failure was not reported: %+v", w.all())
	}
}

// TestLeadershipComesBack: a second run works and reports again; what changed between is applied.
func TestLeadershipComesBack(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.d.Set(waypoint())
	w.eventually("first", func() bool { return w.last(waypoint().Key).Key.Name != "" })
	w.end()
	w.mu.Lock()
	w.reports = nil
	w.mu.Unlock()
	w.d.Set(waypoint(note(annotationReplicas, "3"), func(g *model.Gateway) { g.Generation = 2 }))
	if d := w.deployment("shop", "waypoint"); d.Spec.Replicas != nil {
		t.Fatal("applied without leading")
	}
	w.run()
	w.eventually("second", func() bool { return w.last(waypoint().Key).Generation == 2 })
	if d := w.deployment("shop", "waypoint"); d.Spec.Replicas == nil || *d.Spec.Replicas != 3 {
		t.Errorf("replicas %v, want 3", d.Spec.Replicas)
	}
}

func TestReferences(t *testing.T) {
	for _, tc := range []struct {
		name       string
		class, own *model.ObjectRef
		want       []model.Key
		bad        bool
	}{
		{"none", nil, nil, nil, false},
		{"own", nil, &model.ObjectRef{Kind: "ConfigMap", Key: model.Key{Name: "a"}}, []model.Key{{Namespace: "shop", Name: "a"}}, false},
		{"class first", &model.ObjectRef{Kind: "ConfigMap", Key: model.Key{Namespace: "x", Name: "c"}},
			&model.ObjectRef{Kind: "ConfigMap", Key: model.Key{Name: "a"}}, []model.Key{{Namespace: "x", Name: "c"}, {Namespace: "shop", Name: "a"}}, false},
		{"class without namespace", &model.ObjectRef{Kind: "ConfigMap", Key: model.Key{Name: "c"}}, nil, nil, true},
		{"secret", nil, &model.ObjectRef{Kind: "Secret", Key: model.Key{Name: "a"}}, nil, true},
	} {
		g := waypoint(func(g *model.Gateway) { g.ClassParameters, g.Parameters = tc.class, tc.own })
		got, err := references(g)
		if diff := cmp.Diff(tc.want, got); diff != "" || (err != nil) != tc.bad || (err != nil && !errors.Is(err, ErrParameters)) {
			t.Errorf("%s: got %v, %v", tc.name, got, err)
		}
	}
}

// TestParameterWatchesEnd: a ConfigMap is watched while a gateway refers to it, once for all of them.
func TestParameterWatchesEnd(t *testing.T) {
	client := fake.NewClientset()
	p := newParameters(client, func(model.Key) {})
	a, b := model.Key{Namespace: "shop", Name: "a"}, model.Key{Namespace: "shop", Name: "b"}
	x, y := model.Key{Namespace: "shop", Name: "x"}, model.Key{Namespace: "shop", Name: "y"}
	watched := func() []model.Key {
		p.mu.Lock()
		defer p.mu.Unlock()
		return slices.SortedFunc(maps.Keys(p.watches), func(a, b model.Key) int { return strings.Compare(a.String(), b.String()) })
	}
	steps := []struct {
		do   func()
		want []model.Key
	}{
		{func() { p.use(a, []model.Key{x}) }, []model.Key{x}},
		{func() { p.use(b, []model.Key{x, y}) }, []model.Key{x, y}},
		{func() { p.use(a, nil) }, []model.Key{x, y}},
		{func() { p.use(b, []model.Key{y}) }, []model.Key{y}},
		{func() { p.use(a, []model.Key{x}) }, []model.Key{x, y}},
		{p.close, nil},
	}
	for i, s := range steps {
		s.do()
		if diff := cmp.Diff(s.want, watched()); diff != "" {
			t.Errorf("step %d: watched (-want +got):\n%s", i, diff)
		}
	}
}

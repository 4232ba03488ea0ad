package status

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	ktesting "k8s.io/client-go/testing"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// bench is a Writer that runs on a fake cluster.
type bench struct {
	*testing.T
	client *dynamicfake.FakeDynamicClient
	w      *Writer
	stop   func()
}

func newBench(t *testing.T, objects ...runtime.Object) *bench {
	t.Helper()
	// The fake would guess that several gateways are gatewaies, so objects are added under their right name.
	gateways, _ := resourceOf(model.KindGateway)
	classes, _ := resourceOf(model.KindGatewayClass)
	b := &bench{T: t, client: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		gateways.GroupVersionResource: "GatewayList", classes.GroupVersionResource: "GatewayClassList",
	})}
	for _, o := range objects {
		raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			t.Fatal(err)
		}
		u := &unstructured.Unstructured{Object: raw}
		at := gateways.GroupVersionResource
		if u.GetKind() == "GatewayClass" {
			at = classes.GroupVersionResource
		}
		if err := b.client.Tracker().Create(at, u, u.GetNamespace()); err != nil {
			t.Fatal(err)
		}
	}
	w, err := NewWriter(b.client, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	b.w = w
	return b
}

func (b *bench) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := b.w.Run(ctx); err != nil {
			b.Errorf("run: %v", err)
		}
	}()
	b.stop = func() { cancel(); <-done }
	b.Cleanup(b.stop)
}

func (b *bench) eventually(what string, ok func() bool) {
	b.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			b.Fatalf("%s: not within 20 s", what)
		case <-tick.C:
		}
	}
}

// count is how many requests of a kind were made.
func (b *bench) count(verb string) int {
	n := 0
	for _, a := range b.client.Actions() {
		if a.GetVerb() == verb {
			n++
		}
	}
	return n
}

func (b *bench) message(kind model.Kind, name string) string {
	res, _ := resourceOf(kind)
	o, err := b.client.Resource(res.GroupVersionResource).Namespace("shop").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		return ""
	}
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	if len(conditions) == 0 {
		return ""
	}
	return conditions[0].(map[string]any)["message"].(string)
}

func gateway(name string) *gatewayv1.Gateway {
	return &gatewayv1.Gateway{
		TypeMeta: metav1.TypeMeta{APIVersion: "gateway.networking.k8s.io/v1", Kind: "Gateway"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Generation: 1},
	}
}

func accepted(name, message string) *model.Status {
	return &model.Status{Meta: meta(model.KindGateway, name, 1), Conditions: []model.Condition{yes("Accepted", "Accepted", message)}}
}

func TestWritesStatus(t *testing.T) {
	b := newBench(t, gateway("g"))
	b.w.Set(accepted("g", "before it leads"))
	b.run()
	b.eventually("first", func() bool { return b.message(model.KindGateway, "g") == "before it leads" })
	b.w.Set(accepted("g", "while it leads"))
	b.eventually("second", func() bool { return b.message(model.KindGateway, "g") == "while it leads" })
	for _, a := range b.client.Actions() {
		if p, ok := a.(ktesting.PatchAction); ok && (p.GetSubresource() != "status" || !strings.Contains(string(p.GetPatch()), "resourceVersion")) {
			t.Errorf("patch of %q without guard: %s", p.GetSubresource(), p.GetPatch())
		}
	}
}

// TestNoWriteStorm: a thousand identical statuses are no write, and a thousand different ones of one object few.
func TestNoWriteStorm(t *testing.T) {
	b := newBench(t, gateway("g"), gateway("marker"))
	b.run()
	b.w.Set(accepted("g", "same"))
	b.eventually("written", func() bool { return b.message(model.KindGateway, "g") == "same" })
	b.client.ClearActions()
	for range 1000 {
		b.w.Set(accepted("g", "same"))
	}
	b.w.Set(accepted("marker", "m")) // comes after all that the thousand could have caused
	b.eventually("marker", func() bool { return b.message(model.KindGateway, "marker") == "m" })
	if n := b.count("patch"); n != 1 {
		t.Errorf("%d writes, want that of the marker only", n)
	}
	b.client.ClearActions()
	for i := range 1000 {
		b.w.Set(accepted("g", fmt.Sprint(i)))
	}
	b.eventually("newest", func() bool { return b.message(model.KindGateway, "g") == "999" })
	if n := b.count("patch"); n > statusBurst {
		t.Errorf("%d writes of one object at once, want at most %d", n, statusBurst)
	}
}

// TestRightStatusIsNotWritten: a new leader finds everything as it should be, and lists instead of asking for each.
func TestRightStatusIsNotWritten(t *testing.T) {
	const n = 100
	var objects []runtime.Object
	for i := range n {
		g := gateway(fmt.Sprint("g", i))
		g.Status.Conditions = []metav1.Condition{{Type: "Accepted", Status: "True", Reason: "Accepted", Message: "right", ObservedGeneration: 1, LastTransitionTime: metav1.Now()}}
		if i == 42 {
			g.Status.Conditions[0].Message = "wrong"
		}
		objects = append(objects, g)
	}
	b := newBench(t, objects...)
	for i := range n {
		b.w.Set(accepted(fmt.Sprint("g", i), "right"))
	}
	b.run()
	b.eventually("repaired", func() bool { return b.message(model.KindGateway, "g42") == "right" })
	b.stop()
	if got := []int{b.count("list"), b.count("patch")}; !cmp.Equal(got, []int{1, 1}) {
		t.Errorf("lists and patches %v, want one of each", got)
	}
}

// TestConflict: whoever writes at the same time wins, and then we read again.
func TestConflict(t *testing.T) {
	b := newBench(t, gateway("g"))
	var n atomic.Int32
	b.client.PrependReactor("patch", "gateways", func(ktesting.Action) (bool, runtime.Object, error) {
		if n.Add(1) <= 3 {
			return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "gateways"}, "g", errors.New("changed"))
		}
		return false, nil, nil
	})
	b.run()
	b.w.Set(accepted("g", "m"))
	b.eventually("written", func() bool { return b.message(model.KindGateway, "g") == "m" })
	if reads := b.count("get"); reads < 4 {
		t.Errorf("%d reads for 4 attempts", reads)
	}
}

// TestFailureIsRetried, and other objects do not wait for it.
func TestFailureIsRetried(t *testing.T) {
	b := newBench(t, gateway("bad"), gateway("good"))
	var healed atomic.Bool
	b.client.PrependReactor("patch", "gateways", func(a ktesting.Action) (bool, runtime.Object, error) {
		if a.(ktesting.PatchAction).GetName() == "bad" && !healed.Load() {
			return true, nil, apierrors.NewInternalError(errors.New("webhook is away"))
		}
		return false, nil, nil
	})
	b.run()
	b.w.Set(accepted("bad", "m"))
	b.w.Set(accepted("good", "m"))
	b.eventually("good", func() bool { return b.message(model.KindGateway, "good") == "m" })
	healed.Store(true)
	b.eventually("bad", func() bool { return b.message(model.KindGateway, "bad") == "m" })
}

// TestGoneAndUnknown: an object that is gone, or whose kind is not ours, is no error and no request without end.
func TestGoneAndUnknown(t *testing.T) {
	b := newBench(t, gateway("marker"))
	b.run()
	b.w.Set(accepted("gone", "m"))
	b.w.Set(&model.Status{Meta: meta("Pod", "p", 1), Conditions: []model.Condition{yes("Accepted", "A", "")}})
	b.eventually("looked for", func() bool { return b.count("get") == 1 })
	b.w.Set(accepted("marker", "m"))
	b.eventually("marker", func() bool { return b.message(model.KindGateway, "marker") == "m" })
	if n := b.count("patch"); n != 1 {
		t.Errorf("%d patches, want the marker's", n)
	}
	b.w.Delete(model.KindGateway, model.Key{Namespace: "shop", Name: "gone"})
	if s := b.w.get(ref{model.KindGateway, model.Key{Namespace: "shop", Name: "gone"}}); s != nil {
		t.Error("a deleted object's status is held")
	}
}

// TestLeadershipReturns: between runs nothing is written, after that the newest.
func TestLeadershipReturns(t *testing.T) {
	b := newBench(t, gateway("g"))
	b.run()
	b.w.Set(accepted("g", "1"))
	b.eventually("first", func() bool { return b.message(model.KindGateway, "g") == "1" })
	b.stop()
	b.w.Set(accepted("g", "2"))
	b.w.Set(accepted("g", "3"))
	if m := b.message(model.KindGateway, "g"); m != "1" {
		t.Fatalf("written without leading: %q", m)
	}
	b.client.ClearActions()
	b.run()
	b.eventually("newest", func() bool { return b.message(model.KindGateway, "g") == "3" })
	if n := b.count("patch"); n != 1 {
		t.Errorf("%d writes, want one", n)
	}
}

// TestClasses: made when the kind appears, made again when deleted, and otherwise left alone.
func TestClasses(t *testing.T) {
	theirs := &gatewayv1.GatewayClass{
		TypeMeta:   metav1.TypeMeta{APIVersion: "gateway.networking.k8s.io/v1", Kind: "GatewayClass"},
		ObjectMeta: metav1.ObjectMeta{Name: GatewayClass}, Spec: gatewayv1.GatewayClassSpec{ControllerName: "example.org/theirs"},
	}
	b := newBench(t, theirs)
	var missing atomic.Bool
	missing.Store(true)
	b.client.PrependReactor("create", "gatewayclasses", func(ktesting.Action) (bool, runtime.Object, error) {
		if missing.Load() {
			return true, nil, apierrors.NewNotFound(schema.GroupResource{Group: groupGateway, Resource: "gatewayclasses"}, "")
		}
		return false, nil, nil
	})
	c := NewClasses(b.client, slog.New(slog.DiscardHandler))
	if err := c.ensure(t.Context()); !apierrors.IsNotFound(err) {
		t.Fatalf("kind not installed: %v", err)
	}
	missing.Store(false)
	for range 2 {
		if err := c.ensure(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	res, _ := resourceOf(model.KindGatewayClass)
	got := map[string]string{}
	list, err := b.client.Resource(res.GroupVersionResource).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range list.Items {
		got[o.GetName()], _, _ = unstructured.NestedString(o.Object, "spec", "controllerName")
	}
	if diff := cmp.Diff(map[string]string{GatewayClass: "example.org/theirs", WaypointClass: WaypointController}, got); diff != "" {
		t.Errorf("classes (-want +got):\n%s", diff)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	if err := b.client.Resource(res.GroupVersionResource).Delete(t.Context(), WaypointClass, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	go func() { done <- c.Run(ctx) }()
	b.eventually("made again", func() bool {
		_, err := b.client.Resource(res.GroupVersionResource).Get(t.Context(), WaypointClass, metav1.GetOptions{})
		return err == nil
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

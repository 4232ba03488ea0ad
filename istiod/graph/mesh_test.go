package graph

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/watch"
)

// listening records what layer 7 is told.
func listening(g *Graph) *Changes {
	got := newChanges()
	g.Listen(func(c Changes) {
		for k := range c.Services {
			got.Services[k] = struct{}{}
		}
		for k := range c.Endpoints {
			got.Endpoints[k] = struct{}{}
		}
		for k := range c.Namespaces {
			got.Namespaces[k] = struct{}{}
		}
		for k := range c.PodsIn {
			got.PodsIn[k] = struct{}{}
		}
	})
	return &got
}

func key(ns, name string) model.Key { return model.Key{Namespace: ns, Name: name} }

func TestListenerHearsWhatChanged(t *testing.T) {
	g, _ := newGraph(t)
	got := listening(g)
	clear := func() { *got = newChanges() }
	g.Handle(serviceEvent("a", "web", map[string]string{"app": "web"}, 80))
	g.Handle(serviceEvent("a", "other", map[string]string{"app": "other"}, 80))
	g.Synced()
	clear()
	pod := podEvent("a", "web-1", "10.0.0.1", "n1", map[string]string{"app": "web"})
	g.Handle(pod)
	want := newChanges()
	want.Endpoints[key("a", "web")] = struct{}{}
	want.PodsIn["a"] = struct{}{}
	if diff := cmp.Diff(want, *got); diff != "" {
		t.Errorf("a pod comes (-want +got):\n%s", diff)
	}
	clear()
	g.Handle(pod)
	if !got.empty() {
		t.Errorf("a pod that did not change: %+v", *got)
	}
	// A pod that changes its labels touches the service that it leaves and the one that it joins.
	g.Handle(podEvent("a", "web-1", "10.0.0.1", "n1", map[string]string{"app": "other"}))
	if len(got.Endpoints) != 2 {
		t.Errorf("a pod changes sides: %+v", *got)
	}
	clear()
	g.Handle(namespaceEvent("a", map[string]string{"team": "x"}))
	if len(got.Namespaces) != 1 {
		t.Errorf("a namespace gets a label: %+v", *got)
	}
	clear()
	g.Handle(event(model.KindNode, &corev1.Node{ObjectMeta: meta("", "n1", map[string]string{"topology.kubernetes.io/region": "r"})}))
	if len(got.Endpoints) != 1 {
		t.Errorf("a node moves: %+v", *got)
	}
}

func TestEndpoints(t *testing.T) {
	g, _ := newGraph(t)
	g.Handle(serviceEvent("a", "web", map[string]string{"app": "web"}, 80))
	g.Handle(podEvent("a", "web-2", "10.0.0.2", "n1", map[string]string{"app": "web"}))
	g.Handle(podEvent("a", "web-1", "10.0.0.1", "n1", map[string]string{"app": "web"}))
	g.Handle(podEvent("a", "other", "10.0.0.3", "n1", map[string]string{"app": "other"}))
	g.Handle(serviceEvent("a", "manual", nil, 80))
	port, name, ready := int32(9090), "http", true
	g.Handle(event(model.KindEndpointSlice, &discoveryv1.EndpointSlice{
		ObjectMeta:  meta("a", "manual-1", map[string]string{discoveryv1.LabelServiceName: "manual"}),
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"192.0.2.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}},
			{Addresses: []string{"10.0.0.3"}},
		},
	}))
	g.Synced()
	var got []string
	for _, e := range g.Endpoints(key("a", "web")) {
		got = append(got, e.Pod.Name)
	}
	if want := []string{"web-1", "web-2"}; !slices.Equal(got, want) {
		t.Errorf("endpoints %v, want %v", got, want)
	}
	manual := g.Endpoints(key("a", "manual"))
	if len(manual) != 2 || manual[0].Pod == nil || manual[0].Pod.Name != "other" || manual[1].Pod != nil || manual[1].Address != netip.MustParseAddr("192.0.2.1") {
		t.Fatalf("endpoints by hand: %+v", manual)
	}
	for _, e := range manual {
		if n, ok := e.Target(model.ServicePort{Name: "http", Port: 80, Target: 80}); !ok || n != 9090 {
			t.Errorf("port %d of %v, want that of the slice", n, e.Address)
		}
	}
	if g.Endpoints(key("a", "nobody")) != nil {
		t.Error("endpoints of a service that does not exist")
	}
}

func TestTargetPort(t *testing.T) {
	pod := &model.Pod{TCPPorts: map[string]uint16{"http": 8080}}
	e := Endpoint{Pod: pod}
	for _, c := range []struct {
		port model.ServicePort
		want uint16
		ok   bool
	}{
		{model.ServicePort{Port: 80, Target: 81}, 81, true},
		{model.ServicePort{Port: 80, TargetName: "http"}, 8080, true},
		{model.ServicePort{Port: 80, TargetName: "grpc"}, 0, false},
	} {
		if got, ok := e.Target(c.port); got != c.want || ok != c.ok {
			t.Errorf("%+v: %d, %v", c.port, got, ok)
		}
	}
}

// labelled is a service with labels and annotations.
func labelled(ns, name string, labels, annotations map[string]string) watch.Event {
	s := &corev1.Service{ObjectMeta: meta(ns, name, labels), Spec: corev1.ServiceSpec{
		ClusterIP: "10.96.0.7", Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}}}
	s.Annotations = annotations
	return event(model.KindService, s)
}

func TestBinding(t *testing.T) {
	use, canary := ports.LabelUseWaypoint, "istio.io/use-waypoint-canary"
	weight := "istio.io/use-waypoint-canary-weight"
	for name, c := range map[string]struct {
		namespace, labels, annotations map[string]string
		waypoint, canary, reason       string
		weight                         uint32
		ingress                        bool
	}{
		"none":                {},
		"namespace":           {namespace: map[string]string{use: "w"}, waypoint: "w"},
		"opted out":           {namespace: map[string]string{use: "w"}, labels: map[string]string{use: "none"}},
		"not there":           {labels: map[string]string{use: "x"}, reason: ReasonNotReady},
		"for workloads":       {labels: map[string]string{use: "pods"}, reason: ReasonTrafficType},
		"of another":          {labels: map[string]string{use: "far", "istio.io/use-waypoint-namespace": "b"}, reason: ReasonDenied},
		"of another, allowed": {labels: map[string]string{use: "shared", "istio.io/use-waypoint-namespace": "b"}, waypoint: "shared"},
		"ingress":             {labels: map[string]string{use: "w", "istio.io/ingress-use-waypoint": "true"}, waypoint: "w", ingress: true},
		"ingress of the namespace, refused": {namespace: map[string]string{use: "w", "istio.io/ingress-use-waypoint": "true"},
			labels: map[string]string{"istio.io/ingress-use-waypoint": "false"}, waypoint: "w"},
		"canary":                  {labels: map[string]string{use: "w", canary: "v"}, annotations: map[string]string{weight: "30"}, waypoint: "w", canary: "v", weight: 30},
		"canary of the namespace": {namespace: map[string]string{use: "w", canary: "v"}, waypoint: "w", canary: "v"},
		"canary itself":           {labels: map[string]string{use: "w", canary: "w"}, waypoint: "w", reason: ReasonCanaryPrimary},
		"canary of bad weight": {labels: map[string]string{use: "w", canary: "v"}, annotations: map[string]string{weight: "lots"},
			waypoint: "w", reason: ReasonCanaryWeight},
		"canary not there": {labels: map[string]string{use: "w", canary: "x"}, waypoint: "w", reason: ReasonNotReady},
	} {
		t.Run(name, func(t *testing.T) {
			g, _ := newGraph(t)
			g.Handle(namespaceEvent("a", c.namespace))
			g.Handle(labelled("a", "web", c.labels, c.annotations))
			for _, w := range []*model.Waypoint{
				{Key: key("a", "w")}, {Key: key("a", "v")}, {Key: key("a", "pods"), For: model.TrafficWorkload},
				{Key: key("b", "far")}, {Key: key("b", "shared"), Namespaces: map[string]bool{"a": true}},
			} {
				w.Hostname, w.HBONEPort = w.Name+"."+w.Namespace+".svc.cluster.local", ports.HBONE
				g.SetWaypoint(w.Key, w)
			}
			g.Synced()
			b := g.Binding(key("a", "web"))
			got := func(w *model.Waypoint) string {
				if w == nil {
					return ""
				}
				return w.Name
			}
			if got(b.Waypoint) != c.waypoint || got(b.Canary) != c.canary || b.Reason != c.reason || b.CanaryWeight != c.weight || b.Ingress != c.ingress {
				t.Errorf("got %+v", b)
			}
			if (b.Message == "") != (b.Reason == "") {
				t.Errorf("reason %q with message %q", b.Reason, b.Message)
			}
		})
	}
}

// A waypoint that comes and goes touches the services that name it, as primary or canary, and no others.
func TestWaypointTouchesItsServices(t *testing.T) {
	g, _ := newGraph(t)
	got := listening(g)
	g.Handle(namespaceEvent("a", nil))
	g.Handle(labelled("a", "one", map[string]string{ports.LabelUseWaypoint: "w"}, nil))
	g.Handle(labelled("a", "two", map[string]string{ports.LabelUseWaypoint: "v", "istio.io/use-waypoint-canary": "w"}, nil))
	g.Handle(labelled("a", "three", nil, nil))
	g.Synced()
	*got = newChanges()
	g.SetWaypoint(key("a", "w"), &model.Waypoint{Key: key("a", "w"), Hostname: "w.a.svc.cluster.local"})
	if _, three := got.Services[key("a", "three")]; len(got.Services) != 2 || three {
		t.Errorf("touched %v", got.Services)
	}
}

func TestServiceEntriesReachZtunnels(t *testing.T) {
	g, sink := newGraph(t)
	g.Handle(namespaceEvent("a", nil))
	g.Synced()
	entries := func() []string {
		var out []string
		for name := range sink.state {
			if strings.HasPrefix(name, ports.TypeAddress) {
				out = append(out, strings.TrimPrefix(name, ports.TypeAddress+" "))
			}
		}
		slices.Sort(out)
		return out
	}
	e := &model.ServiceEntry{
		Meta: model.Meta{Key: key("a", "ext")}, Hosts: []string{"x.example.com"}, Resolution: model.ResolveStatic,
		Addresses: []netip.Prefix{netip.MustParsePrefix("240.0.0.1/32")}, Ports: []model.ServicePort{{Name: "http", Port: 80}},
		Endpoints: []model.EntryEndpoint{{Address: netip.MustParseAddr("192.0.2.1")}},
	}
	g.SetEntry(e.Key, e)
	if want := []string{"a/x.example.com", "c/networking.istio.io/ServiceEntry/a/ext/192.0.2.1"}; !slices.Equal(entries(), want) {
		t.Errorf("static: %v, want %v", entries(), want)
	}
	// A name that DNS resolves is passed on as the client asked for it, unless a waypoint stands before it.
	dns := *e
	dns.Resolution, dns.Endpoints = model.ResolveDNS, nil
	dns.Waypoint = model.WaypointRef{Key: key("a", "w")}
	g.SetEntry(e.Key, &dns)
	if got := entries(); len(got) != 0 {
		t.Errorf("dns without waypoint: %v", got)
	}
	g.SetWaypoint(key("a", "w"), &model.Waypoint{Key: key("a", "w"), Hostname: "w.a.svc.cluster.local", HBONEPort: ports.HBONE, Ready: true})
	if got := entries(); len(got) != 0 {
		t.Errorf("dns with a waypoint that does not know it: %v", got)
	}
	g.SetServed(key("a", "w"), []string{"a/x.example.com"}, true)
	if want := []string{"a/x.example.com"}; !slices.Equal(entries(), want) {
		t.Errorf("dns with waypoint: %v, want %v", entries(), want)
	}
	g.SetEntry(e.Key, nil)
	if got := entries(); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func TestPodsUsingAWaypoint(t *testing.T) {
	g, _ := newGraph(t)
	g.Handle(namespaceEvent("a", map[string]string{ports.LabelUseWaypoint: "w"}))
	g.Handle(podEvent("a", "in", "10.0.0.1", "n1", nil))
	g.Handle(podEvent("a", "out", "10.0.0.2", "n1", map[string]string{ports.LabelUseWaypoint: "none"}))
	g.SetWaypoint(key("a", "w"), &model.Waypoint{Key: key("a", "w"), For: model.TrafficAll})
	g.Synced()
	if got := g.PodsUsing(key("a", "w")); len(got) != 1 || got[0].Name != "in" {
		t.Errorf("got %v", got)
	}
}

// Ztunnels hear of a service's waypoint when it can take traffic and knows the service, and not before.
func TestWaypointIsToldWhenItServes(t *testing.T) {
	g, _ := newGraph(t)
	g.Handle(namespaceEvent("a", map[string]string{ports.LabelUseWaypoint: "w"}))
	g.Handle(labelled("a", "web", nil, nil))
	g.Synced()
	told := func() bool { return g.service(t, "a", "web").GetWaypoint() != nil }
	w := &model.Waypoint{Key: key("a", "w"), Hostname: "w.a.svc.cluster.local", HBONEPort: ports.HBONE}
	g.SetWaypoint(w.Key, w)
	if g.Binding(key("a", "web")).Waypoint == nil {
		t.Error("layer 7 does not know of a waypoint that is not ready")
	}
	name := []string{"a/web.a.svc.cluster.local"}
	g.SetServed(w.Key, name, true)
	if told() {
		t.Error("told of a waypoint that is not ready")
	}
	ready := *w
	ready.Ready = true
	g.SetWaypoint(w.Key, &ready)
	if !told() {
		t.Error("not told of a waypoint that serves")
	}
	g.SetServed(w.Key, name, false)
	if told() {
		t.Error("told of a waypoint that serves no more")
	}
	g.SetServed(w.Key, name, true)
	g.SetWaypoint(w.Key, nil)
	g.SetWaypoint(w.Key, &ready)
	if told() {
		t.Error("a waypoint that was made anew serves what the old one did")
	}
}

// service is what ztunnels are told of a service.
func (g *Graph) service(t *testing.T, ns, name string) *workload.Service {
	t.Helper()
	r := g.outputs[ports.TypeAddress][ns+"/"+name+"."+ns+".svc.cluster.local"]
	if r == nil {
		t.Fatalf("nothing is told of service %s/%s", ns, name)
	}
	a := &workload.Address{}
	if err := proto.Unmarshal(r.Content(), a); err != nil {
		t.Fatal(err)
	}
	return a.GetService()
}

// Package waypoint makes, lists and removes waypoints for the command-line tool,
// which alone calls it. A waypoint is a Gateway of class istio-waypoint; istiod
// deploys it and says in its status how far it is.
//
// What always holds: only Gateways of that class are touched; applying twice is
// harmless; what somebody else set on a Gateway or a namespace is changed only
// with overwrite. The package does not deploy, and prints nothing.
package waypoint

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayclient "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"

	"github.com/ambit-mesh/ambit/api/ports"
)

const (
	// Class is the GatewayClass of waypoints.
	Class = "istio-waypoint"
	// DefaultName is the name of a namespace's waypoint unless the user says otherwise; Istio's.
	DefaultName = "waypoint"
	// LabelFor says which traffic a waypoint is for.
	LabelFor = "istio.io/waypoint-for"
	// defaultFor is what a waypoint without that label is for.
	defaultFor = "service"
	// none is the value of a use-waypoint label that means no waypoint, and so no waypoint's name.
	none = "none"
	// GatewayAPI is the version of the Gateway API that the mesh is tested with.
	GatewayAPI = "v1.6.3"
	// fieldManager is our name in the managed fields of what we apply.
	fieldManager = "ambit"
)

// Errors that callers have advice for.
var (
	ErrNoGatewayAPI = errors.New("the Gateway API is not installed")
	ErrTaken        = errors.New("is set by somebody else")
)

// Traffic lists the values of the label that says what a waypoint is for.
func Traffic() []string { return []string{"service", "workload", "all", none} }

// Gateway returns the Gateway of a waypoint. traffic may be empty: then the mesh's default holds.
func Gateway(namespace, name, traffic string) (*gatewayv1.Gateway, error) {
	if name == none {
		return nil, fmt.Errorf("make waypoint %q: the name means no waypoint in the label %s", name, ports.LabelUseWaypoint)
	}
	if problems := validation.IsDNS1035Label(name); len(problems) > 0 { // it names a Service too
		return nil, fmt.Errorf("make waypoint %q: %s", name, problems[0])
	}
	g := &gatewayv1.Gateway{
		TypeMeta:   metav1.TypeMeta{APIVersion: gatewayv1.GroupVersion.String(), Kind: "Gateway"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: gatewayv1.GatewaySpec{
			GatewayClassName: Class,
			Listeners:        []gatewayv1.Listener{{Name: "mesh", Port: ports.HBONE, Protocol: "HBONE"}},
		},
	}
	if traffic != "" {
		if !slices.Contains(Traffic(), traffic) {
			return nil, fmt.Errorf("make waypoint %q: unknown traffic %q: want %s", name, traffic, strings.Join(Traffic(), ", "))
		}
		g.Labels = map[string]string{LabelFor: traffic}
	}
	return g, nil
}

// Manifest is a Gateway as a user would write it, without what only the API server fills in.
func Manifest(g *gatewayv1.Gateway) (map[string]any, error) {
	raw, err := json.Marshal(g)
	if err != nil {
		return nil, fmt.Errorf("encode gateway %q: %w", g.Name, err)
	}
	out := map[string]any{}
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, fmt.Errorf("decode gateway %q: %w", g.Name, err)
	}
	delete(out, "status")
	meta, _ := out["metadata"].(map[string]any)
	delete(meta, "creationTimestamp")
	if meta["namespace"] == "" {
		delete(meta, "namespace")
	}
	return out, nil
}

// Client works on the waypoints of a cluster.
type Client struct {
	Kube     kubernetes.Interface
	Gateways gatewayclient.Interface
}

// explain turns the answer of a server that does not know the kind into ErrNoGatewayAPI.
func explain(err error) error {
	if apierrors.IsNotFound(err) && strings.Contains(err.Error(), "could not find the requested resource") {
		return ErrNoGatewayAPI
	}
	return err
}

// Apply makes the Gateway, or changes it, and says which: created, configured or unchanged.
func (c *Client) Apply(ctx context.Context, g *gatewayv1.Gateway, overwrite bool) (*gatewayv1.Gateway, string, error) {
	api := c.Gateways.GatewayV1().Gateways(g.Namespace)
	before, err := api.Get(ctx, g.Name, metav1.GetOptions{})
	switch {
	case err == nil && before.Spec.GatewayClassName != Class:
		return nil, "", fmt.Errorf("apply waypoint %s/%s: there is a Gateway of that name and of class %q", g.Namespace, g.Name, before.Spec.GatewayClassName)
	case err != nil && (!apierrors.IsNotFound(err) || errors.Is(explain(err), ErrNoGatewayAPI)):
		return nil, "", fmt.Errorf("apply waypoint %s/%s: %w", g.Namespace, g.Name, explain(err))
	}
	created := err != nil
	manifest, err := Manifest(g)
	if err != nil {
		return nil, "", err
	}
	raw, err := json.Marshal(manifest)
	if err != nil {
		return nil, "", fmt.Errorf("encode gateway %q: %w", g.Name, err)
	}
	after, err := api.Patch(ctx, g.Name, types.ApplyPatchType, raw, metav1.PatchOptions{FieldManager: fieldManager, Force: &overwrite})
	switch {
	case apierrors.IsConflict(err):
		return nil, "", fmt.Errorf("apply waypoint %s/%s: a field %w: %w", g.Namespace, g.Name, ErrTaken, err)
	case err != nil:
		return nil, "", fmt.Errorf("apply waypoint %s/%s: %w", g.Namespace, g.Name, explain(err))
	case created:
		return after, "created", nil
	case after.Generation == before.Generation && maps.Equal(after.Labels, before.Labels):
		return after, "unchanged", nil
	}
	return after, "configured", nil
}

// HasClass tells whether the mesh's class exists: without it nobody deploys the waypoint.
func (c *Client) HasClass(ctx context.Context) (bool, error) {
	_, err := c.Gateways.GatewayV1().GatewayClasses().Get(ctx, Class, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && !errors.Is(explain(err), ErrNoGatewayAPI) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get GatewayClass %q: %w", Class, explain(err))
	}
	return true, nil
}

// Namespace tells how a namespace stands: whether its pods are in the mesh, and which waypoint it names.
type Namespace struct {
	Ambient  bool
	Waypoint string
}

// Look reads a namespace's labels.
func (c *Client) Look(ctx context.Context, namespace string) (Namespace, error) {
	ns, err := c.Kube.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	if err != nil {
		return Namespace{}, fmt.Errorf("get namespace %q: %w", namespace, err)
	}
	return Namespace{Ambient: ns.Labels[ports.LabelDataplaneMode] == ports.DataplaneModeAmbient, Waypoint: ns.Labels[ports.LabelUseWaypoint]}, nil
}

// Enroll makes a namespace name its waypoint, in place of another one only with overwrite. It reports whether that
// was a change.
func (c *Client) Enroll(ctx context.Context, namespace, name string, overwrite bool) (bool, error) {
	ns, err := c.Look(ctx, namespace)
	if err != nil {
		return false, err
	}
	switch {
	case ns.Waypoint == name:
		return false, nil
	case ns.Waypoint != "" && !overwrite:
		return false, fmt.Errorf("enroll namespace %q: label %s=%s %w", namespace, ports.LabelUseWaypoint, ns.Waypoint, ErrTaken)
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]string{ports.LabelUseWaypoint: name}}})
	if err != nil {
		return false, fmt.Errorf("encode label: %w", err)
	}
	_, err = c.Kube.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	if err != nil {
		return false, fmt.Errorf("enroll namespace %q: %w", namespace, err)
	}
	return true, nil
}

// Waypoint is how a waypoint stands, as list and status print it.
type Waypoint struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	For       string   `json:"for"`
	Addresses []string `json:"addresses,omitempty"`
	// Programmed is True, False or Unknown, for the Gateway as it is now.
	Programmed string `json:"programmed"`
	Reason     string `json:"reason,omitempty"`
	Message    string `json:"message,omitempty"`
}

// Ready tells that the waypoint works.
func (w Waypoint) Ready() bool { return w.Programmed == string(metav1.ConditionTrue) }

func (w Waypoint) String() string { return w.Namespace + "/" + w.Name }

// State says in words how far the waypoint is.
func (w Waypoint) State() string {
	if w.Ready() {
		return "ready"
	}
	out := "not ready"
	if w.Reason != "" {
		out += ": " + w.Reason
	}
	if w.Message != "" {
		out += ": " + w.Message
	}
	return out
}

// Of reads a Gateway's status. A condition about an earlier generation says nothing about this one.
func Of(g *gatewayv1.Gateway) Waypoint {
	w := Waypoint{Namespace: g.Namespace, Name: g.Name, For: cmp.Or(g.Labels[LabelFor], defaultFor), Programmed: string(metav1.ConditionUnknown)}
	for _, a := range g.Status.Addresses {
		w.Addresses = append(w.Addresses, a.Value)
	}
	var refused *metav1.Condition
	for i := range g.Status.Conditions {
		c := &g.Status.Conditions[i]
		switch {
		case c.ObservedGeneration < g.Generation:
		case c.Type == string(gatewayv1.GatewayConditionProgrammed):
			w.Programmed, w.Reason, w.Message = string(c.Status), c.Reason, c.Message
		case c.Type == string(gatewayv1.GatewayConditionAccepted) && c.Status == metav1.ConditionFalse:
			refused = c
		}
	}
	if refused != nil { // why it is not accepted says more than that it is not programmed
		w.Programmed, w.Reason, w.Message = string(metav1.ConditionFalse), refused.Reason, refused.Message
	}
	return w
}

// List returns the waypoints of a namespace, or of all if it is empty, ordered by name.
func (c *Client) List(ctx context.Context, namespace string) ([]Waypoint, error) {
	list, err := c.Gateways.GatewayV1().Gateways(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list waypoints: %w", explain(err))
	}
	out := []Waypoint{}
	for i := range list.Items {
		if list.Items[i].Spec.GatewayClassName == Class {
			out = append(out, Of(&list.Items[i]))
		}
	}
	slices.SortFunc(out, func(a, b Waypoint) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return out, nil
}

// Delete removes one waypoint.
func (c *Client) Delete(ctx context.Context, namespace, name string) error {
	api := c.Gateways.GatewayV1().Gateways(namespace)
	g, err := api.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("delete waypoint %s/%s: %w", namespace, name, explain(err))
	}
	if g.Spec.GatewayClassName != Class {
		return fmt.Errorf("delete waypoint %s/%s: the Gateway is of class %q, so it is no waypoint", namespace, name, g.Spec.GatewayClassName)
	}
	uid := g.UID
	if err := api.Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}); err != nil {
		return fmt.Errorf("delete waypoint %s/%s: %w", namespace, name, explain(err))
	}
	return nil
}

// User is who names a waypoint in its label.
type User struct{ Kind, Namespace, Name string }

func (u User) String() string {
	if u.Namespace == "" {
		return u.Kind + " " + u.Name
	}
	return u.Kind + " " + u.Namespace + "/" + u.Name
}

// Kubectl is how kubectl names it.
func (u User) Kubectl() string {
	if u.Namespace == "" {
		return u.Kind + " " + u.Name
	}
	return "-n " + u.Namespace + " " + u.Kind + " " + u.Name
}

// Users lists the namespaces and services that name a waypoint.
func (c *Client) Users(ctx context.Context, namespace, name string) ([]User, error) {
	chosen := metav1.ListOptions{LabelSelector: ports.LabelUseWaypoint + "=" + name}
	here := func(labels map[string]string, own string) bool {
		return cmp.Or(labels[ports.LabelUseWaypointNamespace], own) == namespace
	}
	var out []User
	spaces, err := c.Kube.CoreV1().Namespaces().List(ctx, chosen)
	if err != nil {
		return nil, fmt.Errorf("list namespaces that use waypoint %s/%s: %w", namespace, name, err)
	}
	for _, ns := range spaces.Items {
		if here(ns.Labels, ns.Name) {
			out = append(out, User{Kind: "namespace", Name: ns.Name})
		}
	}
	services, err := c.Kube.CoreV1().Services(metav1.NamespaceAll).List(ctx, chosen)
	if err != nil {
		return out, fmt.Errorf("list services that use waypoint %s/%s: %w", namespace, name, err)
	}
	for _, s := range services.Items {
		if here(s.Labels, s.Namespace) {
			out = append(out, User{Kind: "service", Namespace: s.Namespace, Name: s.Name})
		}
	}
	return out, nil
}

package status

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
)

const (
	// classesMissing is how often the classes are tried for while they are not there: the Gateway API may be installed
	// after the mesh, and then its user waits.
	classesMissing = 3 * time.Second
	// classesThere is how often they are looked for once made: somebody may delete one.
	classesThere = 30 * time.Second
)

// Names of the classes that every cluster has, and of their controllers; all are Istio's.
const (
	GatewayClass       = "istio"
	WaypointClass      = "istio-waypoint"
	WaypointController = "istio.io/mesh-controller"
)

// Classes keeps the mesh's GatewayClasses in the cluster. One that exists is left as it is, so that its owner may
// change it.
type Classes struct {
	client dynamic.Interface
	log    *slog.Logger
}

// NewClasses makes a keeper that does nothing until Run.
func NewClasses(client dynamic.Interface, log *slog.Logger) *Classes {
	return &Classes{client: client, log: log}
}

// Run makes the classes, and makes them again if they go, until ctx ends.
func (c *Classes) Run(ctx context.Context) error {
	t := time.NewTimer(0)
	defer t.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		wait, reason := classesThere, ""
		if err := c.ensure(ctx); err != nil {
			wait, reason = classesMissing, err.Error()
		}
		if reason != last && reason != "" && ctx.Err() == nil {
			c.log.Info("gateway classes not made yet", "reason", reason)
		}
		last = reason
		t.Reset(wait)
	}
}

func (c *Classes) ensure(ctx context.Context) error {
	res, _ := resourceOf("GatewayClass")
	api := c.client.Resource(res.GroupVersionResource)
	for _, class := range []struct{ name, controller, description string }{
		{GatewayClass, ControllerName, "Gateways of the mesh, deployed from a Gateway"},
		{WaypointClass, WaypointController, "Waypoints: layer 7 for the services of a namespace"},
	} {
		_, err := api.Get(ctx, class.name, metav1.GetOptions{})
		if err == nil {
			continue
		}
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("get GatewayClass %q: %w", class.name, err)
		}
		_, err = api.Create(ctx, &unstructured.Unstructured{Object: object{
			"apiVersion": groupGateway + "/v1", "kind": "GatewayClass", "metadata": object{"name": class.name},
			"spec": object{"controllerName": class.controller, "description": class.description},
		}}, metav1.CreateOptions{FieldManager: statusManager})
		if apierrors.IsAlreadyExists(err) {
			continue
		}
		if err != nil { // not found means that the kind is not installed
			return fmt.Errorf("create GatewayClass %q: %w", class.name, err)
		}
		c.log.Info("gateway class made", "name", class.name)
	}
	return nil
}

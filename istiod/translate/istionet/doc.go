// Package istionet turns Istio's traffic objects (networking.istio.io) into
// istiod's model: VirtualService, DestinationRule, ServiceEntry and Gateway.
// Package layer7 calls it for each object that it is told of, and resolves the
// result.
//
// What always holds: translations are pure functions and never panic; the input is
// not changed. An object with anything wrong in it gives no result but an error
// that names every field which is wrong, so that the caller keeps the last good
// form. Which values are wrong follows Istio's own validation
// (pkg/config/validation), so that what Istio takes is taken here; where a field
// has no counterpart in the model and leaving it out would let more through than
// the user wrote, it is an error to set it.
//
// It looks nothing up: whether a destination, subset, delegate, Secret or gateway
// exists is for layer7 to say. Short host names are made full in the object's own
// namespace, as Istio does. The namespace of an Istio Gateway's credentials stays
// empty unless the reference names one: it is that of the proxy's pods.
package istionet

import (
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// object is what is shared by the translation of one object: constants, its namespace, and what is wrong so far.
type object struct {
	cfg  translate.Config
	meta model.Meta
	errs []error
}

func newObject(cfg translate.Config, kind model.Kind, o metav1.Object) *object {
	return &object{cfg: cfg, meta: model.Meta{
		Kind:       kind,
		Key:        model.Key{Namespace: o.GetNamespace(), Name: o.GetName()},
		UID:        string(o.GetUID()),
		Created:    o.GetCreationTimestamp().Time,
		Generation: o.GetGeneration(),
	}}
}

// fail records what is wrong with a field.
func (o *object) fail(field, format string, args ...any) {
	o.errs = append(o.errs, fmt.Errorf(field+": "+format, args...))
}

// err gives everything that is wrong, or nil.
func (o *object) err(kind string) error {
	if len(o.errs) == 0 {
		return nil
	}
	return fmt.Errorf("read %s %q: %w", kind, o.meta.Key, errors.Join(o.errs...))
}

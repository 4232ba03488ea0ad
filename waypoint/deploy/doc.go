// Package deploy makes the workloads of gateways: from a Gateway of one of the
// mesh's classes a Deployment, a Service, a ServiceAccount and, where asked for,
// a HorizontalPodAutoscaler and a PodDisruptionBudget. Istiod's wiring calls it,
// on the replica that leads.
//
// Objects is pure: the same Gateway, options and overlays give the same objects.
// The Deployer applies them server-side and watches what became of them.
//
// What always holds: every object is owned by its Gateway, so that Kubernetes
// removes it when the Gateway goes and nothing here deletes anything but a
// budget or autoscaler that is no longer wanted; an object that exists and was
// not made by a mesh is left alone; an object is applied only when it differs;
// a user's overlay can change everything but an object's name, namespace and
// owners. Names, labels and annotations are Istio's, so that a mesh of either
// kind finds and adopts what the other made.
//
// It does not decide what a proxy does, and writes no status: it reports.
package deploy

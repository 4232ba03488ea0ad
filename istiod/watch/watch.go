// Package watch is where istiod's input comes from: one stream of typed events
// from either of two sources, a Kubernetes API server or a directory of the same
// YAML. app.go makes one source and hands its events to package graph.
//
// What always holds: events of one object arrive in order and hold the newest
// object in full; Synced is called once, after every object that existed at the
// start has been delivered; a source that loses its origin keeps what it
// delivered and goes on trying; a bad object disturbs no other.
//
// It does not look into objects (translate does) and writes nothing.
package watch

import (
	"context"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// Event is one object that exists in a new form or no longer.
type Event struct {
	Kind model.Kind
	Key  model.Key
	// Object is the API object, such as *corev1.Pod; nil when it was deleted. It must not be changed.
	Object any
	// Origin says where the object is written down, for people: empty for Kubernetes, else a file.
	Origin string
}

// Handler receives events, one at a time.
type Handler interface {
	Handle(Event)
	// Synced is called once, when all that existed at the start has been delivered.
	Synced()
}

// Source delivers events until its context ends.
type Source interface {
	Run(context.Context, Handler) error
	// Conditions tells what is missing or wrong, for readiness and debug pages; empty when all is well.
	Conditions() []Condition
}

// Condition is something about the source that its operator should know.
type Condition struct {
	// Object is what it concerns: a kind, or a file and the document in it.
	Object string `json:"object"`
	Reason string `json:"reason"`
}

package graph

import (
	"github.com/ambit-mesh/ambit/istiod/model"
)

// set is a set of keys.
type set map[model.Key]struct{}

// multimap maps to sets of keys and keeps no empty ones.
type multimap[K comparable] map[K]set

func (m multimap[K]) add(k K, v model.Key) {
	s := m[k]
	if s == nil {
		s = set{}
		m[k] = s
	}
	s[v] = struct{}{}
}

func (m multimap[K]) remove(k K, v model.Key) {
	s := m[k]
	delete(s, v)
	if len(s) == 0 {
		delete(m, k)
	}
}

// label is one label of an object, or one requirement of a selector, in a namespace.
type label struct{ namespace, name, value string }

// matches tells whether labels have all that the selector requires.
func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// labelIndex finds the pods that a selector chooses.
type labelIndex struct {
	byLabel     multimap[label]
	byNamespace multimap[string]
}

func newLabelIndex() labelIndex {
	return labelIndex{byLabel: multimap[label]{}, byNamespace: multimap[string]{}}
}

func (x labelIndex) add(k model.Key, labels map[string]string) {
	x.byNamespace.add(k.Namespace, k)
	for n, v := range labels {
		x.byLabel.add(label{k.Namespace, n, v}, k)
	}
}

func (x labelIndex) remove(k model.Key, labels map[string]string) {
	x.byNamespace.remove(k.Namespace, k)
	for n, v := range labels {
		x.byLabel.remove(label{k.Namespace, n, v}, k)
	}
}

// candidates returns the smallest indexed set that contains all pods of the
// namespace which the selector chooses; the caller checks the rest of the selector.
func (x labelIndex) candidates(namespace string, selector map[string]string) set {
	best := x.byNamespace[namespace]
	for n, v := range selector {
		if s := x.byLabel[label{namespace, n, v}]; len(s) < len(best) {
			best = s
		}
	}
	return best
}

// selectorIndex finds the selectors that choose a pod. Each selector is filed
// under one of its requirements, the least, so that a pod looks only at those
// filed under its own labels.
type selectorIndex struct {
	byLabel multimap[label]
}

func newSelectorIndex() selectorIndex { return selectorIndex{byLabel: multimap[label]{}} }

func (x selectorIndex) add(k model.Key, selector map[string]string) {
	if len(selector) > 0 {
		x.byLabel.add(filedUnder(k.Namespace, selector), k)
	}
}

func (x selectorIndex) remove(k model.Key, selector map[string]string) {
	if len(selector) > 0 {
		x.byLabel.remove(filedUnder(k.Namespace, selector), k)
	}
}

// candidates calls f for each selector of the namespace that may choose a pod with these labels.
func (x selectorIndex) candidates(namespace string, labels map[string]string, f func(model.Key)) {
	for n, v := range labels {
		for k := range x.byLabel[label{namespace, n, v}] {
			f(k)
		}
	}
}

func filedUnder(namespace string, selector map[string]string) label {
	out := label{namespace: namespace}
	for n, v := range selector {
		if out.name == "" || n < out.name {
			out.name, out.value = n, v
		}
	}
	return out
}

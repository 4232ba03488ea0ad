package v1alpha1

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// DeepCopyObject implements runtime.Object.
func (in *RateLimit) DeepCopyObject() runtime.Object {
	if in == nil {
		return nil
	}
	return in.DeepCopy()
}

// DeepCopyObject implements runtime.Object.
func (in *RateLimitList) DeepCopyObject() runtime.Object {
	if in == nil {
		return nil
	}
	return in.DeepCopy()
}

// DeepCopy shares nothing with the original.
func (in *RateLimitList) DeepCopy() *RateLimitList {
	if in == nil {
		return nil
	}
	out := *in
	in.ListMeta.DeepCopyInto(&out.ListMeta)
	out.Items = copies(in.Items, func(r RateLimit) RateLimit { return *r.DeepCopy() })
	return &out
}

// DeepCopy shares nothing with the original.
func (in *RateLimit) DeepCopy() *RateLimit {
	if in == nil {
		return nil
	}
	out := *in
	in.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Spec = in.Spec.copy()
	out.Status.Conditions = copies(in.Status.Conditions, func(c metav1.Condition) metav1.Condition { return *c.DeepCopy() })
	return &out
}

func (in RateLimitSpec) copy() RateLimitSpec {
	in.TargetRefs = slices.Clone(in.TargetRefs)
	in.Local = copies(in.Local, LocalLimit.copy)
	if in.Global != nil {
		global := *in.Global
		global.Timeout = pointer(global.Timeout)
		global.Descriptors = copies(global.Descriptors, func(d Descriptor) Descriptor { return Descriptor{Entries: slices.Clone(d.Entries)} })
		in.Global = &global
	}
	return in
}

func (in LocalLimit) copy() LocalLimit {
	in.Match = copies(in.Match, func(m Match) Match {
		m.Path = pointer(m.Path)
		m.Headers = slices.Clone(m.Headers)
		m.Sources = slices.Clone(m.Sources)
		return m
	})
	in.Burst, in.Status = pointer(in.Burst), pointer(in.Status)
	return in
}

func pointer[T any](in *T) *T {
	if in == nil {
		return nil
	}
	out := *in
	return &out
}

// copies copies every element; nil stays nil.
func copies[T any](in []T, one func(T) T) []T {
	if in == nil {
		return nil
	}
	out := make([]T, len(in))
	for i, v := range in {
		out[i] = one(v)
	}
	return out
}

package conformance

import (
	"context"
	"encoding/json"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// assignInterval is how often the Services are looked at.
const assignInterval = 200 * time.Millisecond

// Balancer hands out addresses to Services of type LoadBalancer, as a cloud's
// controller does: kube-proxy then answers on them, on the node that the range is
// routed to. It stands in for the cluster's missing part, not for the mesh's.
type Balancer struct {
	client client.Client
	prefix netip.Prefix
	next   netip.Addr
	taken  map[netip.Addr]client.ObjectKey
	by     map[client.ObjectKey]netip.Addr
}

// NewBalancer hands out addresses of prefix.
func NewBalancer(c client.Client, prefix netip.Prefix) *Balancer {
	usable, _ := (&Balancer{prefix: prefix}).Reserved()
	return &Balancer{client: c, prefix: prefix, next: usable.Next(), taken: map[netip.Addr]client.ObjectKey{}, by: map[client.ObjectKey]netip.Addr{}}
}

// Reserved are an address for who asks for one, and one that nobody can have.
func (b *Balancer) Reserved() (usable, unusable netip.Addr) {
	return b.prefix.Masked().Addr().Next(), netip.AddrFrom4([4]byte{192, 0, 2, 1}) // RFC 5737: never assigned
}

// IPAddress is an address as a Gateway asks for it.
func IPAddress(a netip.Addr) []gwv1.GatewaySpecAddress {
	kind := gwv1.IPAddressType
	return []gwv1.GatewaySpecAddress{{Type: &kind, Value: a.String()}}
}

// Run looks at all Services again and again. There are a few dozen.
func (b *Balancer) Run(ctx context.Context, logf func(string, ...any)) {
	tick := time.NewTicker(assignInterval)
	defer tick.Stop()
	for {
		services := &corev1.ServiceList{}
		err := b.client.List(ctx, services)
		if err == nil {
			err = b.assign(ctx, services.Items)
		}
		if err != nil && ctx.Err() == nil {
			logf("hand out addresses: %v", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (b *Balancer) assign(ctx context.Context, services []corev1.Service) error {
	seen := map[client.ObjectKey]bool{}
	for i := range services {
		s := &services[i]
		if s.Spec.Type != corev1.ServiceTypeLoadBalancer || s.DeletionTimestamp != nil {
			continue
		}
		key := client.ObjectKeyFromObject(s)
		seen[key] = true
		a, ok := b.pick(s)
		if !ok || len(s.Status.LoadBalancer.Ingress) == 1 && s.Status.LoadBalancer.Ingress[0].IP == a.String() {
			continue
		}
		patch, err := json.Marshal(map[string]any{"status": corev1.ServiceStatus{
			LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: a.String()}}}}})
		if err != nil {
			return err
		}
		if err := b.client.Status().Patch(ctx, s, client.RawPatch("application/merge-patch+json", patch)); client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	for key, a := range b.by {
		if !seen[key] {
			delete(b.by, key)
			delete(b.taken, a)
		}
	}
	return nil
}

// pick returns the address that the Service asks for, if it can have that, else the next free one.
func (b *Balancer) pick(s *corev1.Service) (netip.Addr, bool) {
	key := client.ObjectKeyFromObject(s)
	if asked, err := netip.ParseAddr(s.Spec.LoadBalancerIP); err == nil {
		if holder, ok := b.taken[asked]; !b.prefix.Contains(asked) || ok && holder != key {
			return netip.Addr{}, false
		}
		b.take(key, asked)
		return asked, true
	}
	if a, ok := b.by[key]; ok {
		return a, true
	}
	if in := s.Status.LoadBalancer.Ingress; len(in) == 1 { // of an earlier run
		if a, err := netip.ParseAddr(in[0].IP); err == nil && b.prefix.Contains(a) {
			if _, ok := b.taken[a]; !ok {
				b.take(key, a)
				return a, true
			}
		}
	}
	for a := b.next; b.prefix.Contains(a); a = a.Next() {
		if _, ok := b.taken[a]; !ok {
			b.take(key, a)
			return a, true
		}
	}
	return netip.Addr{}, false
}

func (b *Balancer) take(key client.ObjectKey, a netip.Addr) {
	if old, ok := b.by[key]; ok {
		delete(b.taken, old)
	}
	b.taken[a], b.by[key] = key, a
}

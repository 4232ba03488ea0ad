package push

import (
	"context"
	"slices"
	"strings"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// Directory holds the caches of waypoints and gateways, each of which sees its own
// only. Package layer7 fills it; the server finds in it what a stream is served.
type Directory struct {
	mu      sync.Mutex
	proxies map[model.Key]*proxy
	// known is closed, and made anew, when a proxy becomes known.
	known chan struct{}
	// dirty are caches with changes to publish.
	dirty map[*Cache]struct{}
	wake  chan struct{}
}

// proxy is one waypoint or gateway.
type proxy struct {
	cache *Cache
	// account is the service account of its pods; nobody may connect before it is registered.
	account    string
	registered bool
	gone       chan struct{}
}

// NewDirectory returns an empty directory.
func NewDirectory() *Directory {
	return &Directory{
		proxies: map[model.Key]*proxy{}, known: make(chan struct{}),
		dirty: map[*Cache]struct{}{}, wake: make(chan struct{}, 1),
	}
}

// Cache returns the cache of k, and makes it if there is none. It serves nothing
// before its own Synced, and nobody before Register.
func (d *Directory) Cache(k model.Key) *Cache {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.proxy(k).cache
}

func (d *Directory) proxy(k model.Key) *proxy {
	p := d.proxies[k]
	if p == nil {
		c := NewCache(EnvoyTypes()...)
		c.changed = func() { d.publishSoon(c) }
		p = &proxy{cache: c, gone: make(chan struct{})}
		d.proxies[k] = p
	}
	return p
}

func (d *Directory) publishSoon(c *Cache) {
	d.mu.Lock()
	d.dirty[c] = struct{}{}
	d.mu.Unlock()
	poke(d.wake)
}

// Register says which service account, of the proxy's own namespace, its pods run
// as. If that changes, the streams of the former account end.
func (d *Directory) Register(k model.Key, serviceAccount string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.proxy(k)
	if p.registered && p.account == serviceAccount {
		return
	}
	if p.registered {
		close(p.gone)
		p.gone = make(chan struct{})
	}
	p.account, p.registered = serviceAccount, true
	close(d.known)
	d.known = make(chan struct{})
}

// Get returns the cache of k, or nil.
func (d *Directory) Get(k model.Key) *Cache {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.proxies[k]; p != nil {
		return p.cache
	}
	return nil
}

// Remove forgets a proxy and ends its streams. Its Envoys go on with what they hold.
func (d *Directory) Remove(k model.Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.proxies[k]; p != nil {
		close(p.gone)
		delete(d.dirty, p.cache)
		delete(d.proxies, k)
	}
}

// Keys lists the proxies in order.
func (d *Directory) Keys() []model.Key {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]model.Key, 0, len(d.proxies))
	for k := range d.proxies {
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b model.Key) int {
		if a.Less(b) {
			return -1
		}
		if b.Less(a) {
			return 1
		}
		return 0
	})
	return out
}

// Run publishes the changes of every cache in batches until ctx ends.
func (d *Directory) Run(ctx context.Context) error { return runBatches(ctx, d.wake, d.publish) }

func (d *Directory) publish() {
	d.mu.Lock()
	dirty := d.dirty
	d.dirty = map[*Cache]struct{}{}
	d.mu.Unlock()
	for c := range dirty {
		c.publish()
	}
}

// Select is for Config.Select: it finds the Gateway that a node names, waits until
// it is known, and checks that the caller is one of its pods. Nodes of other
// proxies are left to the server.
func (d *Directory) Select(ctx context.Context, node *core.Node, caller *Caller) (*View, error) {
	k := model.Key{Namespace: metadata(node, "NAMESPACE"), Name: metadata(node, "GATEWAY_NAME")}
	switch {
	case !isEnvoy(node):
		return nil, nil
	case k.Name == "" || k.Namespace == "":
		return nil, status.Error(codes.InvalidArgument, "the node's metadata has no GATEWAY_NAME or no NAMESPACE")
	case caller != nil && caller.Namespace != k.Namespace:
		return nil, status.Errorf(codes.PermissionDenied, "gateway %q is not of the credentials' namespace", k)
	}
	for {
		p, known := d.lookup(k)
		if p.registered {
			if caller != nil && caller.ServiceAccount != p.account {
				return nil, status.Errorf(codes.PermissionDenied, "service account %q is not that of gateway %q", caller.ServiceAccount, k)
			}
			return EnvoyView(k, p.cache, p.gone), nil
		}
		select {
		case <-known:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (d *Directory) lookup(k model.Key) (proxy, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.proxies[k]; p != nil {
		return *p, d.known
	}
	return proxy{}, d.known
}

// isEnvoy tells waypoints and gateways from ztunnels: by what they name, and by the form of Istio's node ids.
func isEnvoy(n *core.Node) bool {
	kind, _, _ := strings.Cut(n.GetId(), "~")
	return metadata(n, "GATEWAY_NAME") != "" || kind == "waypoint" || kind == "router"
}

package httpconn

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// Resolver looks a name up once and keeps the address: the address of a Service does not change, and the load is
// meant for connections, not for DNS. The zero value is ready. It is safe for concurrent use.
type Resolver struct {
	mu    sync.Mutex
	known map[string]string
}

// Resolve turns host:port into address:port.
func (r *Resolver) Resolve(ctx context.Context, hostPort string) (string, error) {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return "", fmt.Errorf("resolve %q: %w", hostPort, err)
	}
	if net.ParseIP(host) != nil {
		return hostPort, nil
	}
	r.mu.Lock()
	address, ok := r.known[host]
	r.mu.Unlock()
	if !ok {
		addresses, err := net.DefaultResolver.LookupHost(ctx, host)
		if err != nil {
			return "", fmt.Errorf("resolve %q: %w", host, err)
		}
		address = addresses[0]
		r.mu.Lock()
		if r.known == nil {
			r.known = map[string]string{}
		}
		r.known[host] = address
		r.mu.Unlock()
	}
	return net.JoinHostPort(address, port), nil
}

// Package pushtest is a delta xDS client for tests: it sends exactly the requests
// it is told to and keeps what the responses add up to. Tests of push and of
// istiod use it; it is independent of internal/xds on purpose, so that a mistake
// shared by client and server is seen.
//
// It does not reconnect and decides nothing.
package pushtest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
)

// wait bounds how long a test waits for a response.
const wait = 20 * time.Second

// Client is one stream.
type Client struct {
	t      testing.TB
	stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	node   *core.Node
	cancel context.CancelFunc
	in     chan received
	// Held is what the responses add up to: name → version, per type.
	Held map[string]map[string]string
}

type received struct {
	resp *discovery.DeltaDiscoveryResponse
	err  error
}

// Node is a ztunnel's node.
func Node(pod, node string) *core.Node {
	md, err := structpb.NewStruct(map[string]any{"NAMESPACE": "istio-system", "NODE_NAME": node})
	if err != nil {
		panic(err) // constants
	}
	return &core.Node{Id: "ztunnel~10.0.0.9~" + pod + ".istio-system~istio-system.svc.cluster.local", Metadata: md}
}

// Gateway is the node of a replica of a waypoint.
func Gateway(pod, namespace, gateway string) *core.Node {
	md, err := structpb.NewStruct(map[string]any{"NAMESPACE": namespace, "GATEWAY_NAME": gateway})
	if err != nil {
		panic(err) // constants
	}
	return &core.Node{Id: "waypoint~10.0.0.8~" + pod + "." + namespace + "~" + namespace + ".svc.cluster.local", Metadata: md}
}

// Open opens a stream. The node goes into the first request, as ztunnel's does.
func Open(ctx context.Context, t testing.TB, conn grpc.ClientConnInterface, node *core.Node) *Client {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	s, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		cancel()
		t.Fatalf("open stream: %v", err)
	}
	c := &Client{t: t, stream: s, node: node, cancel: cancel, in: make(chan received), Held: map[string]map[string]string{}}
	go func() {
		defer close(c.in)
		for {
			resp, err := s.Recv()
			select {
			case c.in <- received{resp, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(cancel)
	return c
}

// Close ends the stream.
func (c *Client) Close() { c.cancel() }

// Send sends one request.
func (c *Client) Send(req *discovery.DeltaDiscoveryRequest) {
	c.t.Helper()
	req.Node, c.node = c.node, nil
	if err := c.stream.Send(req); err != nil {
		c.t.Fatalf("send request: %v", err)
	}
}

// Subscribe sends the first request of a type for everything, with what is held from before.
func (c *Client) Subscribe(typeURL string, held map[string]string) {
	c.t.Helper()
	c.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, InitialResourceVersions: held})
}

// Names sends a request that subscribes to names and unsubscribes from others, the first of a type with what is held.
func (c *Client) Names(typeURL string, subscribe, unsubscribe []string, held map[string]string) {
	c.t.Helper()
	c.Send(&discovery.DeltaDiscoveryRequest{
		TypeUrl: typeURL, ResourceNamesSubscribe: subscribe, ResourceNamesUnsubscribe: unsubscribe, InitialResourceVersions: held,
	})
}

// Recv waits for a response and records it, without acknowledging.
func (c *Client) Recv() *discovery.DeltaDiscoveryResponse {
	c.t.Helper()
	resp, err := c.RecvErr()
	if err != nil {
		c.t.Fatalf("receive: %v", err)
	}
	return resp
}

// RecvErr is Recv for streams that are expected to end.
func (c *Client) RecvErr() (*discovery.DeltaDiscoveryResponse, error) {
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	select {
	case r := <-c.in:
		return c.record(r)
	case <-timeout.C:
		return nil, fmt.Errorf("no response within %s", wait)
	}
}

// TryRecv is Recv that returns nil if nothing arrives within d.
func (c *Client) TryRecv(d time.Duration) *discovery.DeltaDiscoveryResponse {
	c.t.Helper()
	timeout := time.NewTimer(d)
	defer timeout.Stop()
	select {
	case r := <-c.in:
		resp, err := c.record(r)
		if err != nil {
			c.t.Fatalf("receive: %v", err)
		}
		return resp
	case <-timeout.C:
		return nil
	}
}

func (c *Client) record(r received) (*discovery.DeltaDiscoveryResponse, error) {
	if r.err != nil || r.resp == nil {
		return nil, errors.Join(r.err)
	}
	held := c.Held[r.resp.GetTypeUrl()]
	if held == nil {
		held = map[string]string{}
		c.Held[r.resp.GetTypeUrl()] = held
	}
	for _, res := range r.resp.GetResources() {
		held[res.GetName()] = res.GetVersion()
	}
	for _, name := range r.resp.GetRemovedResources() {
		delete(held, name)
	}
	return r.resp, nil
}

// Silent fails the test if a response arrives before done is closed.
func (c *Client) Silent(done <-chan struct{}) {
	c.t.Helper()
	select {
	case r := <-c.in:
		c.t.Fatalf("unexpected response: %v, %v", r.resp, r.err)
	case <-done:
	}
}

// Ack accepts a response.
func (c *Client) Ack(r *discovery.DeltaDiscoveryResponse) {
	c.t.Helper()
	c.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
}

// Nack rejects a response.
func (c *Client) Nack(r *discovery.DeltaDiscoveryResponse, reason string) {
	c.t.Helper()
	c.Send(&discovery.DeltaDiscoveryRequest{
		TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), ErrorDetail: &status.Status{Code: 3, Message: reason},
	})
}

// Next receives and acknowledges.
func (c *Client) Next() *discovery.DeltaDiscoveryResponse {
	c.t.Helper()
	r := c.Recv()
	c.Ack(r)
	return r
}

// Names lists the resources of a response.
func Names(r *discovery.DeltaDiscoveryResponse) []string {
	var out []string
	for _, res := range r.GetResources() {
		out = append(out, res.GetName())
	}
	return out
}

// TrySend sends a request on a stream that the server may have ended already.
func (c *Client) TrySend(req *discovery.DeltaDiscoveryRequest) {
	req.Node, c.node = c.node, nil
	_ = c.stream.Send(req) // the error of the stream is what Recv returns
}

// SetNode makes the next request carry the node.
func (c *Client) SetNode(n *core.Node) { c.node = n }

package xds

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/ports"
)

// everything is the name that stands for all resources of a type.
const everything = "*"

// subscribe sends the first request of each type.
func (c *Client) subscribe(s adsStream) error {
	for i, t := range c.types {
		r := &discovery.DeltaDiscoveryRequest{TypeUrl: t, InitialResourceVersions: c.held(t)}
		if i == 0 {
			r.Node = c.cfg.Node
		}
		if c.onDemand(t) {
			// xDS cannot say "subscribe to nothing", and no name at all means everything;
			// subscribing to everything and leaving it at once means nothing.
			r.ResourceNamesSubscribe = []string{everything}
			r.ResourceNamesUnsubscribe = []string{everything}
		}
		if n := proto.Size(r); n > warnRequestBytes {
			c.cfg.Log.Warn("the list of versions held is larger than a server's default limit",
				slog.String("type", t), slog.Int("bytes", n), slog.Int("resources", len(r.InitialResourceVersions)))
		}
		if err := send(s, r); err != nil {
			return err
		}
	}
	return nil
}

// held is the versions to resume from. What was demanded and not yet answered is
// named without a version, by which the server knows that it is still wanted.
func (c *Client) held(typeURL string) map[string]string {
	out := maps.Clone(c.versions[typeURL])
	if c.onDemand(typeURL) {
		c.mu.Lock()
		for name := range c.open {
			if _, ok := out[name]; !ok {
				out[name] = ""
			}
		}
		c.wanted = nil // this request carries them
		c.mu.Unlock()
	}
	return out
}

// Demand subscribes to one Address resource by name (only with Config.OnDemand) and
// returns a channel that is closed when the server has answered for it, with
// resources or with the news that there is none. The subscription stays.
func (c *Client) Demand(name string) <-chan struct{} {
	answered := make(chan struct{})
	if !c.cfg.OnDemand || name == "" || name == everything {
		close(answered)
		return answered
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open[name]) == 0 {
		c.wanted = append(c.wanted, name)
		select {
		case c.demanding <- struct{}{}:
		default:
		}
	}
	c.open[name] = append(c.open[name], answered)
	return answered
}

func (c *Client) sendDemands(s adsStream) error {
	c.mu.Lock()
	names := c.wanted
	c.wanted = nil
	c.mu.Unlock()
	if len(names) == 0 {
		return nil
	}
	return send(s, &discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAddress, ResourceNamesSubscribe: names})
}

// answered wakes who waits for name.
func (c *Client) answered(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.open[name] {
		close(w)
	}
	delete(c.open, name)
}

// handle applies a response and makes the answer to it.
func (c *Client) handle(r *discovery.DeltaDiscoveryResponse) *discovery.DeltaDiscoveryRequest {
	t := r.GetTypeUrl()
	answer := &discovery.DeltaDiscoveryRequest{TypeUrl: t, ResponseNonce: r.GetNonce()}
	handler := c.cfg.Types[t]
	if handler == nil {
		c.cfg.Log.Error("xds response of a type that was not asked for", slog.String("type", t))
		answer.ErrorDetail = refusal(fmt.Sprintf("type %q was not subscribed to", t))
		return answer
	}
	rejected := handler(Update{Type: t, Resources: r.GetResources(), Removed: r.GetRemovedResources()})
	c.record(t, r, rejected)
	if len(rejected) > 0 {
		answer.ErrorDetail = refusal(c.describe(t, rejected))
	}
	if c.cfg.Hooks.Handled != nil {
		c.cfg.Hooks.Handled(t, len(r.GetResources()), len(r.GetRemovedResources()), len(rejected))
	}
	if len(rejected) == 0 || len(rejected) < len(r.GetResources())+len(r.GetRemovedResources()) {
		if delete(c.waiting, t); len(c.waiting) == 0 {
			select {
			case <-c.ready:
			default:
				close(c.ready)
			}
		}
	}
	return answer
}

// record notes what is held now and wakes who waited for it: after the handler, so
// that who wakes finds it. A refused resource keeps its older version, if any,
// because the handler kept the older content.
func (c *Client) record(t string, r *discovery.DeltaDiscoveryResponse, rejected map[string]error) {
	held := c.versions[t]
	for _, name := range r.GetRemovedResources() {
		if rejected[name] == nil {
			delete(held, name)
		}
		c.answered(name)
	}
	for _, res := range r.GetResources() {
		if rejected[res.GetName()] == nil {
			held[res.GetName()] = res.GetVersion()
		}
		c.answered(res.GetName())
		for _, alias := range res.GetAliases() {
			c.answered(alias)
		}
	}
}

// describe lists the refused resources, each with its reason, sorted by name.
func (c *Client) describe(t string, rejected map[string]error) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(rejected)) {
		c.cfg.Log.Error("xds resource refused", slog.String("type", t), slog.String("name", name), slog.Any("error", rejected[name]))
		if b.Len() > maxErrorDetail {
			continue
		}
		if b.Len() > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s: %v", name, rejected[name])
	}
	text := b.String()
	if len(text) > maxErrorDetail {
		text = text[:maxErrorDetail] + "…"
	}
	return strings.ToValidUTF8(text, "?")
}

func refusal(text string) *rpcstatus.Status {
	return &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: text}
}

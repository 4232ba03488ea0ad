package route

import (
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	prioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/route/match"
)

const (
	// hostAttempts is how often another endpoint is looked for before the same one is tried again (Istio's).
	hostAttempts = 5
	// priorityUpdate is after how many tries another locality is preferred (Istio's).
	priorityUpdate = 2

	onStatus  = "retriable-status-codes"
	onConnect = "connect-failure"
	onReset   = "reset"
)

// safeMethod may be sent twice (RFC 9110 section 9.2.1). There are others, which few clients use: one is compared
// without an expression, which would cost 5 KB on every route.
const safeMethod = "GET"

// retry writes when a request is tried again, and how long each try may take, which holds without retries too.
func retry(r *model.RouteRule) *routev3.RetryPolicy {
	in := r.Retry
	if in == nil {
		in = &model.Retry{}
	}
	perTry := in.PerTry
	if r.Action.BackendTimeout != nil {
		perTry = *r.Action.BackendTimeout
	}
	out := &routev3.RetryPolicy{}
	if perTry > 0 {
		out.PerTryTimeout = durationpb.New(perTry)
	}
	if in.Attempts <= 0 {
		if perTry <= 0 {
			return nil
		}
		out.NumRetries = wrapperspb.UInt32(0)
		return out
	}
	on := slices.Clone(in.On)
	for _, code := range in.Codes {
		out.RetriableStatusCodes = append(out.RetriableStatusCodes, uint32(code))
	}
	if len(in.Codes) > 0 && !slices.Contains(on, onStatus) {
		on = append(on, onStatus)
	}
	out.RetryOn = strings.Join(on, ",")
	out.NumRetries = wrapperspb.UInt32(uint32(in.Attempts))
	if in.Backoff > 0 {
		out.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: durationpb.New(in.Backoff)}
	}
	// With a hash, the endpoint is the point.
	if !in.SameHost && len(r.Hash) == 0 {
		if any, err := pack(&hostsv3.PreviousHostsPredicate{}); err == nil {
			out.RetryHostPredicate = []*routev3.RetryPolicy_RetryHostPredicate{{
				Name: "envoy.retry_host_predicates.previous_hosts", ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: any},
			}}
			out.HostSelectionRetryMaxAttempts = hostAttempts
		}
	}
	if in.OtherLocality {
		if any, err := pack(&prioritiesv3.PreviousPrioritiesConfig{UpdateFrequency: priorityUpdate}); err == nil {
			out.RetryPriority = &routev3.RetryPolicy_RetryPriority{
				Name: "envoy.retry_priorities.previous_priorities", ConfigType: &routev3.RetryPolicy_RetryPriority_TypedConfig{TypedConfig: any},
			}
		}
	}
	return out
}

// retrySafe adds what a tunnel needs. When the node proxy at its far end cannot reach the application, it refuses the
// CONNECT, which Envoy sees as a connection that was made and then reset: no connect-failure. Retrying after a reset
// may send a request twice that had arrived, so only a safe method does. Envoy has one list of conditions for a route:
// the method gets a route of its own before the rule's.
func retrySafe(r *routev3.Route, rule *model.RouteRule) []*routev3.Route {
	p := r.GetRoute().GetRetryPolicy()
	on := strings.Split(p.GetRetryOn(), ",")
	if !slices.Contains(on, onConnect) || slices.Contains(on, onReset) || rule.Match.GRPC {
		return []*routev3.Route{r}
	}
	reset := p.RetryOn + "," + onReset
	if m := rule.Match.Method; m != nil && m.Kind == model.MatchExact {
		if m.Value == safeMethod {
			p.RetryOn = reset
		}
		return []*routev3.Route{r}
	}
	safe := proto.CloneOf(r)
	safe.GetRoute().RetryPolicy.RetryOn = reset
	safe.Match.Headers = append(safe.Match.Headers, match.HeaderString(":method", match.Exact(safeMethod, false), false))
	return []*routev3.Route{safe, r}
}

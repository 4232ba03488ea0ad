package bootstrap

import (
	"regexp"
	"strings"

	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	connectionsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	heapv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/fixed_heap/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"time"

	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

const (
	// heapShare of the container's memory, in percent, is Envoy's: the rest is the agent's and what is not heap.
	heapShare = 85
	// shrinkAt and refuseAt are shares of that heap: first memory is given back, then requests are refused with 503
	// instead of the kernel killing all of them.
	shrinkAt = 0.90
	refuseAt = 0.97
	// checkEvery is how often the heap is looked at.
	checkEvery = 250 * time.Millisecond
)

const (
	monitorConnections = "envoy.resource_monitors.global_downstream_max_connections"
	monitorHeap        = "envoy.resource_monitors.fixed_heap"
)

// overload bounds connections from outside, and the heap if a limit is known.
func (c Config) overload(pack func(proto.Message) *anypb.Any) *overloadv3.OverloadManager {
	m := &overloadv3.OverloadManager{
		ResourceMonitors: []*overloadv3.ResourceMonitor{{
			Name: monitorConnections,
			ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: pack(&connectionsv3.DownstreamConnectionsConfig{
				MaxActiveDownstreamConnections: c.MaxConnections,
			})},
		}},
	}
	if c.MemoryLimit == 0 {
		return m
	}
	m.RefreshInterval = durationpb.New(checkEvery)
	m.ResourceMonitors = append(m.ResourceMonitors, &overloadv3.ResourceMonitor{
		Name:       monitorHeap,
		ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: pack(&heapv3.FixedHeapConfig{MaxHeapSizeBytes: max(c.MemoryLimit/100*heapShare, 1)})},
	})
	action := func(name string, at float64) {
		m.Actions = append(m.Actions, &overloadv3.OverloadAction{Name: name, Triggers: []*overloadv3.Trigger{{
			Name: monitorHeap, TriggerOneof: &overloadv3.Trigger_Threshold{Threshold: &overloadv3.ThresholdTrigger{Value: at}},
		}}})
	}
	action("envoy.overload_actions.shrink_heap", shrinkAt)
	action("envoy.overload_actions.stop_accepting_requests", refuseAt)
	return m
}

// keptPrefixes are the statistics that exist at all, beside keptSuffixes: with a thousand services the others would be a
// hundred thousand, of which nobody looks at most.
func keptPrefixes() []string {
	return []string{
		names.StatsScope + ".", "server.", "cluster_manager.", "listener_manager.", "cluster." + names.XDS + ".",
		"http." + names.ConnectTerminate + ".", "listener.", "overload.", "runtime.", "sds.",
	}
}

// keptSuffixes are those of a service's cluster that tell why requests failed, and what policy decided.
func keptSuffixes() []string {
	return []string{
		".downstream_cx_active", ".downstream_rq_active",
		".upstream_rq_pending_overflow", ".upstream_rq_retry", ".upstream_rq_retry_overflow", ".upstream_rq_timeout", ".upstream_cx_overflow",
		".upstream_cx_connect_fail", ".outlier_detection.ejections_active", ".outlier_detection.ejections_enforced_total",
		".rbac.allowed", ".rbac.denied", ".shadow_allowed", ".shadow_denied", ".ssl.fail_verify_san", ".ssl.connection_error",
		".http_local_rate_limit.rate_limited", ".ratelimit.over_limit", ".jwt_authn.denied",
		".ext_authz.denied", ".ext_authz.error", ".fault.aborts_injected", ".fault.delays_injected",
	}
}

// perCluster are the parts of a cluster's statistic that follow its name. The name itself is full of dots.
const perCluster = `(?:upstream_|outlier_detection\.|circuit_breakers\.|assignment_|bind_|client_ssl_|default\.|external\.|internal\.|lb_|max_host_|membership_|original_dst_|ratelimit\.|retry_|ssl\.|update_|version|warming_|fault\.|ext_authz\.|http1\.|http2\.)`

// tags are cut out of a statistic's name and become a label.
func tags() []struct{ name, expression string } {
	return []struct{ name, expression string }{
		{"cluster_name", `^cluster\.((.+?)\.)` + perCluster},
		{"listener_address", `^listener\.((.+?)\.)(?:downstream_|ssl\.|http\.|no_filter_|worker_|extension_config|connections_accepted_|global_cx_|server_ssl_)`},
		{"worker_id", `^listener\..+\.(worker_(\d+)\.)`},
		{"http_conn_manager_prefix", `^http\.((.+?)\.)`},
		{"tcp_prefix", `^tcp\.((.+?)\.)\w+?$`},
		{"local_ratelimit_prefix", `^((.+?)\.)http_local_rate_limit\.`},
		{"secret", `^sds\.((.+?)\.)(?:update_|init_|version|key_rotation_|ssl_context_)`},
		{"thread_name", `^server\.((.+?)\.)watchdog_`},
		{"response_code", `_rq(_(\d{3}))$`},
		{"response_code_class", `_rq(_(\dxx))$`},
		{"rbac_result", `rbac(\.(allowed|denied))$`},
		{"rbac_dry_run_result", `(\.shadow_(allowed|denied))$`},
	}
}

func stats(prefixes []string) *metricsv3.StatsConfig {
	c := &metricsv3.StatsConfig{UseAllDefaultTags: wrapperspb.Bool(false)}
	for _, t := range tags() {
		c.StatsTags = append(c.StatsTags, &metricsv3.TagSpecifier{TagName: t.name, TagValue: &metricsv3.TagSpecifier_Regex{Regex: t.expression}})
	}
	var kept []*matcherv3.StringMatcher
	for _, p := range append(keptPrefixes(), prefixes...) {
		kept = append(kept, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: p}})
	}
	// One expression instead of twenty suffixes: it is matched for each statistic that is made.
	var ends []string
	for _, s := range keptSuffixes() {
		ends = append(ends, regexp.QuoteMeta(s))
	}
	kept = append(kept, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{
		SafeRegex: &matcherv3.RegexMatcher{Regex: ".*(?:" + strings.Join(ends, "|") + ")"},
	}})
	c.StatsMatcher = &metricsv3.StatsMatcher{StatsMatcher: &metricsv3.StatsMatcher_InclusionList{InclusionList: &matcherv3.ListStringMatcher{Patterns: kept}}}
	return c
}

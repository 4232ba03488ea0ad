package show

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/tests/demo/stage"
)

const (
	// lookTimeout bounds the wait until connections from before the label have ended.
	lookTimeout = 30 * time.Second
	// logTimeout bounds the wait for a log line or a metric to appear.
	logTimeout = 20 * time.Second
	// tableRows keeps tables short.
	tableRows = 12
)

func (d *demo) lookBefore(ctx context.Context) error {
	d.command("tcpdump, on the bridge between the nodes")
	t, err := d.Look(ctx, glance)
	if err != nil {
		return err
	}
	d.Progress.Note("  %s", t.Example)
	d.check(t.Readable > 0 && t.Tunnel == 0, "before: HTTP between the nodes can be read", "%d readable packets of %d, %d bytes", t.Readable, t.Packets, t.Bytes)
	return nil
}

// lookAfter first lets the streams from before the label end in order: the mesh leaves open connections alone.
func (d *demo) lookAfter(ctx context.Context) error {
	d.Progress.Note("the 20 streams from before the label still run as they are; now they are closed and opened again")
	asked := time.Now()
	if err := d.ReopenStreams(ctx, stage.Namespace); err != nil {
		return err
	}
	err := stage.Poll(ctx, lookTimeout, func(ctx context.Context) error {
		reports, err := d.Reports(ctx, stage.Namespace)
		if err != nil {
			return err
		}
		since := stage.Sum(reports).Streams.Since
		if len(since) < stage.LoadReplicas*stage.StreamsPerLoad || since[0].Before(asked) {
			return errors.New("not all streams are open again")
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.command("tcpdump, on the bridge between the nodes")
	var t stage.Traffic
	// Connections that were open at the label may live a little longer.
	err = stage.Poll(ctx, lookTimeout, func(ctx context.Context) error {
		if t, err = d.Look(ctx, glance); err != nil {
			return err
		}
		if t.Readable > 0 || len(t.Others) > 0 {
			return fmt.Errorf("bytes outside the tunnel, by port: %v; %s", t.Others, t.Example)
		}
		return nil
	})
	d.check(err == nil && t.Packets > 0, "after: nothing can be read", "%d packets, %d readable, bytes outside the tunnel: %d", t.Packets, t.Readable, sum(t.Others))
	d.check(t.TLS > 0 && t.Tunnel == t.Bytes, "after: only TLS on port 15008", "%d of %d bytes are in the tunnel", t.Tunnel, t.Bytes)
	return nil
}

func sum(m map[string]int) int {
	n := 0
	for _, v := range m {
		n += v
	}
	return n
}

// identities shows the pairs that the proxies verified and logged.
func (d *demo) identities(ctx context.Context) error {
	pairs := map[string]int{}
	err := stage.Poll(ctx, logTimeout, func(ctx context.Context) error {
		lines, err := d.ZtunnelLogs(ctx, time.Now().Add(-15*time.Second))
		if err != nil {
			return err
		}
		clear(pairs)
		for _, l := range lines {
			src, dst := l[telemetry.AccessSrcIdentity], l[telemetry.AccessDstIdentity]
			if l[telemetry.AccessDirection] == telemetry.DirectionInbound && src != "" && dst != "" {
				pairs[src+"\t→  "+dst]++
			}
		}
		for _, want := range [][2]string{{"web", "catalog"}, {"web", "cart"}, {"cart", "store"}, {"web", "checkout"}, {"checkout", "payments"}} {
			if !hasPair(pairs, want[0], want[1]) {
				return fmt.Errorf("no connection from %s to %s under their identities", want[0], want[1])
			}
		}
		return nil
	})
	d.table("connections\tclient\t   server", pairs)
	detail := fmt.Sprintf("%d pairs of SPIFFE identities in the proxies' access logs", len(pairs))
	if err != nil {
		detail = err.Error()
	}
	d.check(err == nil, "each service has its own identity", "%s", detail)
	return nil
}

func hasPair(pairs map[string]int, src, dst string) bool {
	for pair := range pairs {
		from, to, _ := strings.Cut(pair, "\t")
		if strings.HasSuffix(from, "/ns/"+stage.Namespace+"/sa/"+src) && strings.HasSuffix(to, "/ns/"+stage.Namespace+"/sa/"+dst) {
			return true
		}
	}
	return false
}

// table prints the most frequent rows.
func (d *demo) table(header string, rows map[string]int) {
	w := tabwriter.NewWriter(d.Progress.Writer(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "          "+header)
	keys := slices.SortedFunc(maps.Keys(rows), func(a, b string) int {
		return cmp.Or(cmp.Compare(rows[b], rows[a]), cmp.Compare(a, b))
	})
	for _, k := range keys[:min(len(keys), tableRows)] {
		fmt.Fprintf(w, "          %d\t%s\n", rows[k], k)
	}
	_ = w.Flush() // the terminal went away
}

// paymentsPolicy lets checkout charge, and nobody else.
const paymentsPolicy = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-checkout, namespace: shop}
spec:
  selector: {matchLabels: {app: payments}}
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/checkout]}}]
`

func (d *demo) policy(ctx context.Context) error {
	pods, err := d.Pods(ctx, stage.Namespace, "app="+stage.Load)
	if err != nil {
		return err
	}
	caller := pods[0].Name
	ask := func(ctx context.Context) (string, error) {
		return d.Exec(ctx, stage.Namespace, caller, "/usr/local/bin/tools", "get", "http://payments/")
	}
	answer, err := ask(ctx)
	d.check(err == nil, "without a policy anyone may ask payments", "%s gets %s%s", caller, strings.TrimSpace(answer), errorText(err))
	d.command("kubectl apply -f - <<<'%s'", strings.ReplaceAll(strings.TrimSpace(paymentsPolicy), "\n", `\n`))
	begin := time.Now()
	if err := d.Apply(ctx, paymentsPolicy); err != nil {
		return err
	}
	var refusal error
	err = stage.Poll(ctx, logTimeout, func(ctx context.Context) error {
		if _, refusal = ask(ctx); refusal == nil {
			return errors.New("the caller still gets an answer")
		}
		return nil
	})
	d.check(err == nil, "the policy refuses another caller", "%s sees%s", caller, errorText(errors.Join(err, lastPart(refusal))))
	var line stage.LogLine
	err = stage.Poll(ctx, logTimeout, func(ctx context.Context) error {
		lines, err := d.ZtunnelLogs(ctx, begin.Add(-time.Second))
		for _, l := range lines {
			if l[telemetry.AccessFlags] == telemetry.FlagDenied && l[telemetry.AccessDirection] == telemetry.DirectionInbound && strings.HasSuffix(l[telemetry.AccessSrcIdentity], "/sa/"+stage.Load) {
				line = l
				return nil
			}
		}
		return errors.Join(errors.New("no such line"), err)
	})
	d.check(err == nil, "the proxy's log says who was refused, and why", "%s: %s, %s %s%s", line["msg"],
		line[telemetry.AccessSrcIdentity], line[telemetry.AccessReason], line[telemetry.AccessPolicy], errorText(err))
	r, err := d.MoreTraffic(ctx, glance)
	if err != nil {
		return err
	}
	d.check(r.Broken() == 0, "checkout still charges", "visitors bought all the time: %s", stage.Describe(r))
	return nil
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return " " + strings.ReplaceAll(err.Error(), "\n", "; ")
}

// lastPart leaves out which command reported the error.
func lastPart(err error) error {
	if err == nil {
		return nil
	}
	_, text, found := strings.Cut(err.Error(), "Error: ")
	if !found {
		return err
	}
	text, _, _ = strings.Cut(text, "\n")
	return errors.New(text)
}

// metrics shows connections by workload and security.
func (d *demo) metrics(ctx context.Context) error {
	series, err := d.ZtunnelMetrics(ctx, telemetry.MetricConnectionsOpened)
	if err != nil {
		return err
	}
	rows, secure := map[string]int{}, 0
	for _, s := range series {
		l := s.Labels
		if l[telemetry.LabelReporter] != telemetry.ReporterDestination || l[telemetry.LabelDestinationNamespace] != stage.Namespace {
			continue
		}
		rows[fmt.Sprintf("%s/%s\t→  %s\t%s", l[telemetry.LabelSourceNamespace], l[telemetry.LabelSourceWorkload],
			l[telemetry.LabelDestinationWorkload], l[telemetry.LabelSecurityPolicy])] += int(s.Value)
		if l[telemetry.LabelSecurityPolicy] == telemetry.SecurityMutualTLS {
			secure += int(s.Value)
		}
	}
	d.table("connections\tclient\t   server\tsecurity", rows)
	d.check(secure > 0, "the proxies count every connection", "%d connections by mutual TLS in %s", secure, telemetry.MetricConnectionsOpened)
	return nil
}

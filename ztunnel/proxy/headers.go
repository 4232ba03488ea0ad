package proxy

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/ztunnel/state"
)

// Names of the headers of a tunnel request.
const (
	headerBaggage          = "baggage"
	headerForwarded        = "forwarded"
	headerTraceparent      = "traceparent"
	headerForwardedNetwork = "x-forwarded-network"
)

// baggage describes a workload to the other side's telemetry. Absent parts are left out.
func baggage(w *state.Workload) string {
	if w == nil {
		return ""
	}
	kind := w.WorkloadType
	if kind == "" {
		kind = "pod"
	}
	var b strings.Builder
	add := func(key, value string) {
		if value == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(key)
		b.WriteByte('=')
		b.WriteString(value)
	}
	add("k8s.cluster.name", w.ClusterID)
	add("k8s.namespace.name", w.Namespace)
	add("k8s."+kind+".name", w.WorkloadName)
	add("service.name", w.CanonicalName)
	add("service.version", w.CanonicalRevision)
	add("cloud.region", w.Locality.Region)
	add("cloud.availability_zone", w.Locality.Zone)
	return b.String()
}

// baggageInfo is what a peer said of itself. It is a claim, used for telemetry only.
type baggageInfo struct {
	cluster, namespace, workload, service, revision, region, zone string
}

// parseBaggage reads what it knows and skips the rest.
func parseBaggage(value string) baggageInfo {
	var b baggageInfo
	for part := range strings.SplitSeq(value, ",") {
		key, v, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok {
			continue
		}
		v, _, _ = strings.Cut(v, "=")
		switch key {
		case "k8s.cluster.name":
			b.cluster = v
		case "k8s.namespace.name":
			b.namespace = v
		case "k8s.deployment.name", "k8s.cronjob.name", "k8s.pod.name", "k8s.job.name":
			b.workload = v
		case "service.name":
			b.service = v
		case "service.version":
			b.revision = v
		case "cloud.region":
			b.region = v
		case "cloud.availability_zone":
			b.zone = v
		}
	}
	return b
}

// forwarded tells who the client is and which service it meant (RFC 7239, section 4).
func forwarded(client netip.AddrPort, host string) string {
	s := `for="` + client.String() + `"`
	if host != "" {
		s += ";host=" + host
	}
	return s
}

// parseForwardedHost returns the host of the first element, or nothing.
func parseForwardedHost(value string) string {
	for i := range len(value) {
		if value[i] < ' ' || value[i] > '~' {
			return ""
		}
	}
	first, _, _ := strings.Cut(value, ",")
	for part := range strings.SplitSeq(first, ";") {
		key, v, ok := strings.Cut(strings.TrimSpace(part), "=")
		if ok && strings.EqualFold(key, "host") {
			return strings.Trim(v, `"`)
		}
	}
	return ""
}

// Lengths of a traceparent in bytes, W3C Trace Context section 3.2.2.
const (
	traceIDBytes  = 16
	parentIDBytes = 8
	traceLength   = 2 + 1 + 2*traceIDBytes + 1 + 2*parentIDBytes + 1 + 2
)

// newTraceparent makes one that is not sampled.
func newTraceparent() string {
	var id [traceIDBytes + parentIDBytes]byte
	_, _ = rand.Read(id[:]) // never fails, and ends the process if it would
	return fmt.Sprintf("00-%x-%x-00", id[:traceIDBytes], id[traceIDBytes:])
}

// traceparentOr returns value if it is well-formed, else a new one.
func traceparentOr(value string) string {
	if validTraceparent(value) {
		return value
	}
	return newTraceparent()
}

func validTraceparent(v string) bool {
	if len(v) != traceLength || v != strings.ToLower(v) {
		return false
	}
	parts := strings.Split(v, "-")
	if len(parts) != 4 || len(parts[0]) != 2 || len(parts[1]) != 2*traceIDBytes || len(parts[2]) != 2*parentIDBytes || len(parts[3]) != 2 {
		return false
	}
	for _, p := range parts {
		if _, err := hex.DecodeString(p); err != nil {
			return false
		}
	}
	zero := func(s string) bool { return strings.Trim(s, "0") == "" }
	return parts[0] != "ff" && !zero(parts[1]) && !zero(parts[2])
}

// traceID is the part of a valid traceparent that joins the log lines of both sides.
func traceID(traceparent string) string { return traceparent[3 : 3+2*traceIDBytes] }

// authority is the target of a tunnel request: an address, or a host name with a port.
type authority struct {
	addr netip.AddrPort
	host string // set when addr is not
	port uint16
}

// parseAuthority reads :authority. Unlike net/url it wants a port.
func parseAuthority(s string) (authority, error) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		if ap.Port() == 0 || ap.Addr().Zone() != "" {
			return authority{}, fmt.Errorf("parse authority %q: no usable address", s)
		}
		ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		return authority{addr: ap, port: ap.Port()}, nil
	}
	host, port, ok := strings.Cut(s, ":")
	n, err := strconv.ParseUint(port, 10, 16)
	if !ok || err != nil || n == 0 || !validHost(host) {
		return authority{}, fmt.Errorf("parse authority %q: want host:port", s)
	}
	return authority{host: strings.ToLower(host), port: uint16(n)}, nil
}

// maxHost is the longest DNS name in bytes (RFC 1035, section 2.3.4).
const maxHost = 253

func validHost(h string) bool {
	if h == "" || len(h) > maxHost {
		return false
	}
	for i := range len(h) {
		c := h[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' && c != '*' {
			return false
		}
	}
	return true
}

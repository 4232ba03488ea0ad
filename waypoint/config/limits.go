package config

import "time"

// Tunnels, both as server and as client.
const (
	// maxTunnelStreams bounds the streams of one HBONE connection, as Istio does: all of them land on one worker of
	// Envoy, so that a client with more to send has to open a further connection, which may land on another one.
	maxTunnelStreams = 100
	// streamWindow in bytes: what one stream may have on its way. At 1 ms of round trip, 1 GB/s.
	streamWindow = 1 << 20
	// connectionWindow in bytes. Envoy gives credit back only when the bytes of a stream were read, so the window has
	// to hold those of all streams at once, or some that nobody reads stop the others: maxTunnelStreams × streamWindow.
	connectionWindow = 128 << 20
	// keepaliveInterval and keepaliveTimeout find dead peers of tunnels; both are Istio's, from ztunnel.
	keepaliveInterval = 10 * time.Second
	keepaliveTimeout  = 20 * time.Second
	// tunnelConnectTimeout bounds TCP and TLS to the other end: two retransmissions of a SYN.
	tunnelConnectTimeout = 5 * time.Second
	// tunnelIdle closes a tunnel without streams; Envoy's default, longer than any pause of a working client.
	tunnelIdle = time.Hour
	// tunnelCleanup is how long Envoy remembers an address that it once dialled.
	tunnelCleanup = time.Minute
)

// HTTP.
const (
	// maxHeadersKB is how large a request's headers may be, in KiB: Envoy's and so Istio's default.
	maxHeadersKB = 60
	// delayedClose is how long a client may take to read a last answer (Istio's PILOT_HTTP_DELAYED_CLOSE_TIMEOUT).
	delayedClose = time.Second
	// detectTimeout is how long a client of a port of unknown protocol may be silent before it is taken for one that
	// waits for the server to speak. Shorter would misread slow HTTP clients, and skip the policy of requests.
	detectTimeout = 2 * time.Second
)

// maxEarlyData in bytes is what a client may send before its server is called, where it has to speak first.
const maxEarlyData = 64 << 10

// Clusters.
const (
	// defaultConnectTimeout is that of Istio's mesh configuration.
	defaultConnectTimeout = 10 * time.Second
	// unlimited is Istio's default of the circuit breakers: they only break if a user says so.
	unlimited = 1<<32 - 1
	// dnsRefresh is used where a name has no TTL of its own (Istio's dnsRefreshRate).
	dnsRefresh = time.Minute
	// defaultRingSize is the least number of points on a ring of hashes: Istio's and Envoy's default.
	defaultRingSize = 1024
	// maxRingSize is what Envoy accepts.
	maxRingSize = 8 << 20
	// maxMaglevTable is what Envoy accepts.
	maxMaglevTable = 5000011
)

// Telemetry.
const (
	// maxCounters and maxHistograms bound the statistics of each of the few loggers: a part of their names is what
	// the source's node says, which a hostile node could vary without end. 10,000 pairs of workloads fit; a counter
	// takes about 1 KiB, a histogram several.
	maxCounters   = 10_000
	maxHistograms = 30_000
	// collectorTimeout bounds a delivery to a collector of traces or logs, unless its provider says otherwise.
	collectorTimeout = 10 * time.Second
)

const (
	// systemCAs is where the proxy's image has the roots of the public web (Debian's and Istio's place).
	systemCAs = "/etc/ssl/certs/ca-certificates.crt"
	// serverName is what a gateway says it is; Istio's, which users' tests look for.
	serverName = "istio-envoy"
)

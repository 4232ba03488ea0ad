package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/internal/linux"
	"github.com/ambit-mesh/ambit/tests/bench/load"
	"github.com/ambit-mesh/ambit/tests/node/topology"
)

const (
	// httpPort is where the server pods answer requests, and the service port of HTTP/1.1; h2Port is that of HTTP/2.
	// The manifests name them too.
	httpPort = 8080
	h2Port   = 8081
	// relayPort is where a proxy finds istiod, by way of the relay.
	relayPort = 25012
	// stateTimeout bounds how long istiod may take to read a thousand services, on a busy machine.
	stateTimeout = time.Minute
	// pollEvery is how often something is looked at that is waited for. Times are taken from what happened, not from when
	// it was seen.
	pollEvery = 20 * time.Millisecond
	// waypointCPUs is the limit that package waypoint/deploy gives a waypoint: it is the number of Envoy's workers.
	waypointCPUs = 2
)

// wayMesh is everything that runs while measuring a waypoint: istiod, which reads a directory; two nodes with a ztunnel
// each, a client on the first, two servers on the second; and, beside those, the waypoint.
type wayMesh struct {
	mesh
	pods   map[string]*topology.Pod
	state  state
	envoy  string
	agent  string
	istiod *exec.Cmd
	// waypoint is the agent, server the processes of the servers' by service, relay that of the waypoint.
	waypoint *exec.Cmd
	server   map[string]*exec.Cmd
	relay    *relay
}

func newWayMesh(ctx context.Context, o options, envoy string) (_ *wayMesh, err error) {
	m := &wayMesh{pods: map[string]*topology.Pod{}, server: map[string]*exec.Cmd{}, envoy: envoy, agent: o.agent}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	if err := m.makeGround(ctx, o.ztunnel); err != nil {
		return nil, err
	}
	for node, names := range map[int][]string{0: {"client", "istiod"}, 1: {serviceWith, serviceWithout, waypointName}} {
		for _, name := range names {
			if m.pods[name], err = m.fabric.Nodes[node].AddPod(name); err != nil {
				return nil, err
			}
		}
	}
	m.state = state{filepath.Join(m.dir, "config")}
	if err := m.state.writeAll(m.pods); err != nil {
		return nil, err
	}
	if err := m.startIstiod(ctx, o.istiod); err != nil {
		return nil, err
	}
	for i, pods := range [][]*topology.Pod{{m.pods["client"]}, {m.pods[serviceWith], m.pods[serviceWithout]}} {
		if err := m.startZtunnel(ctx, o.ztunnel, m.fabric.Nodes[i], pods); err != nil {
			return nil, fmt.Errorf("start node %d: %w", i+1, err)
		}
	}
	for _, name := range []string{serviceWith, serviceWithout} {
		p := m.pods[name]
		if m.server[name], err = startServer(p.NetNS, m.cgroup, serveHTTP, fmt.Sprintf("%s:%d", p.IP, httpPort)); err != nil {
			return nil, err
		}
		m.onClose = append(m.onClose, func() error { return end(m.server[name]) })
	}
	m.relay, err = m.startRelay(m.pods[waypointName].NetNS, namespace, waypointName)
	return m, err
}

// run starts a process of the mesh that logs into a file of its name.
func (m *wayMesh) run(ns *linux.NetNS, name string, c *exec.Cmd, env ...string) error {
	log, err := os.OpenFile(m.logOf(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	c = in(c, nil)
	c.Stdout, c.Stderr = log, log
	c.Env = append(os.Environ(), env...)
	if err := start(ns, c); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	return nil
}

func (m *wayMesh) logOf(name string) string { return filepath.Join(m.dir, name+".log") }

// tokenFile holds what proxies take for a token; see relay.
func (m *wayMesh) tokenFile() string { return filepath.Join(m.dir, "token") }

func (m *wayMesh) startIstiod(ctx context.Context, binary string) error {
	authority := filepath.Join(m.dir, "authority")
	if err := os.Mkdir(authority, 0o700); err != nil {
		return err
	}
	// The development CA of the proxies under the names that istiod reads: it verifies their certificates.
	for from, to := range map[string][]string{"root-cert.pem": {"ca-cert.pem", "root-cert.pem"}, "root-key.pem": {"ca-key.pem"}} {
		b, err := os.ReadFile(filepath.Join(m.caDir(), from))
		if err != nil {
			return err
		}
		for _, name := range to {
			if err := os.WriteFile(filepath.Join(authority, name), b, 0o600); err != nil {
				return err
			}
		}
	}
	if err := os.WriteFile(m.tokenFile(), []byte("not used"), 0o600); err != nil {
		return err
	}
	ns := m.pods["istiod"].NetNS
	m.istiod = exec.Command(binary, "discovery", "--config-dir", m.state.dir, "--ca-dir", authority)
	if err := m.run(ns, "istiod", m.istiod, "LOG_LEVEL=warn"); err != nil {
		return err
	}
	m.onClose = append(m.onClose, func() error { return end(m.istiod) })
	err := await(ctx, stateTimeout, func() error {
		_, err := get(ctx, ns, istiodURL("/ready"))
		return err
	})
	if err != nil {
		return errors.Join(fmt.Errorf("wait for istiod: %w", err), copyLog(m.logOf("istiod")))
	}
	return nil
}

func istiodURL(path string) string {
	return fmt.Sprintf("http://127.0.0.1:%d%s", ports.IstiodDebug, path)
}

// await asks until there is no error.
func await(ctx context.Context, limit time.Duration, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

func (m *wayMesh) startRelay(ns *linux.NetNS, namespace, account string) (*relay, error) {
	id := identity.Identity{TrustDomain: ports.DefaultTrustDomain, Namespace: namespace, ServiceAccount: account}
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), relayPort)
	r, err := startRelay(ns, addr, netip.AddrPortFrom(m.pods["istiod"].IP, ports.XDSTLS), m.caDir(), id)
	if err != nil {
		return nil, fmt.Errorf("start relay of %q: %w", id, err)
	}
	m.onClose = append(m.onClose, r.close)
	return r, nil
}

func relayURL() string { return fmt.Sprintf("http://127.0.0.1:%d", relayPort) }

func (m *wayMesh) startZtunnel(ctx context.Context, binary string, n *topology.Node, pods []*topology.Pod) error {
	if _, err := m.startRelay(n.NetNS, ports.SystemNamespace, "ztunnel"); err != nil {
		return err
	}
	return m.startNode(ctx, binary, n, []string{"XDS_ADDRESS=" + relayURL(), "AUTH_TOKEN=" + m.tokenFile(), "SERVICE_ACCOUNT=ztunnel"}, pods...)
}

// startWaypoint starts the agent, which starts Envoy; it returns when Envoy runs, with the time of Envoy's start.
func (m *wayMesh) startWaypoint(ctx context.Context) (time.Time, error) {
	p := m.pods[waypointName]
	run := filepath.Join(m.dir, "run")
	m.waypoint = exec.Command(m.agent, "proxy", "waypoint", "--envoy", m.envoy)
	err := m.run(p.NetNS, waypointName, m.waypoint,
		"XDS_ADDRESS="+relayURL(), "AUTH_TOKEN="+m.tokenFile(), "AMBIT_CA_DIR="+m.caDir(), "AMBIT_RUN_DIR="+run,
		"GATEWAY_NAME="+waypointName, "POD_NAME="+waypointName, "POD_NAMESPACE="+namespace, "SERVICE_ACCOUNT="+waypointName,
		"INSTANCE_IP="+p.IP.String(), "NODE_NAME="+p.Node.Name, "CPU_LIMIT="+strconv.Itoa(waypointCPUs), "MEMORY_LIMIT=1073741824",
		"POD_LABELS_FILE="+filepath.Join(m.dir, "no-labels"), "LOG_LEVEL=warn", "MINIMUM_DRAIN_DURATION=0s", "TERMINATION_GRACE_PERIOD_SECONDS=5")
	if err != nil {
		return time.Time{}, err
	}
	var started time.Time
	err = await(ctx, startTimeout, func() (err error) {
		started, err = m.envoyStart()
		return err
	})
	return started, m.explain(err)
}

// explain adds the waypoint's log to an error.
func (m *wayMesh) explain(err error) error {
	if err == nil {
		return nil
	}
	return errors.Join(err, copyLog(m.logOf(waypointName)), copyLog(m.logOf("istiod")))
}

// stopWaypoint ends the agent and with it Envoy.
func (m *wayMesh) stopWaypoint() error {
	if m.waypoint == nil {
		return nil
	}
	pid, pidErr := m.envoyPID()
	err := end(m.waypoint)
	m.waypoint = nil
	if pidErr != nil {
		return errors.Join(err, pidErr)
	}
	// Envoy dies with the agent (its Pdeathsig); its ports must be free before the next one starts.
	return errors.Join(err, await(context.Background(), startTimeout, func() error {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			return fmt.Errorf("wait for process %d: it still runs", pid)
		}
		return nil
	}))
}

// close also ends the waypoint.
func (m *wayMesh) close() error { return errors.Join(m.stopWaypoint(), m.mesh.close()) }

// envoyPID finds Envoy among the agent's children.
func (m *wayMesh) envoyPID() (int, error) {
	agent := m.waypoint.Process.Pid
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", agent))
	if err != nil {
		return 0, err
	}
	for _, t := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", agent, t.Name()))
		if err != nil {
			continue // the thread has ended
		}
		for f := range strings.FieldsSeq(string(b)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				return 0, err
			}
			if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && filepath.Base(exe) == filepath.Base(m.envoy) {
				return pid, nil
			}
		}
	}
	return 0, fmt.Errorf("find Envoy: process %d has no such child", agent)
}

func (m *wayMesh) envoyStart() (time.Time, error) {
	pid, err := m.envoyPID()
	if err != nil {
		return time.Time{}, err
	}
	s, err := readStat(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return time.Time{}, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return time.Time{}, fmt.Errorf("read clock: %w", err)
	}
	return time.Now().Add(s.started - time.Duration(now.Nano())), nil
}

// ready asks the agent's readiness, which is Envoy's.
func (m *wayMesh) ready(ctx context.Context) error {
	_, err := get(ctx, m.pods[waypointName].NetNS, fmt.Sprintf("http://127.0.0.1:%d/healthz/ready", ports.Readiness))
	return err
}

// requestsSeen is how many requests the waypoint has counted in its telemetry.
func (m *wayMesh) requestsSeen(ctx context.Context) (uint64, error) {
	page, err := get(ctx, m.pods[waypointName].NetNS, fmt.Sprintf("http://127.0.0.1:%d/stats/prometheus", ports.Metrics))
	if err != nil {
		return 0, err
	}
	var sum uint64
	for line := range bytes.Lines(page) {
		if !bytes.HasPrefix(line, []byte("istio_requests_total{")) {
			continue
		}
		i := bytes.LastIndexByte(line, ' ')
		n, err := strconv.ParseFloat(strings.TrimSpace(string(line[i+1:])), 64)
		if err != nil {
			return 0, fmt.Errorf("parse metric %q: %w", line, err)
		}
		sum += uint64(n)
	}
	return sum, nil
}

// behind says what istiod still owes the waypoint, by its own word; nil if nothing.
func (m *wayMesh) behind(ctx context.Context) error {
	page, err := get(ctx, m.pods["istiod"].NetNS, istiodURL("/debug/syncz"))
	if err != nil {
		return err
	}
	var proxies []struct {
		Gateway string
		Types   []struct {
			Type       string
			Behind     uint64
			InFlight   int
			LastReject string
		}
	}
	if err := json.Unmarshal(page, &proxies); err != nil {
		return fmt.Errorf("parse syncz: %w", err)
	}
	for _, p := range proxies {
		if p.Gateway != namespace+"/"+waypointName {
			continue
		}
		for _, t := range p.Types {
			if t.Behind != 0 || t.InFlight != 0 || t.LastReject != "" {
				return fmt.Errorf("istiod has %d changes of %s to send, %d in flight; last refusal %q", t.Behind, t.Type, t.InFlight, t.LastReject)
			}
		}
		return nil
	}
	return errors.New("istiod does not know the waypoint")
}

// loadThrough runs one load from the client pod to a service.
func (m *wayMesh) loadThrough(ctx context.Context, service string, s load.Spec) (load.Result, error) {
	port := httpPort
	if s.Kind == load.H2 {
		port = h2Port
	}
	s.Addr = fmt.Sprintf("%s:%d", vips[service], port)
	return runLoad(ctx, m.pods["client"].NetNS, m.cgroup, s)
}

package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/linux"
)

// process is a ztunnel in a node's netns.
type process struct {
	n    *node
	ns   *linux.NetNS
	cmd  *exec.Cmd
	done chan struct{}
	err  error
	port int // admin; the next two are metrics and readiness

	mu    sync.Mutex
	lines []string
}

// startProxy starts a ztunnel; several may run on a node, each with ports of its own.
func (n *node) startProxy() *process {
	n.m.t.Helper()
	port := 15000
	if n.proxy != nil {
		port = n.proxy.port + 100
	}
	return n.startProcess(n.top.NetNS, port, "INPOD_UDS="+filepath.Join(n.dir, "zds.sock"))
}

// startProcess starts a ztunnel in a netns.
func (n *node) startProcess(ns *linux.NetNS, port int, env ...string) *process {
	t := n.m.t
	t.Helper()
	p := &process{n: n, ns: ns, done: make(chan struct{}), port: port}
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), envZtunnel+"=1", "LOG_LEVEL=info", "NODE_NAME="+n.top.Name, "CLUSTER_ID=cluster1",
		"LOCAL_XDS_PATH="+n.m.stateFile(), "AMBIT_CA_DIR="+filepath.Join(n.m.dir, "ca"),
		"TERMINATION_GRACE_PERIOD_SECONDS=15",
		fmt.Sprintf("ADMIN_ADDR=127.0.0.1:%d", p.port), fmt.Sprintf("STATS_ADDR=127.0.0.1:%d", p.port+1), fmt.Sprintf("READINESS_ADDR=127.0.0.1:%d", p.port+2))
	p.cmd.Env = append(p.cmd.Env, env...)
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = p.cmd.Stdout
	// The child is forked from the thread that is in the netns.
	if err := ns.Do(p.cmd.Start); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		s := bufio.NewScanner(out)
		for s.Scan() {
			p.mu.Lock()
			p.lines = append(p.lines, s.Text())
			p.mu.Unlock()
		}
	}()
	go func() {
		<-read
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("ztunnel of %s:\n%s", n.top.Name, strings.Join(p.log(), "\n"))
		}
	})
	return p
}

func (p *process) log() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.lines...)
}

// kill ends the process without a drain.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// terminate asks it to drain.
func (p *process) terminate() {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.n.m.t.Errorf("signal ztunnel: %v", err)
	}
}

// http asks one of the process's servers, inside the node's netns.
func (p *process) http(method string, port int, path string) (int, string, error) {
	c := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return p.ns.Dial(ctx, netip.MustParseAddrPort(addr), linux.DialOptions{})
		}}}
	r, err := http.NewRequest(method, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := c.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func (p *process) waitReady() {
	p.n.m.t.Helper()
	last := ""
	deadline := time.Now().Add(patience)
	for {
		code, body, err := p.http(http.MethodGet, p.port+2, "/healthz/ready")
		if err == nil && code == http.StatusOK {
			return
		}
		last = fmt.Sprint(code, body, err)
		select {
		case <-p.done:
			p.n.m.t.Fatalf("ztunnel ended: %v", p.err)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			p.n.m.t.Fatalf("ztunnel is not ready: %s", last)
		}
	}
}

// access waits for an access log line that has all of these parts, and returns it.
func (p *process) access(parts ...string) string {
	p.n.m.t.Helper()
	return p.accessAfter(0, parts...)
}

// accessAfter is access for lines from index on.
func (p *process) accessAfter(index int, parts ...string) string {
	p.n.m.t.Helper()
	found := ""
	eventuallyQuiet(func() bool {
		for _, l := range p.log()[min(index, len(p.log())):] {
			if strings.Contains(l, "scope=access") && containsAll(l, parts) {
				found = l
				return true
			}
		}
		return false
	})
	if found == "" {
		p.n.m.t.Errorf("no access log line of %s with %q", p.n.top.Name, parts)
	}
	return found
}

func eventuallyQuiet(ok func() bool) {
	for deadline := time.Now().Add(patience / 2); !ok() && time.Now().Before(deadline); {
		<-time.After(20 * time.Millisecond)
	}
}

func containsAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// metric sums the values of a metric's series that have all of these labels.
func (p *process) metric(name string, labels ...string) float64 {
	p.n.m.t.Helper()
	_, body, err := p.http(http.MethodGet, p.port+1, "/metrics")
	if err != nil {
		p.n.m.t.Fatal(err)
	}
	var sum float64
	for line := range strings.Lines(body) {
		if !strings.HasPrefix(line, name+"{") && !strings.HasPrefix(line, name+" ") || !containsAll(line, labels) {
			continue
		}
		f := strings.Fields(line)
		v, err := strconv.ParseFloat(f[len(f)-1], 64)
		if err != nil {
			p.n.m.t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// collect runs the garbage collector, which also closes the pipes that the
// runtime keeps for the next spliced connection.
func (p *process) collect() {
	if _, _, err := p.http(http.MethodGet, p.port, "/debug/pprof/heap?gc=1&debug=1"); err != nil {
		p.n.m.t.Fatal(err)
	}
}

// fds counts open file descriptors.
func (p *process) fds() int {
	e, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		p.n.m.t.Fatal(err)
	}
	return len(e)
}

var goroutineTotal = regexp.MustCompile(`goroutine profile: total (\d+)`)

func (p *process) goroutines() int {
	_, body, err := p.http(http.MethodGet, p.port, "/debug/pprof/goroutine?debug=1")
	if err != nil {
		p.n.m.t.Fatal(err)
	}
	m := goroutineTotal.FindStringSubmatch(body)
	if m == nil {
		p.n.m.t.Fatalf("no total in %q", body)
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

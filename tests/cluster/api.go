package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"time"

	"github.com/vishvananda/netns"
)

// apiTimeout bounds one request to the API server; the server answers within milliseconds or not at all.
const apiTimeout = 5 * time.Second

// api makes one JSON request to the API server as administrator. It serves the few questions that are asked many
// times while the cluster starts; everything else goes through kubectl.
func (c *Cluster) api(ctx context.Context, method, path string, body, result any) error {
	client, err := c.apiClient()
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	var payload bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&payload).Encode(body); err != nil {
			return fmt.Errorf("encode %s %s: %w", method, path, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "https://"+controlPlaneIP().String()+":6443"+path, &payload)
	if err != nil {
		return fmt.Errorf("make request %s %s: %w", method, path, err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the API server: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read the API server's answer: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: status %s: %s", method, path, resp.Status, lastLines(b))
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(b, result); err != nil {
		return fmt.Errorf("decode %s %s: %w", method, path, err)
	}
	return nil
}

func (c *Cluster) apiClient() (*http.Client, error) {
	cert, err := tls.LoadX509KeyPair(c.pki("admin.crt"), c.pki("admin.key"))
	if err != nil {
		return nil, fmt.Errorf("load the administrator's certificate: %w", err)
	}
	ca, err := os.ReadFile(c.pki("ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("load the cluster's root: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("load the cluster's root: no certificate in it")
	}
	return &http.Client{Transport: &http.Transport{
		DialContext:     c.Dial,
		TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, MinVersion: tls.VersionTLS13},
	}}, nil
}

// Dial connects to an IP address and port from the control plane's network namespace.
func (c *Cluster) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		handle, err := netns.GetFromName(c.controlPlaneNS())
		if err != nil {
			done <- result{nil, fmt.Errorf("open the cluster's network namespace: %w", err)}
			return
		}
		defer func() { _ = handle.Close() }()
		if err := netns.Set(handle); err != nil {
			done <- result{nil, fmt.Errorf("enter the cluster's network namespace: %w", err)}
			return
		}
		// A literal address makes the dialer create the socket on this thread.
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// Kubectl is kubectl as administrator, in the cluster's network namespace.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) *exec.Cmd {
	return c.Command(ctx, append([]string{c.binDir() + "/kubectl"}, args...)...)
}

// Command is any program in the cluster's network namespace with KUBECONFIG set.
func (c *Cluster) Command(ctx context.Context, argv ...string) *exec.Cmd {
	return c.commandIn(ctx, c.NetNS(), argv...)
}

// NodeCommand is any program in a node's network namespace.
func (c *Cluster) NodeCommand(ctx context.Context, node string, argv ...string) *exec.Cmd {
	return c.commandIn(ctx, c.NodeNetNS(node), argv...)
}

func (c *Cluster) commandIn(ctx context.Context, netns string, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + netns, "--"}, argv...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
	return cmd
}

package stage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/tests/cluster"
	"github.com/ambit-mesh/ambit/tests/demo/pcap"
)

// captureStart bounds tcpdump's start.
const captureStart = 10 * time.Second

// Capture is a running tcpdump. Stop ends it and reads what it saw.
type Capture struct {
	cmd  *exec.Cmd
	file string
	logs *bytes.Buffer
}

// CaptureBridge records TCP on the bridge that every byte between nodes crosses.
func (s *Stage) CaptureBridge(ctx context.Context) (*Capture, error) {
	return s.capture(ctx, s.Cluster.Command, cluster.Bridge)
}

// CaptureNode records TCP on every interface of a node, which includes both ends of what stays on it.
func (s *Stage) CaptureNode(ctx context.Context, node string) (*Capture, error) {
	in := func(ctx context.Context, argv ...string) *exec.Cmd { return s.Cluster.NodeCommand(ctx, node, argv...) }
	return s.capture(ctx, in, "any")
}

func (s *Stage) capture(ctx context.Context, in func(context.Context, ...string) *exec.Cmd, device string) (*Capture, error) {
	dir := filepath.Join(s.source, "out", "captures")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	c := &Capture{file: filepath.Join(dir, fmt.Sprintf("%s-%d.pcap", device, time.Now().UnixNano())), logs: &bytes.Buffer{}}
	// -Z root: as root it would otherwise become another user, who may not write here.
	c.cmd = in(ctx, "tcpdump", "-i", device, "-n", "-U", "-s", "256", "-B", "16384", "-Z", "root", "-w", c.file, "ip and tcp")
	c.cmd.Stderr = c.logs
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start tcpdump: %w", err)
	}
	err := Poll(ctx, captureStart, func(context.Context) error {
		// The file's header is written when the socket listens.
		if info, err := os.Stat(c.file); err != nil || info.Size() == 0 {
			return errors.New("tcpdump has not begun")
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, c.cmd.Process.Kill(), c.cmd.Wait())
	}
	return c, nil
}

// Stop ends tcpdump and returns its packets. The file is removed.
func (c *Capture) Stop() ([]pcap.Packet, error) {
	if err := c.cmd.Process.Signal(syscall.SIGINT); err != nil {
		return nil, fmt.Errorf("end tcpdump: %w", err)
	}
	if err := c.cmd.Wait(); err != nil {
		return nil, fmt.Errorf("tcpdump: %w: %s", err, c.logs)
	}
	b, err := os.ReadFile(c.file)
	if err != nil {
		return nil, fmt.Errorf("read the capture: %w", err)
	}
	packets, err := pcap.Parse(b)
	return packets, errors.Join(err, os.Remove(c.file))
}

// Traffic is what a capture holds between two sets of pods.
type Traffic struct {
	Packets, Bytes int
	// Readable counts packets whose payload is HTTP as text, Example is the first one's first line.
	Readable int
	Example  string
	// Tunnel counts payload bytes to or from port 15008, of them TLS those in packets that start a TLS record.
	Tunnel, TLS int
	// Others are payload bytes by server port outside the tunnel.
	Others map[string]int
	// Opened counts connections begun, by server port.
	Opened map[string]int
}

// Between sums up the payloads between pods, each of which is in the set.
func Between(packets []pcap.Packet, pods map[netip.Addr]string) Traffic {
	t := Traffic{Others: map[string]int{}, Opened: map[string]int{}}
	for _, p := range packets {
		if pods[p.Src.Addr()] == "" || pods[p.Dst.Addr()] == "" {
			continue
		}
		if p.SYN {
			t.Opened[port(p.Dst)]++
		}
		if p.Length == 0 {
			continue
		}
		t.Packets++
		t.Bytes += p.Length
		if line, ok := httpLine(p.Payload); ok {
			t.Readable++
			if t.Example == "" {
				t.Example = fmt.Sprintf("%s → %s  %s", p.Src, p.Dst, line)
			}
		}
		if p.Src.Port() == ports.HBONE || p.Dst.Port() == ports.HBONE {
			t.Tunnel += p.Length
			if isTLS(p.Payload) {
				t.TLS += p.Length
			}
			continue
		}
		server := p.Dst
		if p.Src.Port() < p.Dst.Port() {
			server = p.Src
		}
		t.Others[port(server)] += p.Length
	}
	return t
}

func port(a netip.AddrPort) string { return strconv.Itoa(int(a.Port())) }

// httpLine is the first line of a payload that starts like an HTTP/1 message.
func httpLine(payload []byte) (string, bool) {
	for _, start := range []string{"GET ", "POST ", "PUT ", "DELETE ", "HTTP/1."} {
		if bytes.HasPrefix(payload, []byte(start)) {
			line, _, _ := bytes.Cut(payload, []byte("\r\n"))
			return string(line), true
		}
	}
	return "", false
}

// isTLS says whether the payload starts with a TLS record header, RFC 8446 section 5.1.
func isTLS(payload []byte) bool {
	return len(payload) >= 3 && payload[0] >= 20 && payload[0] <= 23 && payload[1] == 3
}

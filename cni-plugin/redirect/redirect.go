// Package redirect says what it means to capture a pod's traffic: the interface
// that the node agent works with, and the types that cross it. The subpackages
// ebpf and nft implement it, choose picks one by asking the kernel, and one test
// suite (tests/node/capture) holds both to the same behaviour:
//
//   - New TCP connections to a pod's addresses from outside reach its inbound
//     listeners (HBONE on port 15008, everything else the plaintext one), those
//     that its apps open reach its outbound listener, each with the original
//     destination and source address.
//   - A pod's connections to itself, loopback, UDP and the kubelet's probes are
//     not touched.
//   - Connections that are open when a pod is enrolled or un-enrolled stay open.
//   - Capture without a listener refuses; it never lets plaintext through.
//
// It does not know which pods to capture, and does not serve connections: the
// agent and ztunnel do.
package redirect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"

	"github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/internal/linux"
)

// Pod is what capture needs to know of a pod.
type Pod struct {
	UID   string
	NetNS *linux.NetNS // may be nil for Unenroll, when it is gone
	IPs   []netip.Addr
}

// maxUID bounds a pod's UID in bytes; a UUID has 36, a static pod's hash 32.
const maxUID = 64

// Validate refuses what could not be captured, or would do harm: UIDs become
// names of directories.
func (p Pod) Validate() error {
	if p.UID == "" || len(p.UID) > maxUID {
		return fmt.Errorf("use pod UID %q: want 1 to %d bytes", p.UID, maxUID)
	}
	for _, c := range []byte(p.UID) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return fmt.Errorf("use pod UID %q: character %q", p.UID, c)
		}
	}
	for _, ip := range p.IPs {
		if !ip.IsValid() || ip.IsUnspecified() || ip.IsLoopback() || ip.Zone() != "" {
			return fmt.Errorf("use address %q of pod %q: not a pod's address", ip, p.UID)
		}
	}
	return nil
}

// Listeners are a pod's listening sockets. Whoever holds them closes them; the
// capture of new connections works while anybody holds them.
type Listeners struct {
	Outbound         *os.File
	InboundPlaintext *os.File
	InboundHBONE     *os.File
}

// Close closes all sockets. Nil ones are skipped.
func (l Listeners) Close() error {
	var errs []error
	for _, f := range []*os.File{l.Outbound, l.InboundPlaintext, l.InboundHBONE} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Validate refuses an incomplete set.
func (l Listeners) Validate() error {
	if l.Outbound == nil || l.InboundPlaintext == nil || l.InboundHBONE == nil {
		return errors.New("listeners are incomplete")
	}
	return nil
}

// Redirector captures pods' traffic. Methods may be called from several
// goroutines at once.
type Redirector interface {
	// Name is "ebpf" or "nft".
	Name() string
	// OriginalDestination tells how a captured connection's destination is found.
	OriginalDestination() zds.OriginalDestination
	// AppMark is the SO_MARK of the proxy's connections to the pod's app.
	AppMark() uint32
	// OpenListeners opens sockets that suit this kind of capture in the pod's netns.
	OpenListeners(Pod) (Listeners, error)
	// Enroll captures new connections from when it returns. It can be called
	// again, to repair or to change addresses or listeners. The listeners stay the caller's.
	Enroll(context.Context, Pod, Listeners) error
	// Unenroll stops the capture of new connections. Those already captured go
	// on, and so does the HBONE port, until the listeners are closed. It works
	// when the pod's netns is gone, and on a pod that isn't enrolled.
	Unenroll(context.Context, Pod) error
	// Check compares the kernel's actual state with what Enroll makes. An error
	// says all that is missing; calling Enroll repairs it.
	Check(context.Context, Pod) error
	// Enrolled returns the UIDs of pods that are captured, also those that an
	// earlier agent left.
	Enrolled(context.Context) ([]string, error)
	// Degraded says what the node lacks although capture works, as a kubelet
	// that can't be told from other processes of the host; nil if nothing.
	Degraded() error
	// Close gives resources of this process back and leaves capture in place.
	Close() error
}

// Remover is a Redirector that can take itself off the node, when the mesh is
// uninstalled. Pods that are still enrolled are let go first; their live
// connections end with the listeners.
type Remover interface {
	Remove(context.Context) error
}

// Modes of Config.
const (
	ModeAuto = ""
	ModeEBPF = "ebpf"
	ModeNFT  = "nft"
)

// Config is what a Redirector is made of.
type Config struct {
	// BPFDir is a directory in a BPF filesystem, made if it doesn't exist.
	BPFDir string
	// StateDir keeps what the nftables kind has to find again after a restart;
	// it should be gone after a reboot.
	StateDir string
	// CgroupRoot is the node's cgroup2 root; found by itself if empty.
	CgroupRoot string
	// KubeletCgroups are the cgroup2 directories whose processes may probe
	// pods; found by looking for the kubelet in HostProc if empty.
	KubeletCgroups []string
	// HostProc is where the node's /proc is.
	HostProc string
	// HostNetNS is the node's namespace; nil if the process is in it.
	HostNetNS *linux.NetNS
	// Mode is ModeAuto, or forces a kind.
	Mode string
	Log  *slog.Logger
}

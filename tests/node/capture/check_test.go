package capture

import (
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
)

// sabotage breaks one piece of a pod's capture.
type sabotage struct {
	name string
	want string // in Check's answer
	do   func(t *testing.T, f *fixture)
}

func commonSabotage() []sabotage {
	return []sabotage{
		{"rule", "rule for mark", func(t *testing.T, f *fixture) {
			withNetlink(t, f.pod.ns, func(h *netlink.Handle) error {
				r := netlink.NewRule()
				mask := uint32(ports.MarkMask)
				r.Family, r.Table, r.Mark, r.Mask = netlink.FAMILY_V4, ports.CaptureTable, ports.MarkCapture, &mask
				return h.RuleDel(r)
			})
		}},
		{"route", "local route", func(t *testing.T, f *fixture) {
			withNetlink(t, f.pod.ns, func(h *netlink.Handle) error {
				routes, err := h.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: ports.CaptureTable}, netlink.RT_FILTER_TABLE)
				if err != nil || len(routes) != 1 {
					t.Fatalf("routes %v: %v", routes, err)
				}
				return h.RouteDel(&routes[0])
			})
		}},
		{"pod address", "pod address", func(t *testing.T, f *fixture) {
			deleteFrom(t, filepath.Join(f.cfg.BPFDir, "node/pod_ips"), f.pod.v4.As16())
		}},
		{"listeners", "listener", func(t *testing.T, f *fixture) {
			f.ls.Close()
			f.proxy.stopListening()
		}},
	}
}

func ebpfSabotage() []sabotage {
	return append(commonSabotage(),
		sabotage{"sysctl", "sysctl", func(t *testing.T, f *fixture) {
			sysctls(t, f.pod.ns, map[string]string{"ipv4/fwmark_reflect": "0"})
		}},
		sabotage{"lookup link", "lookup program", func(t *testing.T, f *fixture) { remove(t, f.podFile("steer")) }},
		sabotage{"guard", "guard of interface", func(t *testing.T, f *fixture) {
			guards, err := filepath.Glob(f.podFile("guard-*"))
			if err != nil || len(guards) != 1 {
				t.Fatalf("guards %v: %v", guards, err)
			}
			remove(t, guards[0])
		}},
		sabotage{"another interface", "guard of interface", func(t *testing.T, f *fixture) {
			withNetlink(t, f.pod.ns, func(h *netlink.Handle) error {
				return h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "net1"}, PeerName: "net1-out", PeerNamespace: netlink.NsFd(f.node.ns.Fd())})
			})
		}},
		sabotage{"another address", "other addresses", func(t *testing.T, f *fixture) {
			withNetlink(t, f.pod.ns, func(h *netlink.Handle) error {
				return configure(h, "eth0", netip.MustParseAddr("10.99.0.2"), netip.MustParseAddr("fd99::2"))
			})
		}},
		sabotage{"connect link", "cgroup root", func(t *testing.T, f *fixture) {
			remove(t, filepath.Join(f.cfg.BPFDir, "node/connect6"))
		}},
		sabotage{"enrolled entry", "map of enrolled pods", func(t *testing.T, f *fixture) {
			cookie, err := f.pod.ns.Cookie()
			if err != nil {
				t.Fatal(err)
			}
			deleteFrom(t, filepath.Join(f.cfg.BPFDir, "node/enrolled"), binary.NativeEndian.AppendUint64(nil, cookie))
		}},
	)
}

func nftSabotage() []sabotage {
	chain := func(name string) func(*testing.T, *fixture) {
		return func(t *testing.T, f *fixture) {
			c, err := nftables.New(nftables.WithNetNSFd(f.pod.ns.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			c.FlushChain(&nftables.Chain{Name: name, Table: &nftables.Table{Name: "ambit", Family: nftables.TableFamilyINet}})
			if err := c.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return append(commonSabotage(),
		sabotage{"outbound chain", `chain "outbound"`, chain("outbound")},
		sabotage{"mark chain", `chain "mark"`, chain("mark")},
		sabotage{"table", `chain "inbound"`, func(t *testing.T, f *fixture) {
			c, err := nftables.New(nftables.WithNetNSFd(f.pod.ns.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			c.DelTable(&nftables.Table{Name: "ambit", Family: nftables.TableFamilyINet})
			if err := c.Flush(); err != nil {
				t.Fatal(err)
			}
		}},
		sabotage{"note", "note of the pod", func(t *testing.T, f *fixture) { remove(t, filepath.Join(f.cfg.StateDir, podUID)) }},
	)
}

// TestCheckFindsWhatIsMissing breaks each piece in turn: Check says which, and
// Enroll repairs it.
func TestCheckFindsWhatIsMissing(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		whole := t
		f := newEnrolled(t, kind)
		all := ebpfSabotage()
		if kind == redirect.ModeNFT {
			all = nftSabotage()
		}
		for _, s := range all {
			t.Run(s.name, func(t *testing.T) {
				s.do(t, f)
				err := f.r.Check(t.Context(), f.self)
				if err == nil || !strings.Contains(err.Error(), s.want) {
					t.Errorf("Check says %v, want %q", err, s.want)
				}
				if s.name == "listeners" {
					ls, err := f.r.OpenListeners(f.self)
					if err != nil {
						t.Fatal(err)
					}
					f.ls, f.proxy = ls, startProxy(whole, f.pod.ns, f.r, ls)
				}
				f.enroll(t)
				before := f.proxy.count()
				fresh := f.openStreams(t)
				if got := f.proxy.count() - before; got != len(fresh) {
					t.Errorf("after the repair %d of %d connections are captured", got, len(fresh))
				}
			})
		}
	})
}

func (f *fixture) podFile(name string) string {
	return filepath.Join(f.cfg.BPFDir, "pods", podUID, name)
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func deleteFrom(t *testing.T, path string, key any) {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Delete(key); err != nil {
		t.Fatal(err)
	}
}

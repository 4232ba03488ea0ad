package topology

import (
	"io"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/linux"
)

func TestEveryPodReachesEveryOther(t *testing.T) {
	f, err := New(2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	var pods []*Pod
	for _, n := range f.Nodes {
		for _, name := range []string{"a", "b"} {
			p, err := n.AddPod(name)
			if err != nil {
				t.Fatal(err)
			}
			pods = append(pods, p)
		}
	}
	for _, to := range pods {
		for _, ip := range to.IPs() {
			addr := netip.AddrPortFrom(ip, 8080)
			file, err := to.NetNS.Listen(linux.ListenOptions{Addr: addr})
			if err != nil {
				t.Fatal(err)
			}
			l, err := linux.ListenerFromFile(file)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					io.WriteString(c, to.Name)
					c.Close()
				}
			}()
			for _, from := range pods {
				c, err := from.NetNS.Dial(t.Context(), addr, linux.DialOptions{})
				if err != nil {
					t.Errorf("from %v to %v: %v", from.IP, addr, err)
					continue
				}
				got, err := io.ReadAll(c)
				if err != nil || string(got) != to.Name {
					t.Errorf("from %v to %v: read %q, %v", from.IP, addr, got, err)
				}
				c.Close()
			}
			l.Close()
		}
	}
}

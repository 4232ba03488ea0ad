package podnet

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
)

// Target is a pod with what was found out about its netns.
type Target struct {
	redirect.Pod
	Cookie uint64
	Found  Interfaces
	Own    []netip.Addr // all addresses, also those that only Kubernetes knows
	Unique []netip.Addr // those that name the pod on the node
}

// Inspect reads a pod's netns. host is the inode of the node's own, which is never captured.
func Inspect(pod redirect.Pod, host uint64) (*Target, error) {
	if err := pod.Validate(); err != nil {
		return nil, err
	}
	if pod.NetNS == nil || pod.NetNS.Inode() == host {
		return nil, errors.New("refusing to capture the node's own netns")
	}
	cookie, err := pod.NetNS.Cookie()
	if err != nil {
		return nil, err
	}
	found, err := Read(pod.NetNS)
	if err != nil {
		return nil, err
	}
	t := &Target{Pod: pod, Cookie: cookie, Found: found}
	for _, a := range slices.Concat(pod.IPs, found.Addrs) {
		a = a.Unmap()
		if slices.Contains(t.Own, a) {
			continue
		}
		t.Own = append(t.Own, a)
		if !a.IsLinkLocalUnicast() {
			t.Unique = append(t.Unique, a)
		}
	}
	return t, nil
}

// Sources are the source addresses that the pod's marked sockets get, one of each family.
func (t *Target) Sources() []netip.Addr { return Sources(t.IPs, t.Found.Addrs) }

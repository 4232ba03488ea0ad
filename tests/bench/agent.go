package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	zdspb "github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/internal/zds"
	"github.com/ambit-mesh/ambit/tests/node/topology"
)

// enrol does once what the node agent does: it opens the pod's listeners, hands
// them to the ztunnel that connects to l, and captures the pod's traffic when the
// ztunnel has taken them. The connection must stay open while the pod is served.
func enrol(ctx context.Context, l *zds.Listener, r redirect.Redirector, p *topology.Pod) (*zds.Conn, redirect.Listeners, error) {
	pod := redirect.Pod{UID: p.Name, NetNS: p.NetNS, IPs: p.IPs()}
	listeners, err := r.OpenListeners(pod)
	if err != nil {
		return nil, redirect.Listeners{}, fmt.Errorf("open listeners of pod %q: %w", p.Name, err)
	}
	c, err := hand(l, r, pod, listeners)
	if err == nil {
		err = r.Enroll(ctx, pod, listeners)
	}
	if err != nil {
		if c != nil {
			err = errors.Join(err, c.Close())
		}
		return nil, redirect.Listeners{}, errors.Join(err, listeners.Close())
	}
	return c, listeners, nil
}

// hand speaks the agent's side of ZDS with one ztunnel for one pod.
func hand(l *zds.Listener, r redirect.Redirector, pod redirect.Pod, listeners redirect.Listeners) (*zds.Conn, error) {
	c, err := l.Accept()
	if err != nil {
		return nil, fmt.Errorf("wait for ztunnel: %w", err)
	}
	if err := greet(c); err != nil {
		return c, err
	}
	netns, err := pod.NetNS.File()
	if err != nil {
		return c, err
	}
	defer netns.Close()
	s := zds.Sockets{NetNS: netns, Outbound: listeners.Outbound, InboundPlaintext: listeners.InboundPlaintext, InboundHBONE: listeners.InboundHBONE}
	part, files := s.Pack(r.OriginalDestination(), r.AppMark())
	info := &zdspb.WorkloadInfo{Name: pod.UID, Namespace: namespace, ServiceAccount: pod.UID}
	add := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{Add: &zdspb.AddWorkload{Uid: pod.UID, WorkloadInfo: info, Listeners: part}}}
	if err := ask(c, add, files); err != nil {
		return c, fmt.Errorf("hand pod %q to ztunnel: %w", pod.UID, err)
	}
	sent := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_SnapshotSent{SnapshotSent: &zdspb.SnapshotSent{}}}
	return c, ask(c, sent, nil)
}

// greet takes the hello and, from a fresh ztunnel, an empty list of held pods.
func greet(c *zds.Conn) error {
	hello, err := c.RecvHello()
	if err != nil {
		return fmt.Errorf("receive hello: %w", err)
	}
	if !hello.GetListeners() {
		return errors.New("receive hello: ztunnel takes no listeners")
	}
	m, files, err := c.RecvResponse()
	zds.CloseFiles(files)
	if err != nil {
		return fmt.Errorf("receive held pods: %w", err)
	}
	if m.GetHeldEnd() == nil {
		return errors.New("receive held pods: a fresh ztunnel holds one")
	}
	return nil
}

func ask(c *zds.Conn, m *zdspb.WorkloadRequest, files []*os.File) error {
	if err := c.SendRequest(m, files); err != nil {
		return err
	}
	answer, got, err := c.RecvResponse()
	zds.CloseFiles(got)
	if err != nil {
		return err
	}
	if e := answer.GetAck().GetError(); e != "" {
		return fmt.Errorf("refused: %s", e)
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	zdspb "github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/internal/zds"
	"github.com/ambit-mesh/ambit/tests/node/topology"
)

// enrol does once what the node agent does: it opens the pods' listeners, hands
// them to the ztunnel that connects to l, and captures the pods' traffic when the
// ztunnel has taken them. The connection must stay open while the pods are served;
// the returned function gives everything back.
func enrol(ctx context.Context, l *zds.Listener, r redirect.Redirector, pods ...*topology.Pod) (_ func() error, err error) {
	var undo []func() error
	undone := func() error {
		var errs []error
		for _, f := range slices.Backward(undo) {
			errs = append(errs, f())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, undone())
		}
	}()
	c, err := l.Accept()
	if err != nil {
		return nil, fmt.Errorf("wait for ztunnel: %w", err)
	}
	undo = append(undo, c.Close)
	if err := greet(c); err != nil {
		return nil, err
	}
	for _, p := range pods {
		pod := redirect.Pod{UID: p.Name, NetNS: p.NetNS, IPs: p.IPs()}
		listeners, err := r.OpenListeners(pod)
		if err != nil {
			return nil, fmt.Errorf("open listeners of pod %q: %w", p.Name, err)
		}
		undo = append(undo, listeners.Close)
		if err := hand(c, r, pod, listeners); err != nil {
			return nil, fmt.Errorf("hand pod %q to ztunnel: %w", p.Name, err)
		}
		if err := r.Enroll(ctx, pod, listeners); err != nil {
			return nil, fmt.Errorf("capture pod %q: %w", p.Name, err)
		}
		undo = append(undo, func() error { return r.Unenroll(context.Background(), pod) })
	}
	sent := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_SnapshotSent{SnapshotSent: &zdspb.SnapshotSent{}}}
	return undone, ask(c, sent, nil)
}

// hand gives one pod to ztunnel.
func hand(c *zds.Conn, r redirect.Redirector, pod redirect.Pod, listeners redirect.Listeners) error {
	netns, err := pod.NetNS.File()
	if err != nil {
		return err
	}
	defer netns.Close()
	s := zds.Sockets{NetNS: netns, Outbound: listeners.Outbound, InboundPlaintext: listeners.InboundPlaintext, InboundHBONE: listeners.InboundHBONE}
	part, files := s.Pack(r.OriginalDestination(), r.AppMark())
	info := &zdspb.WorkloadInfo{Name: pod.UID, Namespace: namespace, ServiceAccount: pod.UID}
	add := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{Add: &zdspb.AddWorkload{Uid: pod.UID, WorkloadInfo: info, Listeners: part}}}
	return ask(c, add, files)
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

package capture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	zdspb "github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/zds"
	"github.com/ambit-mesh/ambit/ztunnel/proxy"
)

// session talks to one agent until it is gone or ctx ends. It owns c.
func (m *Manager) session(ctx context.Context, c *zds.Conn) error {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	m.begin()
	if err := c.SendHello(&zdspb.ZdsHello{Version: zdspb.Version_V1, Listeners: true}); err != nil {
		return err
	}
	if err := c.SetDeadline(time.Now().Add(agentSpeaksFirst)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	r, files, err := c.RecvRequest()
	if e := c.SetDeadline(time.Time{}); e != nil {
		return fmt.Errorf("clear deadline: %w", e)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		// It waits for what we hold: Ambit's agent.
		if err := m.giveBack(c); err != nil {
			return err
		}
		r, files, err = c.RecvRequest()
	}
	for ; ; r, files, err = c.RecvRequest() {
		if err != nil && !zds.IsInvalid(err) {
			return err
		}
		fatal := false
		if err == nil {
			fatal, err = m.handle(r, files)
		}
		if err != nil {
			m.cfg.Log.Warn("refuse message of the node agent", telemetry.FieldError, err)
		}
		if serr := c.SendResponse(zds.AckMessage(err), nil); serr != nil {
			return serr
		}
		if fatal {
			return err
		}
	}
}

// begin forgets the snapshot of the connection before; the pods stay.
func (m *Manager) begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.snapshot, m.inSync = map[string]bool{}, false
}

// giveBack lends an agent the sockets that an earlier agent lent us.
func (m *Manager) giveBack(c *zds.Conn) error {
	m.mu.Lock()
	var lent []*entry
	for _, e := range m.pods {
		if e.lent {
			lent = append(lent, e)
		}
	}
	m.mu.Unlock()
	for _, e := range lent {
		s, err := e.files()
		if err != nil {
			// The pod was removed meanwhile: nothing to give back.
			m.cfg.Log.Debug("give back sockets", "uid", e.uid, telemetry.FieldError, err)
			continue
		}
		l, files := s.Pack(e.destination(), uint32(e.cfg.AppMark))
		err = c.SendResponse(&zdspb.WorkloadResponse{Payload: &zdspb.WorkloadResponse_Held{
			Held: &zdspb.HeldWorkload{Uid: e.uid, Listeners: l},
		}}, files)
		s.Close()
		if err != nil {
			return err
		}
	}
	m.cfg.Log.Info("gave back sockets to the node agent", "pods", len(lent))
	return c.SendResponse(&zdspb.WorkloadResponse{Payload: &zdspb.WorkloadResponse_HeldEnd{HeldEnd: &zdspb.HeldEnd{}}}, nil)
}

// handle does what the agent asks. A fatal error ends the connection.
func (m *Manager) handle(r *zdspb.WorkloadRequest, files []*os.File) (fatal bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.readyLocked()
	switch p := r.GetPayload().(type) {
	case *zdspb.WorkloadRequest_Add:
		return false, m.addLocked(p.Add, files)
	case *zdspb.WorkloadRequest_Keep:
		if m.inSync {
			return true, fmt.Errorf("%w: keep %q after the snapshot", ErrProtocol, p.Keep.GetUid())
		}
		m.snapshot[p.Keep.GetUid()] = true
		return false, nil
	case *zdspb.WorkloadRequest_Del:
		m.deleteLocked(p.Del.GetUid())
		return false, nil
	case *zdspb.WorkloadRequest_SnapshotSent:
		if m.inSync {
			return true, fmt.Errorf("%w: second snapshot", ErrProtocol)
		}
		m.reconcileLocked()
		return false, nil
	}
	zds.CloseFiles(files)
	return false, fmt.Errorf("%w: unknown request", zds.ErrInvalid)
}

func (m *Manager) deleteLocked(uid string) {
	m.cfg.Log.Info("pod leaves", "uid", uid)
	delete(m.snapshot, uid)
	m.retireLocked(uid, proxy.HBONELinger)
}

// reconcileLocked ends the snapshot: what it did not name is gone.
func (m *Manager) reconcileLocked() {
	for uid := range m.pods {
		if !m.snapshot[uid] {
			m.cfg.Log.Info("pod is not in the snapshot", "uid", uid)
			m.retireLocked(uid, proxy.HBONELinger)
		}
	}
	for uid := range m.pending {
		if !m.snapshot[uid] {
			m.retireLocked(uid, 0)
		}
	}
	m.snapshot, m.inSync, m.synced = nil, true, true
	m.cfg.Log.Info("snapshot complete", "pods", len(m.pods), "pending", len(m.pending))
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	zdspb "github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/internal/zds"
)

const (
	// helloTimeout bounds a new proxy's greeting with all sockets that it gives back.
	helloTimeout = 10 * time.Second
	// answerTimeout bounds one answer; a proxy that is silent for longer is dropped and comes back.
	answerTimeout = 30 * time.Second
	// maxProxies bounds connected proxies: one serves, a second starts or drains during an upgrade.
	maxProxies = 8
	// acceptPerSecond bounds new connections, so that a proxy that fails in a loop does not keep the agent busy.
	acceptPerSecond = 5
	// maxHeld bounds the pods that a proxy may give back: more than a kubelet runs.
	maxHeld = 4096
)

var (
	// errNoProxy means that no ztunnel is connected.
	errNoProxy = errors.New("no ztunnel is connected")
	// errGone means that a pod was deleted while a proxy was about to be told of it.
	errGone = errors.New("pod is gone")
	// errTooMany means that a proxy sent more than this agent takes.
	errTooMany = errors.New("too many")
)

// served is one pod as proxies are told it. The files belong to whoever called add, who closes them after del.
type served struct {
	info    *zdspb.WorkloadInfo
	gen     uint64
	mu      sync.Mutex // held while files are sent
	gone    bool       // under mu: the files may be closed
	sockets zds.Sockets
}

// result is a proxy's last answer about a pod.
type result struct {
	gen uint64
	err error
}

// peer is one connected proxy. All but conn and its two goroutines' channel is under proxies.mu.
type peer struct {
	id        uint64
	conn      *zds.Conn
	listeners bool
	snapshot  bool
	// told has the pods that the proxy knows, with its last answer; generation 0 is a Keep.
	told    map[string]result
	answers chan answer
}

type answer struct {
	m   *zdspb.WorkloadResponse
	err error
}

// proxies is the ZDS server. It holds the wished state; each connection's own goroutine brings its proxy there,
// one request at a time, so that a slow proxy delays no other and nothing is sent out of order.
type proxies struct {
	log                 *slog.Logger
	originalDestination zdspb.OriginalDestination
	appMark             uint32
	// adopt takes the sockets of a pod that a proxy gives back. It owns them from then on.
	adopt func(uid string, s zds.Sockets)
	// greeted is called when a proxy has given back what it held and is about to be served.
	greeted func()
	// count reports the number of connected proxies.
	count func(int)

	mu      sync.Mutex
	changed chan struct{} // closed at each change, then replaced
	served  map[string]*served
	keep    map[string]bool // pods of an earlier agent of which nothing more is known yet
	peers   []*peer         // in order of arrival: the last one's answer counts
	gen     uint64
	nextID  uint64
}

func newProxies(log *slog.Logger) *proxies {
	return &proxies{
		log: log, changed: make(chan struct{}), served: map[string]*served{}, keep: map[string]bool{},
		adopt: func(_ string, s zds.Sockets) { s.Close() }, greeted: func() {}, count: func(int) {},
	}
}

// wake tells all waiters to look again. The caller holds p.mu.
func (p *proxies) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// run accepts proxies until ctx ends; then all connections are closed.
func (p *proxies) run(ctx context.Context, l *zds.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	limit := rate.NewLimiter(acceptPerSecond, maxProxies)
	slots := make(chan struct{}, maxProxies)
	g.Go(func() error {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if err != nil {
				p.log.Error("ztunnel not accepted", "error", err)
			}
			if limit.Wait(ctx) != nil {
				return closeConn(conn)
			}
			if err != nil {
				continue
			}
			select {
			case slots <- struct{}{}:
			default:
				p.log.Error("ztunnel refused", "error", errTooMany, "connected", maxProxies)
				conn.Close()
				continue
			}
			g.Go(func() error {
				defer func() { <-slots }()
				p.serve(ctx, conn)
				return nil
			})
		}
	})
	return g.Wait()
}

func closeConn(c *zds.Conn) error {
	if c != nil {
		c.Close()
	}
	return nil
}

// serve is the life of one connection.
func (p *proxies) serve(ctx context.Context, conn *zds.Conn) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	hello, err := p.greet(conn)
	if err != nil {
		p.log.Error("ztunnel's greeting failed", "error", err)
		return
	}
	pr := &peer{conn: conn, listeners: hello.GetListeners(), told: map[string]result{}, answers: make(chan answer)}
	done := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() { pr.read(done) })
	// Closing the connection ends the read, closing done ends the hand-over of what it read.
	defer reader.Wait()
	defer conn.Close()
	defer close(done)

	p.join(pr)
	defer p.leave(pr)
	p.log.Info("ztunnel connected", "id", pr.id, "version", hello.GetVersion(), "listeners", pr.listeners)
	p.greeted()
	err = p.feed(ctx, pr)
	if ctx.Err() == nil {
		p.log.Warn("ztunnel disconnected", "id", pr.id, "error", err)
	}
}

// greet reads the hello and what the proxy gives back.
func (p *proxies) greet(conn *zds.Conn) (*zdspb.ZdsHello, error) {
	if err := conn.SetDeadline(time.Now().Add(helloTimeout)); err != nil {
		return nil, fmt.Errorf("set deadline: %w", err)
	}
	hello, err := conn.RecvHello()
	if err != nil {
		return nil, err
	}
	for n := 0; hello.GetListeners(); n++ {
		m, files, err := conn.RecvResponse()
		if err != nil {
			return nil, fmt.Errorf("take back sockets: %w", err)
		}
		if m.GetHeldEnd() != nil {
			break
		}
		h := m.GetHeld()
		if h == nil || n >= maxHeld {
			zds.CloseFiles(files)
			return nil, fmt.Errorf("take back sockets: message %d is %T: %w", n, m.GetPayload(), zds.ErrInvalid)
		}
		s, err := zds.Unpack(h.GetListeners(), files)
		if err != nil {
			return nil, fmt.Errorf("take back sockets of %q: %w", h.GetUid(), err)
		}
		p.adopt(h.GetUid(), s)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("set deadline: %w", err)
	}
	return hello, nil
}

// read passes answers on until the connection fails or done is closed.
func (pr *peer) read(done <-chan struct{}) {
	for {
		m, files, err := pr.conn.RecvResponse()
		zds.CloseFiles(files)
		select {
		case pr.answers <- answer{m, err}:
		case <-done:
			return
		}
		if err != nil {
			return
		}
	}
}

func (p *proxies) join(pr *peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nextID++
	pr.id = p.nextID
	p.peers = append(p.peers, pr)
	p.count(len(p.peers))
	p.wake()
}

func (p *proxies) leave(pr *peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.peers = slices.DeleteFunc(p.peers, func(o *peer) bool { return o == pr })
	p.count(len(p.peers))
	p.wake()
}

// feed brings one proxy to the wished state, and again after each change, until the connection fails.
func (p *proxies) feed(ctx context.Context, pr *peer) error {
	for {
		p.mu.Lock()
		uid, req, s := p.next(pr)
		changed := p.changed
		p.mu.Unlock()
		if req == nil {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case a := <-pr.answers:
				if a.err != nil {
					return a.err
				}
				return fmt.Errorf("%w: an answer to no request", zds.ErrInvalid)
			case <-changed:
			}
			continue
		}
		ackErr, err := p.exchange(ctx, pr, req, s)
		if err != nil {
			return err
		}
		if errors.Is(ackErr, errGone) {
			continue
		}
		p.note(pr, uid, req, s, ackErr)
	}
}

// next says what this proxy has to be told now; a nil request means nothing. The caller holds p.mu.
func (p *proxies) next(pr *peer) (string, *zdspb.WorkloadRequest, *served) {
	for _, uid := range slices.Sorted(maps.Keys(p.served)) {
		s := p.served[uid]
		if pr.told[uid].gen != s.gen {
			return uid, &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{
				Add: &zdspb.AddWorkload{Uid: uid, WorkloadInfo: s.info},
			}}, s
		}
	}
	if !pr.snapshot {
		for uid := range p.keep {
			if _, known := pr.told[uid]; !known {
				return uid, &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Keep{Keep: &zdspb.KeepWorkload{Uid: uid}}}, nil
			}
		}
		return "", &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_SnapshotSent{SnapshotSent: &zdspb.SnapshotSent{}}}, nil
	}
	for uid := range pr.told {
		if p.served[uid] == nil && !p.keep[uid] {
			return uid, &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Del{Del: &zdspb.DelWorkload{Uid: uid}}}, nil
		}
	}
	return "", nil, nil
}

// exchange sends one request and waits for its answer: ackErr is the proxy's refusal, err the connection's end.
func (p *proxies) exchange(ctx context.Context, pr *peer, req *zdspb.WorkloadRequest, s *served) (ackErr, err error) {
	sent, err := p.send(pr, req, s)
	if err != nil {
		return nil, err
	}
	if !sent {
		return errGone, nil
	}
	t := time.NewTimer(answerTimeout)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.C:
		return nil, fmt.Errorf("no answer within %v to %v", answerTimeout, req)
	case a := <-pr.answers:
		if a.err != nil {
			return nil, a.err
		}
		ack := a.m.GetAck()
		if ack == nil {
			return nil, fmt.Errorf("%w: %T in place of an ack", zds.ErrInvalid, a.m.GetPayload())
		}
		if ack.GetError() != "" {
			return errors.New(ack.GetError()), nil
		}
		return nil, nil
	}
}

// send writes the request; false means that the pod went meanwhile. It does not block for long: a request is
// only sent when the one before was answered, so the socket's buffer is empty.
func (p *proxies) send(pr *peer, req *zdspb.WorkloadRequest, s *served) (bool, error) {
	if s == nil {
		return true, pr.conn.SendRequest(req, nil)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return false, nil
	}
	sockets := s.sockets
	if !pr.listeners {
		// A proxy that speaks V1 only opens its own listeners.
		sockets = zds.Sockets{NetNS: s.sockets.NetNS}
	}
	l, files := sockets.Pack(p.originalDestination, p.appMark)
	req.GetAdd().Listeners = l
	return true, pr.conn.SendRequest(req, files)
}

// note records an answer.
func (p *proxies) note(pr *peer, uid string, req *zdspb.WorkloadRequest, s *served, ackErr error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch req.GetPayload().(type) {
	case *zdspb.WorkloadRequest_SnapshotSent:
		pr.snapshot = true
	case *zdspb.WorkloadRequest_Del:
		delete(pr.told, uid)
	case *zdspb.WorkloadRequest_Keep:
		pr.told[uid] = result{}
	case *zdspb.WorkloadRequest_Add:
		pr.told[uid] = result{gen: s.gen, err: ackErr}
	}
	if ackErr != nil {
		p.log.Error("ztunnel refused a request", "id", pr.id, "uid", uid, "request", fmt.Sprintf("%T", req.GetPayload()), "error", ackErr)
	}
	p.wake()
}

// add tells all proxies of a pod and waits until the newest one has taken it. A pod that the newest one has
// taken already is not sent again. The sockets stay the caller's, until del has returned.
func (p *proxies) add(ctx context.Context, uid string, info *zdspb.WorkloadInfo, sockets zds.Sockets) error {
	gen := p.publish(uid, info, sockets)
	for {
		p.mu.Lock()
		var r result
		connected := len(p.peers) > 0
		if connected {
			r = p.peers[len(p.peers)-1].told[uid]
		}
		changed := p.changed
		p.mu.Unlock()
		if connected && r.gen == gen {
			return r.err
		}
		select {
		case <-ctx.Done():
			if !connected {
				return errNoProxy
			}
			return fmt.Errorf("wait for ztunnel's answer: %w", ctx.Err())
		case <-changed:
		}
	}
}

// publish tells all proxies of a pod without waiting; a pod that the newest one refused is sent again.
func (p *proxies) publish(uid string, info *zdspb.WorkloadInfo, sockets zds.Sockets) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.keep, uid)
	if s := p.served[uid]; s != nil && s.sockets == sockets && !p.refused(uid, s.gen) {
		return s.gen
	}
	p.gen++
	p.served[uid] = &served{info: info, gen: p.gen, sockets: sockets}
	p.wake()
	return p.gen
}

// refused tells whether the newest proxy refused that generation of the pod. The caller holds p.mu.
func (p *proxies) refused(uid string, gen uint64) bool {
	if len(p.peers) == 0 {
		return false
	}
	r := p.peers[len(p.peers)-1].told[uid]
	return r.gen == gen && r.err != nil
}

// del tells all proxies that a pod is gone and waits for those that are connected, until ctx ends. When it
// returns, the pod's sockets are not used here any more.
func (p *proxies) del(ctx context.Context, uid string) error {
	p.mu.Lock()
	s := p.served[uid]
	delete(p.served, uid)
	delete(p.keep, uid)
	p.wake()
	p.mu.Unlock()
	if s != nil {
		s.mu.Lock()
		s.gone = true
		s.mu.Unlock()
	}
	for {
		p.mu.Lock()
		waiting := slices.ContainsFunc(p.peers, func(pr *peer) bool { _, ok := pr.told[uid]; return ok })
		changed := p.changed
		p.mu.Unlock()
		if !waiting {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until ztunnel has let the pod go: %w", ctx.Err())
		case <-changed:
		}
	}
}

// keepAlive names pods that proxies must go on serving although this agent has no sockets of them yet.
func (p *proxies) keepAlive(uids ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, uid := range uids {
		if p.served[uid] == nil {
			p.keep[uid] = true
		}
	}
}

// opensItsOwn tells whether the newest proxy opens listeners of its own, which only speaks V1.
func (p *proxies) opensItsOwn() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.peers) > 0 && !p.peers[len(p.peers)-1].listeners
}

// narrow makes later proxies get a pod's network namespace alone; when it returns, its listeners may be closed.
func (p *proxies) narrow(uid string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.served[uid]; s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.sockets = zds.Sockets{NetNS: s.sockets.NetNS}
	}
}

// connected is the number of proxies.
func (p *proxies) connected() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.peers)
}

package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sort"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/xds/dial"
)

const (
	// maxReceiveBytes bounds one response, as Istio's ztunnel does: the first one may
	// hold the whole mesh (4 MiB for 10,000 pods).
	maxReceiveBytes = 200 << 20
	// warnRequestBytes is the size of a reconnect's list of versions from which a
	// server with gRPC's default limit of 4 MiB would refuse it.
	warnRequestBytes = 4<<20 - 64<<10
	// DefaultMinBackoff and DefaultMaxBackoff bound the wait before a reconnect.
	DefaultMinBackoff = 10 * time.Millisecond
	DefaultMaxBackoff = 15 * time.Second
	// maxErrorDetail bounds the text of a refusal, in bytes.
	maxErrorDetail = 16 << 10
)

// Update is one response: what changed of one type.
type Update struct {
	Type      string
	Resources []*discovery.Resource
	Removed   []string
}

// Handler applies an update and returns the resources that it refuses, by name,
// each with the reason; what it does not name it has applied. It is never called
// concurrently by one Client.
type Handler func(Update) map[string]error

// Config configures a Client.
type Config struct {
	Address    string // https://host:port, or http://host:port for plaintext
	RootFile   string
	TokenFile  string
	ServerName string // default ports.IstiodServerName
	ClusterID  string
	Node       *core.Node // see NewNode
	Types      map[string]Handler
	// OnDemand subscribes to ports.TypeAddress resources one by one (Demand) instead
	// of to all of them. Other types are always subscribed to as a whole.
	OnDemand   bool
	Log        *slog.Logger
	MinBackoff time.Duration // zero means DefaultMinBackoff
	MaxBackoff time.Duration // zero means DefaultMaxBackoff
	Hooks      Hooks
	Random     func() float64 // jitter source in [0,1); nil means math/rand/v2
}

// Hooks are called from the client's goroutine; nil ones are skipped.
type Hooks struct {
	// Connected is called with nil at the first response of a stream, and with the
	// reason when a stream ends or none comes up.
	Connected func(error)
	// Handled is called after each response with the number of refused resources.
	Handled func(typeURL string, resources, removed, rejected int)
}

// Client keeps one stream to the control plane.
type Client struct {
	cfg       Config
	types     []string // sorted
	ready     chan struct{}
	waiting   map[string]bool              // types not yet applied once
	versions  map[string]map[string]string // type → name → version held
	demanding chan struct{}                // capacity 1: new entries in wanted

	mu     sync.Mutex
	wanted []string                   // demanded, not yet sent on this stream
	open   map[string][]chan struct{} // demanded, not yet answered
}

// New checks cfg; nothing connects before Run.
func New(cfg Config) (*Client, error) {
	if err := cfg.dial().Check(); err != nil {
		return nil, fmt.Errorf("make xDS client: %w", err)
	}
	if cfg.Node.GetId() == "" {
		return nil, errors.New("make xDS client: the node has no id")
	}
	if len(cfg.Types) == 0 {
		return nil, errors.New("make xDS client: no resource type")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.MinBackoff <= 0 {
		cfg.MinBackoff = DefaultMinBackoff
	}
	if cfg.MaxBackoff <= 0 {
		cfg.MaxBackoff = DefaultMaxBackoff
	}
	if cfg.Random == nil {
		cfg.Random = rand.Float64
	}
	c := &Client{
		cfg: cfg, ready: make(chan struct{}), waiting: map[string]bool{}, versions: map[string]map[string]string{},
		demanding: make(chan struct{}, 1), open: map[string][]chan struct{}{},
	}
	for t := range cfg.Types {
		c.types = append(c.types, t)
		c.versions[t] = map[string]string{}
		if !c.onDemand(t) {
			c.waiting[t] = true
		}
	}
	sort.Strings(c.types)
	if len(c.waiting) == 0 {
		close(c.ready)
	}
	return c, nil
}

func (cfg *Config) dial() dial.Options {
	return dial.Options{
		Address: cfg.Address, RootFile: cfg.RootFile, ServerName: cfg.ServerName, TokenFile: cfg.TokenFile, ClusterID: cfg.ClusterID,
	}
}

func (c *Client) onDemand(typeURL string) bool { return c.cfg.OnDemand && typeURL == ports.TypeAddress }

// Ready is closed once the first response of each type that is subscribed to as a
// whole has been applied. A refused resource does not hold it up as long as the rest
// of its response was good: the rest is in force.
func (c *Client) Ready() <-chan struct{} { return c.ready }

// Run keeps a stream up until ctx ends, then returns nil. It may be called once.
func (c *Client) Run(ctx context.Context) error {
	backoff := c.cfg.MinBackoff
	for ctx.Err() == nil {
		responses, err := c.stream(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if c.cfg.Hooks.Connected != nil {
			c.cfg.Hooks.Connected(err)
		}
		// A stream that worked was ended on purpose or by an accident that may have
		// passed: come back soon. One that never answered is asked less and less.
		if responses > 0 {
			backoff = c.cfg.MinBackoff
		}
		wait := backoff/2 + time.Duration(c.cfg.Random()*float64(backoff/2))
		level := slog.LevelWarn
		if responses > 0 && expected(err) {
			level = slog.LevelInfo
		}
		c.cfg.Log.Log(ctx, level, "xds stream ended", slog.Any("error", err), slog.Int("responses", responses), slog.Duration("retry", wait))
		backoff = min(2*backoff, c.cfg.MaxBackoff)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	return nil
}

// expected tells the normal end of a stream from trouble: a server closes streams
// now and then to spread its clients.
func expected(err error) bool {
	if errors.Is(err, io.EOF) {
		return true
	}
	s, _ := status.FromError(err)
	switch s.Code() {
	case codes.OK, codes.Canceled, codes.DeadlineExceeded:
		return true
	case codes.Unavailable:
		return strings.Contains(s.Message(), "transport is closing") || strings.Contains(s.Message(), "goaway") ||
			strings.Contains(s.Message(), "graceful_stop")
	default:
		return false
	}
}

type adsStream = grpc.BidiStreamingClient[discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse]

// stream runs one stream to its end and says how many responses came.
func (c *Client) stream(ctx context.Context) (responses int, err error) {
	conn, err := dial.New(c.cfg.dial(), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReceiveBytes)))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return 0, fmt.Errorf("open xDS stream: %w", err)
	}
	if err := c.subscribe(s); err != nil {
		return 0, err
	}
	incoming := make(chan *discovery.DeltaDiscoveryResponse)
	ended := make(chan error, 1)
	var receiver sync.WaitGroup
	receiver.Go(func() {
		for {
			r, err := s.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case incoming <- r:
			case <-ctx.Done():
				ended <- ctx.Err()
				return
			}
		}
	})
	defer receiver.Wait()
	defer cancel() // before Wait: ends a blocked Recv
	for {
		select {
		case r := <-incoming:
			if responses++; responses == 1 && c.cfg.Hooks.Connected != nil {
				c.cfg.Hooks.Connected(nil)
			}
			if err := send(s, c.handle(r)); err != nil {
				return responses, err
			}
		case <-c.demanding:
			if err := c.sendDemands(s); err != nil {
				return responses, err
			}
		case err := <-ended:
			return responses, fmt.Errorf("receive from xDS stream: %w", err)
		}
	}
}

// send sends r; a failed send means that the stream has ended, and its status, which
// says why, is with the receiver.
func send(s adsStream, r *discovery.DeltaDiscoveryRequest) error {
	err := s.Send(r)
	if errors.Is(err, io.EOF) {
		for err = nil; err == nil; {
			_, err = s.Recv()
		}
	}
	if err != nil {
		return fmt.Errorf("send on xDS stream: %w", err)
	}
	return nil
}

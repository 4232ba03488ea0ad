// Package relay carries Envoy's configuration stream to istiod: Envoy opens it on
// a unix socket of the pod, the relay opens one over TLS with the pod's token, and
// copies messages both ways. The agent registers it beside package sds.
//
// It always holds that one message is in memory for each direction of a stream, so
// that a slow side slows the other; that Envoy's stream waits while istiod cannot
// be reached; and that it ends when istiod's ends, upon which Envoy opens a new one
// and says what it holds, and goes on serving what it has meanwhile.
//
// It changes no message and keeps none. It reads requests only to tell of those in
// which Envoy refuses what istiod sent.
package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/internal/xds/dial"
)

const (
	// MaxRequestBytes bounds a request of Envoy's: at a reconnect it lists every resource held, about 70 bytes each.
	MaxRequestBytes = 64 << 20
	// maxResponseBytes bounds a response, as for ztunnel's stream.
	maxResponseBytes = 200 << 20
	// maxReadBytes is up to where a request is read. Refusals are short; a list of resources held is not.
	maxReadBytes = 256 << 10
	// DefaultMinBackoff and DefaultMaxBackoff bound the wait before istiod is tried again. A control plane that comes
	// back should be found within seconds.
	DefaultMinBackoff = 50 * time.Millisecond
	DefaultMaxBackoff = 5 * time.Second
)

// service and method are Envoy's aggregated discovery service, incremental.
const (
	service = "envoy.service.discovery.v3.AggregatedDiscoveryService"
	method  = "DeltaAggregatedResources"
)

// Hooks are called from the relay's goroutines; nil ones are skipped.
type Hooks struct {
	// Connected is called with nil when a stream to istiod has brought its first message, and with the reason when one
	// ends or none comes up.
	Connected func(error)
	// Passed is called for each message: from istiod, or from Envoy.
	Passed func(fromIstiod bool, bytes int)
	// Rejected is called when Envoy refuses a response of this type.
	Rejected func(typeURL string)
}

// Config configures a Relay.
type Config struct {
	Istiod     dial.Options
	Log        *slog.Logger
	Hooks      Hooks
	MinBackoff time.Duration  // zero means DefaultMinBackoff
	MaxBackoff time.Duration  // zero means DefaultMaxBackoff
	Random     func() float64 // jitter source in [0,1); nil means math/rand/v2
}

// Relay carries streams. Close it after its gRPC server.
type Relay struct {
	cfg Config
	wg  sync.WaitGroup
}

// New makes a Relay.
func New(cfg Config) *Relay {
	if cfg.MinBackoff <= 0 {
		cfg.MinBackoff = DefaultMinBackoff
	}
	if cfg.MaxBackoff <= 0 {
		cfg.MaxBackoff = DefaultMaxBackoff
	}
	if cfg.Random == nil {
		cfg.Random = rand.Float64
	}
	return &Relay{cfg: cfg}
}

// ServerOptions are what a gRPC server needs to carry the relay's messages, and others.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()), grpc.MaxRecvMsgSize(MaxRequestBytes),
		grpc.WaitForHandlers(true), // Stop then returns when every stream has been taken down
	}
}

// Register adds the service to a gRPC server made with ServerOptions.
func (r *Relay) Register(g grpc.ServiceRegistrar) {
	g.RegisterService(&grpc.ServiceDesc{
		ServiceName: service, HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName: method, ServerStreams: true, ClientStreams: true,
			Handler: func(_ any, s grpc.ServerStream) error { return r.serve(s) },
		}},
	}, r)
}

// Close waits for the goroutines of streams that have ended.
func (r *Relay) Close() { r.wg.Wait() }

// serve carries one stream of Envoy's until either side ends it.
func (r *Relay) serve(envoy grpc.ServerStream) error {
	ctx, cancel := context.WithCancel(envoy.Context())
	defer cancel()
	istiod, closeConn, err := r.connect(ctx)
	if err != nil {
		return err
	}
	defer closeConn()
	r.wg.Go(func() { // ends when envoy does, at the latest when serve returns
		if err := r.requests(envoy, istiod); err != nil {
			cancel()
		}
	})
	responses, err := r.responses(istiod, envoy)
	if envoy.Context().Err() != nil {
		return nil // Envoy went; there is nobody to tell
	}
	r.disconnected(responses, err)
	// Envoy reconnects whatever the status is; it shows the text in its log.
	return status.Errorf(codes.Unavailable, "stream to istiod ended: %v", err)
}

// connect opens a stream to istiod, again and again until it opens or ctx ends.
func (r *Relay) connect(ctx context.Context) (grpc.ClientStream, func(), error) {
	for backoff := r.cfg.MinBackoff; ; backoff = min(2*backoff, r.cfg.MaxBackoff) {
		stream, closeConn, err := r.open(ctx)
		if err == nil {
			return stream, closeConn, nil
		}
		if ctx.Err() != nil {
			return nil, nil, status.FromContextError(ctx.Err()).Err()
		}
		pause := backoff/2 + time.Duration(r.cfg.Random()*float64(backoff/2))
		r.cfg.Log.Warn("cannot reach istiod", slog.Any("error", err), slog.Duration("retry", pause))
		if r.cfg.Hooks.Connected != nil {
			r.cfg.Hooks.Connected(err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// open makes one attempt, on a connection of its own: a new one checks istiod against the roots as they are now, and
// spreads over istiod's replicas.
func (r *Relay) open(ctx context.Context) (grpc.ClientStream, func(), error) {
	conn, err := dial.New(r.cfg.Istiod, grpc.WithDefaultCallOptions(
		grpc.ForceCodecV2(newCodec()), grpc.MaxCallRecvMsgSize(maxResponseBytes), grpc.MaxCallSendMsgSize(MaxRequestBytes)))
	if err != nil {
		return nil, nil, err
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{StreamName: method, ServerStreams: true, ClientStreams: true}, "/"+service+"/"+method)
	if err != nil {
		_ = conn.Close() // it carried nothing
		return nil, nil, fmt.Errorf("open stream: %w", err)
	}
	return stream, func() { _ = conn.Close() }, nil // its stream has ended, or ends by this
}

// requests copies from Envoy to istiod until Envoy ends its side, or an error.
func (r *Relay) requests(envoy grpc.ServerStream, istiod grpc.ClientStream) error {
	for {
		var f frame
		if err := envoy.RecvMsg(&f); err != nil {
			if errors.Is(err, io.EOF) {
				return istiod.CloseSend()
			}
			return err
		}
		r.read(f.data)
		size := f.data.Len()
		if err := istiod.SendMsg(&f); err != nil {
			if errors.Is(err, io.EOF) {
				return nil // istiod's status is with responses
			}
			return err
		}
		if r.cfg.Hooks.Passed != nil {
			r.cfg.Hooks.Passed(false, size)
		}
	}
}

// responses copies from istiod to Envoy until istiod ends, and says how many there were.
func (r *Relay) responses(istiod grpc.ClientStream, envoy grpc.ServerStream) (n int, err error) {
	for {
		var f frame
		if err := istiod.RecvMsg(&f); err != nil {
			return n, err
		}
		if n++; n == 1 {
			r.cfg.Log.Info("istiod answers")
			if r.cfg.Hooks.Connected != nil {
				r.cfg.Hooks.Connected(nil)
			}
		}
		size := f.data.Len()
		if err := envoy.SendMsg(&f); err != nil {
			return n, err
		}
		if r.cfg.Hooks.Passed != nil {
			r.cfg.Hooks.Passed(true, size)
		}
	}
}

// disconnected tells of the end of a stream. One that has brought something ends now and then, to spread clients.
func (r *Relay) disconnected(responses int, err error) {
	level := slog.LevelWarn
	if responses > 0 {
		level = slog.LevelInfo
	}
	r.cfg.Log.Log(context.Background(), level, "stream to istiod ended", slog.Any("error", err), slog.Int("responses", responses))
	if r.cfg.Hooks.Connected != nil {
		r.cfg.Hooks.Connected(err)
	}
}

// read tells of a request that refuses a response.
func (r *Relay) read(data mem.BufferSlice) {
	if data.Len() > maxReadBytes {
		return
	}
	typeURL, reason := refusal(data.Materialize())
	if reason == "" {
		return
	}
	r.cfg.Log.Error("envoy refused configuration", slog.String("type", typeURL), slog.String("reason", reason))
	if r.cfg.Hooks.Rejected != nil {
		r.cfg.Hooks.Rejected(typeURL)
	}
}

// refusal is what a request refuses and why, or nothing.
func refusal(request []byte) (typeURL, reason string) {
	var m discovery.DeltaDiscoveryRequest
	if err := proto.Unmarshal(request, &m); err != nil || m.GetErrorDetail() == nil {
		return "", ""
	}
	if reason = m.GetErrorDetail().GetMessage(); reason == "" {
		reason = "no reason given"
	}
	return m.GetTypeUrl(), reason
}

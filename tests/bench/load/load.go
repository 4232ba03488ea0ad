// Package load makes and measures the traffic of the benchmark: bulk streams,
// keep-alive HTTP requests and short connections, each for a bounded time over a
// bounded number of connections. The bench driver runs Serve in the server pod
// and Run in the client pod, once directly and once through the mesh. It knows
// nothing of the mesh, retries nothing, and counts every error.
package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// Limits of one run: no load is unbounded in count or time.
const (
	// MaxConns bounds the connections of one run.
	MaxConns = 1024
	// MaxDuration bounds the time of one run.
	MaxDuration = 30 * time.Second
	// bulkChunk is what the bulk sender writes per call, in bytes: large enough that system calls do not dominate.
	bulkChunk = 256 << 10
	// bodySize is the size of an HTTP answer's body, in bytes: the 1 KB of published mesh figures.
	bodySize = 1 << 10
	// dialTimeout bounds one connection attempt.
	dialTimeout = 5 * time.Second
)

// Kind of traffic. Its byte is the first one on a connection to the server.
type Kind byte

// The kinds.
const (
	// Stream sends bytes one way as fast as they go; the unit is bytes.
	Stream Kind = 'S'
	// HTTP sends one GET after the other on each connection; the unit is requests.
	HTTP Kind = 'G'
	// Conns opens a connection, sends one GET, reads the answer to its end and closes; the unit is connections.
	// The server closes first, so that the client's ports do not wait in TIME_WAIT.
	Conns Kind = 'C'
	// H1 and H2 are real requests, HTTP/1.1 and HTTP/2 with prior knowledge, one after the other on each connection, to
	// what ServeHTTP serves; the unit is requests. The kind is not sent: the first byte is the protocol's own.
	H1 Kind = '1'
	H2 Kind = '2'
)

// Spec of one run.
type Spec struct {
	Kind     Kind
	Addr     string
	Conns    int
	Duration time.Duration
}

// Result of one run. Latencies are of requests or connections, not of streams.
type Result struct {
	Units    uint64        `json:"units"`
	Elapsed  time.Duration `json:"elapsed_ns"`
	P50      time.Duration `json:"p50_ns"`
	P99      time.Duration `json:"p99_ns"`
	Errors   int           `json:"errors"`
	FirstErr string        `json:"first_error,omitempty"`
	// CPU is what the client itself used; who started its process fills it in.
	CPU time.Duration `json:"-"`
}

// PerSecond is the rate in units a second.
func (r Result) PerSecond() float64 { return float64(r.Units) / r.Elapsed.Seconds() }

// Validate reports what is out of bounds.
func (s Spec) Validate() error {
	switch s.Kind {
	case Stream, HTTP, Conns, H1, H2:
	default:
		return fmt.Errorf("run load %q: unknown kind", string(s.Kind))
	}
	if s.Conns < 1 || s.Conns > MaxConns {
		return fmt.Errorf("run load with %d connections: must be 1 to %d", s.Conns, MaxConns)
	}
	if s.Duration <= 0 || s.Duration > MaxDuration {
		return fmt.Errorf("run load for %v: must be positive and at most %v", s.Duration, MaxDuration)
	}
	return nil
}

// worker is one connection's share of a result.
type worker struct {
	units     uint64
	latencies []time.Duration
	err       error
}

// Run drives the load and returns when its time is over. Errors of single
// connections are counted in the result, not returned.
func Run(ctx context.Context, s Spec) (Result, error) {
	if err := s.Validate(); err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.Duration)
	defer cancel()
	drive := map[Kind]func(context.Context, string, *worker) error{
		Stream: stream, HTTP: keepAlive, Conns: connectEach,
		H1: func(ctx context.Context, addr string, w *worker) error { return requests(ctx, addr, w, false) },
		H2: func(ctx context.Context, addr string, w *worker) error { return requests(ctx, addr, w, true) },
	}[s.Kind]
	workers := make([]worker, s.Conns)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() { workers[i].err = drive(ctx, s.Addr, &workers[i]) })
	}
	wg.Wait()
	return summarise(workers, time.Since(start)), nil
}

func summarise(workers []worker, elapsed time.Duration) Result {
	r := Result{Elapsed: elapsed}
	var all []time.Duration
	for _, w := range workers {
		r.Units += w.units
		all = append(all, w.latencies...)
		if w.err != nil {
			r.Errors++
			if r.FirstErr == "" {
				r.FirstErr = w.err.Error()
			}
		}
	}
	slices.Sort(all)
	if n := len(all); n > 0 {
		r.P50, r.P99 = all[n/2], all[min(n-1, n*99/100)]
	}
	return r
}

// dial connects and says what the connection is for. The connection is closed when ctx ends.
func dial(ctx context.Context, addr string, k Kind) (net.Conn, func(), error) {
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(context.WithoutCancel(ctx), "tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Now()) })
	if _, err := c.Write([]byte{byte(k)}); err != nil {
		stop()
		c.Close()
		return nil, nil, err
	}
	return c, func() { stop(); c.Close() }, nil
}

// ended tells the end of the run from a failure.
func ended(ctx context.Context, err error) error {
	var ne net.Error
	if ctx.Err() != nil && (errors.As(err, &ne) && ne.Timeout() || errors.Is(err, net.ErrClosed)) {
		return nil
	}
	return err
}

func stream(ctx context.Context, addr string, w *worker) error {
	c, done, err := dial(ctx, addr, Stream)
	if err != nil {
		return err
	}
	defer done()
	chunk := make([]byte, bulkChunk)
	for ctx.Err() == nil {
		n, err := c.Write(chunk)
		w.units += uint64(n)
		if err != nil {
			return ended(ctx, err)
		}
	}
	return nil
}

var request = []byte("GET /bench HTTP/1.1\r\nHost: bench\r\nUser-Agent: ambit-bench\r\nAccept: */*\r\n\r\n")

func keepAlive(ctx context.Context, addr string, w *worker) error {
	c, done, err := dial(ctx, addr, HTTP)
	if err != nil {
		return err
	}
	defer done()
	answer := make([]byte, len(response))
	for ctx.Err() == nil {
		start := time.Now()
		if err := ask(c, answer); err != nil {
			return ended(ctx, err)
		}
		w.units++
		w.latencies = append(w.latencies, time.Since(start))
	}
	return nil
}

func ask(c net.Conn, answer []byte) error {
	if _, err := c.Write(request); err != nil {
		return err
	}
	_, err := io.ReadFull(c, answer)
	return err
}

func connectEach(ctx context.Context, addr string, w *worker) error {
	answer := make([]byte, len(response))
	for ctx.Err() == nil {
		start := time.Now()
		c, done, err := dial(ctx, addr, Conns)
		if err != nil {
			return ended(ctx, err)
		}
		if err = ask(c, answer); err == nil {
			err = atEnd(c)
		}
		done()
		if err != nil {
			return ended(ctx, err)
		}
		w.units++
		w.latencies = append(w.latencies, time.Since(start))
	}
	return nil
}

// atEnd waits for the server's end of the connection.
func atEnd(c net.Conn) error {
	var b [1]byte
	if _, err := c.Read(b[:]); err != io.EOF {
		return fmt.Errorf("read after the answer: %w", err)
	}
	return nil
}

// response is a whole HTTP answer of bodySize bytes.
var response = append([]byte(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", bodySize)), make([]byte, bodySize)...)

// Serve answers every kind of load on l until l is closed. It owns the
// connections it accepts.
func Serve(l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept load connection: %w", err)
		}
		wg.Go(func() {
			defer c.Close()
			serve(c)
		})
	}
}

func serve(c net.Conn) {
	var kind [1]byte
	if _, err := io.ReadFull(c, kind[:]); err != nil {
		return
	}
	if Kind(kind[0]) == Stream {
		sink := make([]byte, bulkChunk)
		for {
			if _, err := c.Read(sink); err != nil {
				return
			}
		}
	}
	r := bufio.NewReaderSize(c, len(request)*2)
	ask := make([]byte, len(request))
	for {
		if _, err := io.ReadFull(r, ask); err != nil {
			return
		}
		if _, err := c.Write(response); err != nil || Kind(kind[0]) == Conns {
			return
		}
	}
}

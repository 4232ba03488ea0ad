package load

import (
	"net"
	"testing"
	"time"
)

func TestEveryKindMovesUnitsWithoutErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- Serve(l) }()
	for _, k := range []Kind{Stream, HTTP, Conns} {
		r, err := Run(t.Context(), Spec{Kind: k, Addr: l.Addr().String(), Conns: 4, Duration: 100 * time.Millisecond})
		if err != nil || r.Errors != 0 || r.Units == 0 {
			t.Errorf("Run(%c) = %+v, %v; want units and no errors", k, r, err)
		}
		if k != Stream && (r.P50 <= 0 || r.P99 < r.P50) {
			t.Errorf("Run(%c) latencies p50 %v p99 %v", k, r.P50, r.P99)
		}
	}
	l.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestARefusedServerIsCountedPerConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	r, err := Run(t.Context(), Spec{Kind: HTTP, Addr: addr, Conns: 3, Duration: time.Second})
	if err != nil || r.Errors != 3 || r.FirstErr == "" {
		t.Errorf("Run = %+v, %v; want 3 errors and a reason", r, err)
	}
}

func TestLoadIsBounded(t *testing.T) {
	for _, s := range []Spec{
		{Kind: 'x', Conns: 1, Duration: time.Second},
		{Kind: HTTP, Conns: 0, Duration: time.Second},
		{Kind: HTTP, Conns: MaxConns + 1, Duration: time.Second},
		{Kind: HTTP, Conns: 1, Duration: MaxDuration + 1},
	} {
		if _, err := Run(t.Context(), s); err == nil {
			t.Errorf("Run(%+v) ran; want it refused", s)
		}
	}
}

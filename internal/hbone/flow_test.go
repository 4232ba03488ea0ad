package hbone

import (
	"testing"
	"time"
)

func TestSendWindow(t *testing.T) {
	for _, tc := range []struct {
		name  string
		w     sendWindow
		n     int64
		want  sendWindow
		legal bool
	}{
		{"credit", 10, 5, 15, true},
		{"shrinks below zero", 10, -30, -20, true},
		{"comes back", -20, 30, 10, true},
		{"up to the largest", 1, maxWindow - 1, maxWindow, true},
		{"overflow", 1, maxWindow, 1, false},
	} {
		w := tc.w
		if ok := w.grow(tc.n); ok != tc.legal || w != tc.want {
			t.Errorf("%s: grow = %v, window %d, want %v, %d", tc.name, ok, w, tc.legal, tc.want)
		}
	}
}

func TestStreamReceiveWindow(t *testing.T) {
	w := newRecvWindow(1000, 4000)
	type step struct {
		what   string
		n      int64
		credit int64 // of consume
		ok     bool  // of receive
	}
	for i, s := range []step{
		{"receive", 900, 0, true},
		{"receive", 101, 0, false}, // beyond the window
		{"receive", 100, 0, true},
		{"consume", 200, 0, false}, // too little to tell
		{"consume", 50, 250, false},
		{"receive", 251, 0, false},
		{"receive", 250, 0, true},
		{"consume", 1000, 1000, false},
	} {
		switch s.what {
		case "receive":
			if ok := w.receive(s.n); ok != s.ok {
				t.Fatalf("step %d: receive(%d) = %v", i, s.n, ok)
			}
		case "consume":
			if got := w.consume(s.n); got != s.credit {
				t.Fatalf("step %d: consume(%d) = %d, want %d", i, s.n, got, s.credit)
			}
		}
	}
	if w.avail != w.size {
		t.Errorf("everything was consumed, the window is %d of %d", w.avail, w.size)
	}
}

func TestStreamWindowGrowsOnlyForReadersThatKeepUp(t *testing.T) {
	w := newRecvWindow(1000, 3000)
	now := time.Unix(1_000_000, 0)
	for i, s := range []struct {
		pass   time.Duration // since the step before
		credit int64
		idle   bool
		want   int64
	}{
		{0, 500, true, 0},                // the first credit starts the clock
		{turnOver, 999, true, 0},         // not a whole window yet
		{1, 1, true, 0},                  // a whole window, but slowly
		{turnOver / 2, 500, true, 0},     // half of one
		{turnOver / 2, 500, false, 0},    // quickly, but the application is behind
		{turnOver / 2, 500, true, 0},     // half of one
		{turnOver / 2, 500, true, 1000},  // quickly: it doubles
		{turnOver / 2, 1000, true, 0},    // the new window is larger
		{turnOver / 2, 1000, true, 1000}, // up to the limit
		{1, 3000, true, 0},               // and no further
	} {
		now = now.Add(s.pass)
		got := w.wants(s.credit, now, s.idle)
		if got != s.want {
			t.Fatalf("step %d: wants %d, want %d", i, got, s.want)
		}
		w.grow(got)
	}
	if w.size != 3000 {
		t.Errorf("size %d, want the limit", w.size)
	}
}

func TestConnectionWindowReturnsCreditOnReceipt(t *testing.T) {
	w := newConnRecvWindow(100_000)
	var back int64
	for i := range 1000 {
		if !w.receive(20_000) {
			t.Fatalf("frame %d does not fit, though nothing has to be read", i)
		}
		back += w.credit()
	}
	if want := int64(1000 * 20_000); back < want-25_000 || back > want {
		t.Errorf("returned %d of %d", back, want)
	}
	w = newConnRecvWindow(100_000)
	if w.receive(100_001) {
		t.Error("took more than the window")
	}
	if small := newConnRecvWindow(10); small.size != defaultWindow {
		t.Errorf("a connection window cannot be announced below %d, got %d", defaultWindow, small.size)
	}
}

func TestFloodGauge(t *testing.T) {
	now := time.Unix(1000, 0)
	var g floodGauge
	for i := range floodBurst {
		if !g.add(now) {
			t.Fatalf("frame %d of a legal burst was refused", i)
		}
	}
	if g.add(now) {
		t.Error("the burst has no end")
	}
	if now = now.Add(time.Second); !g.add(now) {
		t.Error("a second later nothing is forgiven")
	}
	g = floodGauge{}
	for i := range 60 * floodRate {
		now = now.Add(time.Second / floodRate)
		if !g.add(now) {
			t.Fatalf("frame %d at the legal rate was refused", i)
		}
	}
}

func TestMemoryShares(t *testing.T) {
	m := NewMemory(100, 1000)
	if !m.hold(400, 400) {
		t.Error("refused below half of the cap")
	}
	if m.hold(200, 600) {
		t.Error("one stream holds more than its share beyond half of the cap")
	}
	if !m.hold(100, 100) {
		t.Error("a small stream is refused below the cap")
	}
	if m.hold(301, 301) {
		t.Error("more than the cap")
	}
	m.drop(600, 0)
	m.drop(100, 0)
	m.drop(301, 0)
	if m.Buffered() != 0 || m.holders.Load() != 0 {
		t.Errorf("%d bytes of %d streams left", m.Buffered(), m.holders.Load())
	}
	if !m.grow(60) || m.grow(60) || !m.grow(40) {
		t.Error("the budget for windows is not kept")
	}
	m.shrink(100)
	if !m.grow(100) {
		t.Error("a returned budget is lost")
	}
}

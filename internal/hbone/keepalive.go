package hbone

import (
	"sync"
	"time"
)

// keepalive tells a live peer from a dead one: after interval of no PING it sends one, and when nothing at all has come
// from the peer for timeout after that, the peer is dead. Any byte counts as life, because behind a slow link the answer
// may wait in a long queue of DATA.
//
// Timers are not state: stop and start begin anew, which is what a tunnel does that was frozen.
type keepalive struct {
	interval, timeout time.Duration
	received          func() uint64 // grows with every byte from the peer
	ping              func()
	dead              func()

	mu      sync.Mutex
	timer   *time.Timer
	waiting bool   // a PING is out
	mark    uint64 // received when it went out
	gen     int    // start and stop; an old timer that still fires sees another one
}

func (k *keepalive) start() {
	if k.interval <= 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gen++
	k.waiting = false
	k.arm(k.interval)
}

func (k *keepalive) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gen++
	if k.timer != nil {
		k.timer.Stop()
	}
}

// arm is called with mu held.
func (k *keepalive) arm(d time.Duration) {
	if k.timer != nil {
		k.timer.Stop()
	}
	gen := k.gen
	k.timer = time.AfterFunc(d, func() { k.fire(gen) })
}

func (k *keepalive) fire(gen int) {
	k.mu.Lock()
	if gen != k.gen {
		k.mu.Unlock()
		return
	}
	now := k.received()
	act := k.ping
	switch {
	case !k.waiting:
		k.waiting, k.mark = true, now
		k.arm(k.timeout)
	case now != k.mark:
		k.waiting = false
		act = nil
		k.arm(k.interval)
	default:
		act = k.dead
	}
	k.mu.Unlock()
	if act != nil {
		act()
	}
}

// acked says that the peer answered our PING.
func (k *keepalive) acked() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.waiting {
		k.waiting = false
		k.arm(k.interval)
	}
}

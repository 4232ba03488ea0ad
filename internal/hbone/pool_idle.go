package hbone

import "time"

// armIdle starts the idle time of a tunnel without streams, or ends it at once if the pool takes no more.
func (p *Pool) armIdle(pc *pooled) {
	if p.closed {
		pc.c.leave()
		return
	}
	pc.idleGen++
	gen := pc.idleGen
	if pc.idle != nil {
		pc.idle.Stop()
	}
	pc.idle = time.AfterFunc(p.lim.IdleTimeout, func() { p.evict(pc, gen) })
}

// evict ends a tunnel that has been idle for long. It never meets a live stream: a place is reserved under the same lock.
func (p *Pool) evict(pc *pooled, gen int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pc.gone || gen != pc.idleGen || pc.load() > 0 {
		return
	}
	pc.c.leave()
}

// evictIdle ends some idle tunnel of any group to make room for another one.
func (p *Pool) evictIdle() bool {
	for _, g := range p.groups {
		for _, pc := range g.conns {
			if pc.load() == 0 && pc.c.usable(0) {
				pc.c.leave()
				return true
			}
		}
	}
	return false
}

// Stats describes every live tunnel.
func (p *Pool) Stats() []ConnInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	var l []ConnInfo
	for _, g := range p.groups {
		for _, pc := range g.conns {
			i := pc.c.info()
			i.Target = g.target
			l = append(l, i)
		}
	}
	return l
}

// Drain makes Open fail from now on; streams go on, and each tunnel ends with its last stream.
func (p *Pool) Drain() {
	for _, pc := range p.shut() {
		pc.c.drain()
	}
}

// Close resets what is still open and returns when every goroutine of the pool has ended.
func (p *Pool) Close() error {
	conns := p.shut()
	p.cancel()
	for _, pc := range conns {
		pc.c.fail(ErrPoolClosed)
	}
	p.wg.Wait()
	return nil
}

// shut refuses new work and returns the tunnels.
func (p *Pool) shut() []*pooled {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var l []*pooled
	for _, g := range p.groups {
		g.refuse(len(g.waiters), ErrPoolClosed)
		l = append(l, g.conns...)
	}
	return l
}

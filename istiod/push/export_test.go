package push

import (
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// Behind counts changes that are not published yet.
func Behind(c *Cache) uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.seq - c.published
}

// LogLen is the length of a type's log.
func LogLen(c *Cache, typeURL string) int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.types[typeURL].log)
}

// WithGrace replaces the time for which a connected proxy keeps clusters that are no more.
func WithGrace(c Config, d time.Duration) Config {
	c.grace = &d
	return c
}

// Mentioned is for a table test.
func Mentioned(message string, names ...string) []string {
	var sent []*discovery.Resource
	for _, n := range names {
		sent = append(sent, &discovery.Resource{Name: n})
	}
	return mentioned(message, sent)
}

// Needs lists what a resource waits for, as "short type:name".
func Needs(r *Resource) []string {
	var out []string
	for _, n := range r.needs {
		out = append(out, shortType(n.typeURL)+":"+n.name)
	}
	return out
}

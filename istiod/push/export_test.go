package push

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

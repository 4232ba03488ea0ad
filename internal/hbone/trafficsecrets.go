package hbone

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"io"
)

// trafficSecrets takes the first application traffic secrets of a connection (RFC 8446 section 7.1) out of crypto/tls,
// which tells them only as lines of a key log: a label, the client's random and the secret, in hex. They stay in this
// process; crypto/tls's own copies of the lines are garbage that cannot be wiped.
type trafficSecrets struct{ client, server []byte }

// tap returns cfg with this as its key log, and without session tickets: a ticket would be a record that we do not count.
func (s *trafficSecrets) tap(cfg *tls.Config) *tls.Config {
	cfg = cfg.Clone()
	cfg.SessionTicketsDisabled = true
	if cfg.KeyLogWriter != nil {
		cfg.KeyLogWriter = io.MultiWriter(cfg.KeyLogWriter, s)
	} else {
		cfg.KeyLogWriter = s
	}
	if get := cfg.GetConfigForClient; get != nil {
		cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := get(hello)
			if c == nil || err != nil {
				return c, err
			}
			return s.tap(c), nil
		}
	}
	return cfg
}

// Write takes one line of a key log.
func (s *trafficSecrets) Write(line []byte) (int, error) {
	f := bytes.Fields(line)
	if len(f) != 3 {
		return len(line), nil
	}
	secret := make([]byte, hex.DecodedLen(len(f[2])))
	if _, err := hex.Decode(secret, f[2]); err != nil {
		return 0, err
	}
	switch string(f[0]) {
	case "CLIENT_TRAFFIC_SECRET_0":
		s.client = secret
	case "SERVER_TRAFFIC_SECRET_0":
		s.server = secret
	default:
		clear(secret)
	}
	return len(line), nil
}

// take returns the secrets of what we read and of what we write, once.
func (s *trafficSecrets) take(client bool) (read, write []byte) {
	read, write = s.client, s.server
	if client {
		read, write = write, read
	}
	s.client, s.server = nil, nil
	return read, write
}

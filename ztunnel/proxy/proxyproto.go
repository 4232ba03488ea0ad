package proxy

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Constants of the PROXY protocol, version 2 (HAProxy's proxy-protocol.txt, section 2.2).
const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	proxyCommand   = 0x21 // version 2, PROXY
	proxyTCP4      = 0x11
	proxyTCP6      = 0x21
	// proxyTLVIdentity carries the client's SPIFFE id, as Istio's waypoints read it.
	proxyTLVIdentity = 0xD0
	// proxyWriteTimeout bounds the header's way into a fresh connection's empty send buffer.
	proxyWriteTimeout = time.Second
)

// writeProxyHeader tells the app who the client is and what it asked for.
func writeProxyHeader(c *net.TCPConn, src, dst netip.AddrPort, id string) error {
	if err := c.SetWriteDeadline(time.Now().Add(proxyWriteTimeout)); err != nil {
		return fmt.Errorf("write PROXY header: %w", err)
	}
	if _, err := c.Write(proxyHeader(src, dst, id)); err != nil {
		return fmt.Errorf("write PROXY header: %w", err)
	}
	if err := c.SetWriteDeadline(time.Time{}); err != nil {
		return fmt.Errorf("write PROXY header: %w", err)
	}
	return nil
}

func proxyHeader(src, dst netip.AddrPort, id string) []byte {
	family := byte(proxyTCP6)
	var addrs []byte
	if s, d := src.Addr().Unmap(), dst.Addr().Unmap(); s.Is4() && d.Is4() {
		family = proxyTCP4
		a, b := s.As4(), d.As4()
		addrs = append(append(addrs, a[:]...), b[:]...)
	} else {
		a, b := src.Addr().As16(), dst.Addr().As16()
		addrs = append(append(addrs, a[:]...), b[:]...)
	}
	addrs = binary.BigEndian.AppendUint16(addrs, src.Port())
	addrs = binary.BigEndian.AppendUint16(addrs, dst.Port())
	if id != "" {
		addrs = append(addrs, proxyTLVIdentity)
		addrs = binary.BigEndian.AppendUint16(addrs, uint16(len(id)))
		addrs = append(addrs, id...)
	}
	h := append([]byte(proxySignature), proxyCommand, family)
	h = binary.BigEndian.AppendUint16(h, uint16(len(addrs)))
	return append(h, addrs...)
}

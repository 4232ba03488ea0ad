package bpf

import (
	"encoding/binary"
	"net/netip"
)

// Key returns how the programs know an address: 16 bytes, v4 as v4-mapped v6.
// It is the key of every map by address.
func Key(a netip.Addr) [16]byte { return a.As16() }

// SteerAddress is Key as a field of SteerPod.
func SteerAddress(a netip.Addr) SteerAddr {
	k := Key(a)
	var s SteerAddr
	for i := range s.W {
		s.W[i] = binary.NativeEndian.Uint32(k[4*i:])
	}
	return s
}

// Address is the reverse of SteerAddress.
func (s SteerAddr) Address() netip.Addr {
	var k [16]byte
	for i, w := range s.W {
		binary.NativeEndian.PutUint32(k[4*i:], w)
	}
	return netip.AddrFrom16(k).Unmap()
}

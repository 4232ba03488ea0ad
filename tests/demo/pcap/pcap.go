// Package pcap reads the TCP packets of a capture file that tcpdump wrote. The demo
// and the end-to-end tests use it to say what crossed a wire.
//
// It knows the classic pcap format (draft-ietf-opsawg-pcap) with Ethernet and Linux
// cooked link types, IPv4 and TCP. Other packets are skipped; no stream is put
// together.
package pcap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Packet is one TCP packet.
type Packet struct {
	Src, Dst netip.AddrPort
	// SYN is set on the first packet of a connection only, not on the answer to it.
	SYN, RST bool
	// Length is that of the TCP payload on the wire; Payload is what of it was captured.
	Length  int
	Payload []byte
}

// Link types, and the length of the header that each puts before IP.
const (
	linkEthernet = 1
	linkCooked   = 113 // LINUX_SLL
	linkCooked2  = 276 // LINUX_SLL2

	fileHeader   = 24 // bytes
	packetHeader = 16
	etherIPv4    = 0x0800
	protocolTCP  = 6
)

// Parse reads a whole file. A packet cut off at the end of the file ends it without error: the writer was stopped.
func Parse(file []byte) ([]Packet, error) {
	if len(file) < fileHeader {
		return nil, errors.New("parse capture: shorter than its header")
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch binary.LittleEndian.Uint32(file) {
	case 0xa1b2c3d4, 0xa1b23c4d: // microseconds, nanoseconds
	case 0xd4c3b2a1, 0x4d3cb2a1:
		order = binary.BigEndian
	default:
		return nil, fmt.Errorf("parse capture: unknown magic number %#x", file[:4])
	}
	link := order.Uint32(file[20:]) & 0xffff
	if link != linkEthernet && link != linkCooked && link != linkCooked2 {
		return nil, fmt.Errorf("parse capture: unknown link type %d", link)
	}
	var packets []Packet
	for rest := file[fileHeader:]; len(rest) >= packetHeader; {
		captured := int(order.Uint32(rest[8:]))
		if captured < 0 || captured > len(rest)-packetHeader {
			break
		}
		if p, ok := parseFrame(link, rest[packetHeader:packetHeader+captured]); ok {
			packets = append(packets, p)
		}
		rest = rest[packetHeader+captured:]
	}
	return packets, nil
}

// parseFrame says whether the frame is TCP over IPv4.
func parseFrame(link uint32, frame []byte) (Packet, bool) {
	var kindAt, ipAt int
	switch link {
	case linkEthernet:
		kindAt, ipAt = 12, 14
	case linkCooked:
		kindAt, ipAt = 14, 16
	case linkCooked2:
		kindAt, ipAt = 0, 20
	}
	if len(frame) < ipAt || binary.BigEndian.Uint16(frame[kindAt:]) != etherIPv4 {
		return Packet{}, false
	}
	return parseIPv4(frame[ipAt:])
}

// parseIPv4 reads RFC 791 and RFC 9293 headers.
func parseIPv4(ip []byte) (Packet, bool) {
	const minIP, minTCP = 20, 20
	if len(ip) < minIP || ip[0]>>4 != 4 || ip[9] != protocolTCP {
		return Packet{}, false
	}
	header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if header < minIP || len(ip) < header+minTCP {
		return Packet{}, false
	}
	tcp := ip[header:]
	offset := int(tcp[12]>>4) * 4
	if offset < minTCP || total < header+offset {
		return Packet{}, false
	}
	address := func(at int) netip.Addr { return netip.AddrFrom4([4]byte(ip[at : at+4])) }
	p := Packet{
		Src:    netip.AddrPortFrom(address(12), binary.BigEndian.Uint16(tcp)),
		Dst:    netip.AddrPortFrom(address(16), binary.BigEndian.Uint16(tcp[2:])),
		SYN:    tcp[13]&2 != 0 && tcp[13]&16 == 0,
		RST:    tcp[13]&4 != 0,
		Length: total - header - offset,
	}
	if len(tcp) > offset {
		p.Payload = tcp[offset:min(len(tcp), offset+p.Length)]
	}
	return p, true
}

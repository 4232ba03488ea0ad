package pcap

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// capture builds a file of one TCP packet by hand.
func capture(link uint32, before []byte, payload string) []byte {
	ip := make([]byte, 40)
	ip[0], ip[9] = 0x45, protocolTCP
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(payload)))
	copy(ip[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	binary.BigEndian.PutUint16(ip[20:], 40000)
	binary.BigEndian.PutUint16(ip[22:], 80)
	ip[32] = 5 << 4
	frame := slices.Concat(before, ip, []byte(payload))

	file := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	file = append(file, make([]byte, 16)...)
	file = binary.LittleEndian.AppendUint32(file, link)
	file = append(file, make([]byte, 8)...)
	file = binary.LittleEndian.AppendUint32(file, uint32(len(frame)))
	file = binary.LittleEndian.AppendUint32(file, uint32(len(frame)))
	return append(file, frame...)
}

func TestParse(t *testing.T) {
	ethernet := append(make([]byte, 12), 0x08, 0x00)
	cooked := append(make([]byte, 14), 0x08, 0x00)
	cooked2 := append([]byte{0x08, 0x00}, make([]byte, 18)...)
	want := []Packet{{Src: netip.MustParseAddrPort("10.0.0.1:40000"), Dst: netip.MustParseAddrPort("10.0.0.2:80"), Length: 5, Payload: []byte("GET /")}}
	for name, file := range map[string][]byte{
		"ethernet": capture(linkEthernet, ethernet, "GET /"),
		"cooked":   capture(linkCooked, cooked, "GET /"),
		"cooked 2": capture(linkCooked2, cooked2, "GET /"),
	} {
		got, err := Parse(file)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		// Cut anywhere, it must neither fail nor invent a packet.
		if got, err := Parse(file[:len(file)-1]); err != nil || len(got) != 0 {
			t.Errorf("%s cut off: %v, %v", name, got, err)
		}
	}
	if _, err := Parse(make([]byte, 24)); err == nil {
		t.Error("zeroes pass as a capture")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(capture(linkEthernet, append(make([]byte, 12), 0x08, 0x00), "x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		packets, _ := Parse(b) // must not panic
		for _, p := range packets {
			if len(p.Payload) > p.Length {
				t.Errorf("payload of %d bytes in a packet of %d", len(p.Payload), p.Length)
			}
		}
	})
}

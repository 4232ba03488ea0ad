package nft

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/linux"
)

const tableName = "ambit"

// Hook priorities: marks before routing decisions are made of them, redirection
// where destination NAT has its place.
const (
	priorityMark = -150 // mangle
	priorityNAT  = -100 // dstnat
)

// chain is a base chain with its rules.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	rules    [][]expr.Any
	capture  bool // emptied to un-enrol; the others serve connections that live on
}

// ruleset is what an enrolled pod has. In nft's words:
//
//	chain mark { type filter hook prerouting priority -150;
//	  meta mark & 0xfff == 0x53a ct mark set ct mark & 0xfffff000 | 0x111 }
//	chain route { type route hook output priority -150;
//	  ct mark & 0xfff == 0x111 meta mark set meta mark & 0xfffff000 | 0x111 }
//	chain inbound { type nat hook prerouting priority -100;
//	  ip saddr <probe source> accept
//	  iifname != lo tcp flags & (fin|syn|rst|ack) == syn tcp dport != 15008 meta mark & 0xfff != 0x539 redirect to :15006 }
//	chain outbound { type nat hook output priority -100;
//	  oifname != lo tcp flags & (fin|syn|rst|ack) == syn meta mark & 0xfff != 0x539 redirect to :15001 }
//
// What a pod sends to itself leaves by lo, so that its own addresses need not
// be known.
func ruleset(probes []netip.Addr) []chain {
	mark := chain{name: "mark", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: priorityMark}
	mark.rules = [][]expr.Any{slices.Concat(
		markIs(loadMark(), expr.CmpOpEq, ports.MarkApp),
		replaceMark(&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, &expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true}),
	)}
	route := chain{name: "route", kind: nftables.ChainTypeRoute, hook: nftables.ChainHookOutput, priority: priorityMark}
	route.rules = [][]expr.Any{slices.Concat(
		markIs(&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, expr.CmpOpEq, ports.MarkCapture),
		replaceMark(loadMark(), &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}),
	)}
	inbound := chain{name: "inbound", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPrerouting, priority: priorityNAT, capture: true}
	for _, p := range probes {
		inbound.rules = append(inbound.rules, slices.Concat(fromAddr(p), accept()))
	}
	inbound.rules = append(inbound.rules, slices.Concat(
		notLoopback(expr.MetaKeyIIFNAME), newTCP(), portIsNot(ports.HBONE),
		markIs(loadMark(), expr.CmpOpNeq, ports.MarkProxy), redirectTo(ports.ZtunnelInboundPlaintext)))
	outbound := chain{name: "outbound", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookOutput, priority: priorityNAT, capture: true}
	outbound.rules = [][]expr.Any{slices.Concat(
		notLoopback(expr.MetaKeyOIFNAME), newTCP(),
		markIs(loadMark(), expr.CmpOpNeq, ports.MarkProxy), redirectTo(ports.ZtunnelOutbound))}
	return []chain{mark, route, inbound, outbound}
}

func table() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
}

// install makes the chains hold exactly these rules, in one transaction.
func install(ns *linux.NetNS, chains []chain) error {
	c, err := open(ns)
	if err != nil {
		return err
	}
	defer c.CloseLasting()
	t := c.AddTable(table())
	for _, ch := range chains {
		nc := c.AddChain(&nftables.Chain{Name: ch.name, Table: t, Type: ch.kind, Hooknum: ch.hook, Priority: &ch.priority})
		c.FlushChain(nc)
		for _, r := range ch.rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: nc, Exprs: r, UserData: digest(r)})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("install nftables rules: %w", err)
	}
	return nil
}

// uninstall stops capturing; it is no error if nothing was installed.
func uninstall(ns *linux.NetNS) error {
	c, err := open(ns)
	if err != nil {
		return err
	}
	defer c.CloseLasting()
	have, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("list nftables chains: %w", err)
	}
	for _, ch := range ruleset(nil) {
		if ch.capture && slices.ContainsFunc(have, func(x *nftables.Chain) bool { return x.Table.Name == tableName && x.Name == ch.name }) {
			c.FlushChain(&nftables.Chain{Name: ch.name, Table: table()})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("empty nftables chains: %w", err)
	}
	return nil
}

// check says which chains don't hold exactly these rules.
func check(ns *linux.NetNS, chains []chain) error {
	c, err := open(ns)
	if err != nil {
		return err
	}
	defer c.CloseLasting()
	var missing []error
	for _, ch := range chains {
		got, err := c.GetRules(table(), &nftables.Chain{Name: ch.name})
		if err != nil {
			missing = append(missing, fmt.Errorf("nftables chain %q: %w", ch.name, err))
			continue
		}
		same := slices.EqualFunc(got, ch.rules, func(g *nftables.Rule, want []expr.Any) bool {
			return string(g.UserData) == string(digest(want))
		})
		if !same {
			missing = append(missing, fmt.Errorf("nftables chain %q holds other rules", ch.name))
		}
	}
	return errors.Join(missing...)
}

// digest marks a rule, so that it is known again without reading the kernel's
// form of it back.
func digest(rule []expr.Any) []byte {
	h := fnv.New64a()
	for _, e := range rule {
		fmt.Fprintf(h, "%T%+v;", e, e)
	}
	return h.Sum([]byte("ambit:"))
}

// checkListeners says which of the proxy's ports nobody listens on.
func checkListeners(ns *linux.NetNS) error {
	var missing []error
	for _, p := range []uint16{ports.ZtunnelOutbound, ports.ZtunnelInboundPlaintext, ports.HBONE} {
		if ok, err := ns.Listening(p); err != nil {
			missing = append(missing, err)
		} else if !ok {
			missing = append(missing, fmt.Errorf("listener on port %d is closed", p))
		}
	}
	return errors.Join(missing...)
}

func loadMark() expr.Any { return &expr.Meta{Key: expr.MetaKeyMARK, Register: 1} }

// markIs compares our bits of the mark that load puts into register 1.
func markIs(load expr.Any, op expr.CmpOp, want uint32) []expr.Any {
	return []expr.Any{load,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(ports.MarkMask), Xor: native(0)},
		&expr.Cmp{Op: op, Register: 1, Data: native(want)}}
}

// replaceMark sets our bits of a mark to MarkCapture and keeps the others.
func replaceMark(load, store expr.Any) []expr.Any {
	const others = 0xffffffff &^ uint32(ports.MarkMask)
	return []expr.Any{load,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(others), Xor: native(ports.MarkCapture)}, store}
}

// newTCP matches the first packet of a connection: SYN without FIN, RST or ACK.
func newTCP() []expr.Any {
	const flagsAt, fin, syn, rst, ack = 13, 0x01, 0x02, 0x04, 0x10
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: flagsAt, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{fin | syn | rst | ack}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{syn}}}
}

func portIsNot(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)}}
}

func notLoopback(key expr.MetaKey) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, "lo")
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: name}}
}

func fromAddr(a netip.Addr) []expr.Any {
	proto, offset := byte(unix.NFPROTO_IPV4), uint32(12)
	if a.Is6() {
		proto, offset = unix.NFPROTO_IPV6, 8
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(a.BitLen() / 8)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()}}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

func redirectTo(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Redir{RegisterProtoMin: 1}}
}

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

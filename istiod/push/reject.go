package push

import (
	"slices"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// Rejection is a proxy's verdict on resources: with a Reason it refused them and
// goes on with their former state, without one it has accepted them since, or
// they or the proxy are gone.
type Rejection struct {
	// Proxy is the waypoint or gateway, zero for a ztunnel; Node is the replica's own id.
	Proxy model.Key
	Node  string
	// Type is the resources' type URL. Names is empty if a removal was refused.
	Type   string
	Names  []string
	Reason string
}

func (st *stream) rejection(w *watch, names []string, reason string) Rejection {
	return Rejection{Proxy: st.view.Proxy, Node: st.node.GetId(), Type: w.typeURL, Names: names, Reason: reason}
}

// report passes verdicts on, without any lock held.
func (st *stream) report(list []Rejection) {
	if st.srv.cfg.OnReject == nil {
		return
	}
	for _, r := range list {
		st.srv.cfg.OnReject(r)
	}
}

// judge keeps the set of rejected resources: the last of done was refused in part
// if there is a reason, all else was accepted.
func (st *stream) judge(w *watch, done []inflight, refused []string, reason string) []Rejection {
	var accepted []string
	if len(w.rejected) > 0 {
		for _, f := range done {
			for _, r := range f.sent {
				name := r.GetName()
				if _, ok := w.rejected[name]; ok && !slices.Contains(refused, name) {
					delete(w.rejected, name)
					accepted = append(accepted, name)
				}
			}
		}
	}
	var out []Rejection
	if len(accepted) > 0 {
		out = append(out, st.rejection(w, accepted, ""))
	}
	if reason == "" {
		return out
	}
	for _, name := range refused {
		w.rejected[name] = rejected{from: done[len(done)-1].from, reason: reason}
	}
	return append(out, st.rejection(w, refused, reason))
}

// mentioned returns the names of those resources that the message of a rejection
// speaks of, or all: the protocol has no field for them.
func mentioned(message string, sent []*discovery.Resource) []string {
	var named, all []string
	for _, r := range sent {
		all = append(all, r.GetName())
		if speaksOf(message, r.GetName()) {
			named = append(named, r.GetName())
		}
	}
	if len(named) > 0 {
		return named
	}
	return all
}

// speaksOf tells whether message holds name, and not as a part of a longer name.
func speaksOf(message, name string) bool {
	if name == "" {
		return false
	}
	for {
		i := strings.Index(message, name)
		if i < 0 {
			return false
		}
		before, after := message[:i], message[i+len(name):]
		if (before == "" || !nameByte(before[len(before)-1])) && !continues(after) {
			return true
		}
		message = after
	}
}

// continues tells whether a name goes on with rest; a full stop that ends a sentence does not count.
func continues(rest string) bool {
	switch {
	case rest == "":
		return false
	case rest[0] == '.' || rest[0] == ':':
		return len(rest) > 1 && nameByte(rest[1])
	default:
		return nameByte(rest[0])
	}
}

func nameByte(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || strings.IndexByte("-_|/", b) >= 0
}

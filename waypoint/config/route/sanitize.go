package route

import (
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	headerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"

	"github.com/ambit-mesh/ambit/waypoint/config/names"
	"github.com/ambit-mesh/ambit/waypoint/config/route/match"
)

// mark is any character of a header's name that is neither letter nor digit (RFC 9110, section 5.6.2); other is one
// that is no hyphen either. Applications that turn names into variables (RFC 3875, section 4.1.18, and WSGI, Rack or
// PHP after it) cannot tell them apart, so that x_forwarded_client_cert is X-Forwarded-Client-Cert to them.
const (
	mark  = "[!-/:-@\\[-`{-~]"
	other = "[!-,./:-@\\[-`{-~]"
)

// What no client may send, in lower case.
const (
	// steering headers make Envoy or us do something, or tell who calls.
	steering = "x" + mark + "(?:(?:envoy|ambit)" + mark + ".*|forwarded" + mark + "client" + mark + "cert)"
	// misspelled are headers that proxies write, or that say where a message ends, in a spelling of no good faith.
	misspelled = "x" + other + "forwarded.*|x-forwarded.*" + other + ".*|(?:content|transfer)" + other + "(?:length|encoding)"
)

// sanitize tells the application and later filters who calls, whatever the request said: the identities of the tunnel.
// What the client may not say in headers is removed before this filter (by an early mutation, which sees them before
// Envoy adds its own), but trailers come only here.
func sanitize(waypoint bool) *headerv3.HeaderMutation {
	out := &headerv3.Mutations{
		// Envoy takes this header away, except from an upgrade: that passes on which headers are for the next hop only,
		// and a client could have the next proxy drop those that tell who calls.
		RequestMutations:         []*mutationv3.HeaderMutation{setHeader("connection", "upgrade", corev3.HeaderValueOption_OVERWRITE_IF_EXISTS)},
		RequestTrailersMutations: RemoveForgeries(),
	}
	if waypoint {
		out.RequestMutations = append(out.RequestMutations, setHeader(names.HeaderXFCC,
			"By=%FILTER_STATE("+names.StateLocal+":PLAIN)%;URI=%FILTER_STATE("+names.StatePeer+":PLAIN)%",
			corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD))
		out.RequestTrailersMutations = append(out.RequestTrailersMutations, &mutationv3.HeaderMutation{
			Action: &mutationv3.HeaderMutation_Remove{Remove: names.HeaderBaggage},
		})
	}
	return &headerv3.HeaderMutation{Mutations: out}
}

func setHeader(name, value string, action corev3.HeaderValueOption_HeaderAppendAction) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
		Header: &corev3.HeaderValue{Key: name, Value: value}, AppendAction: action,
	}}}
}

// RemoveForgeries removes what no client may say. It is two expressions because Envoy bounds the size of one.
func RemoveForgeries() []*mutationv3.HeaderMutation {
	var out []*mutationv3.HeaderMutation
	for _, expression := range []string{steering, misspelled} {
		out = append(out, &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_RemoveOnMatch_{
			RemoveOnMatch: &mutationv3.HeaderMutation_RemoveOnMatch{KeyMatcher: match.Regex(expression)},
		}})
	}
	return out
}

package route

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// headers are edits as Envoy makes them: remove, then add in order.
type headers struct {
	add    []*corev3.HeaderValueOption
	remove []string
	// authority is what the edits make of the host, which Envoy changes elsewhere.
	authority string
}

// edits are those of requests and of responses.
type edits struct{ request, response headers }

// then is what remains to do if a backend's edits follow. The rule's rewrite of the host wins, as in Istio.
func (e edits) then(c *model.RouteCluster) edits {
	request := writeHeaders(c.Request, true)
	out := edits{request: e.request.then(request), response: e.response.then(writeHeaders(c.Response, false))}
	out.request.authority = cmp.Or(e.request.authority, c.Authority, request.authority)
	return out
}

// then joins edits: what the later ones remove, the earlier ones need not add.
func (h headers) then(later headers) headers {
	out := headers{remove: slices.Concat(h.remove, later.remove)}
	for _, o := range h.add {
		if !slices.ContainsFunc(later.remove, func(name string) bool { return strings.EqualFold(name, o.GetHeader().GetKey()) }) {
			out.add = append(out.add, o)
		}
	}
	out.add = append(out.add, later.add...)
	return out
}

// writeHeaders writes edits. Envoy refuses a table that edits the host or a pseudo header; like Istio, setting the host
// is taken for a rewrite, and the rest is left out.
func writeHeaders(ops model.HeaderOps, request bool) headers {
	var out headers
	for _, name := range ops.Remove {
		if validName(name) && !special(name) {
			out.remove = append(out.remove, name)
		}
	}
	add := func(list []model.Header, action corev3.HeaderValueOption_HeaderAppendAction) {
		for _, h := range list {
			if request && isHost(h.Name) && out.authority == "" && validValue(h.Value) {
				out.authority = h.Value
			}
			if !validName(h.Name) || special(h.Name) || !validValue(h.Value) {
				continue
			}
			out.add = append(out.add, &corev3.HeaderValueOption{
				Header: &corev3.HeaderValue{Key: h.Name, Value: format(h.Value)}, AppendAction: action,
				// A header may be set to nothing.
				KeepEmptyValue: h.Value == "",
			})
		}
	}
	add(ops.Set, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	add(ops.Add, corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
	return out
}

func isHost(name string) bool {
	return strings.EqualFold(name, "host") || strings.EqualFold(name, ":authority")
}

func special(name string) bool { return strings.HasPrefix(name, ":") || isHost(name) }

func validName(name string) bool { return name != "" && !strings.ContainsAny(name, " \t\r\n\x00") }

func validValue(v string) bool { return !strings.ContainsAny(v, "\r\n\x00") }

// variable is one of Envoy's substitutions that make sense in a header, or the two percent signs that stand for one.
var variable = regexp.MustCompile(`%(?:` +
	`(?:DOWNSTREAM|UPSTREAM)_(?:REMOTE|LOCAL)_ADDRESS|DOWNSTREAM_(?:REMOTE|LOCAL)_ADDRESS_WITHOUT_PORT|DOWNSTREAM_LOCAL_PORT` +
	`|DOWNSTREAM_(?:PEER|LOCAL)_(?:URI_SAN|SUBJECT)|DOWNSTREAM_PEER_(?:ISSUER|SERIAL|FINGERPRINT_256|CERT|CERT_V_START|CERT_V_END)` +
	`|DOWNSTREAM_TLS_(?:VERSION|CIPHER|SESSION_ID)|REQUESTED_SERVER_NAME` +
	`|PROTOCOL|RESPONSE_CODE|RESPONSE_FLAGS|RESPONSE_CODE_DETAILS|HOSTNAME|UPSTREAM_CLUSTER|ROUTE_NAME` +
	`|REQ\(:?[A-Za-z0-9_-]+\)(?::[0-9]{1,4})?|START_TIME` +
	`)?%`)

// format gives a format string that Envoy can load: a variable that it does not have would make it refuse the whole
// table, and is taken for text.
func format(v string) string {
	if !strings.Contains(v, "%") {
		return v
	}
	var out strings.Builder
	last := 0
	for _, at := range variable.FindAllStringIndex(v, -1) {
		out.WriteString(literal(v[last:at[0]]))
		out.WriteString(v[at[0]:at[1]])
		last = at[1]
	}
	out.WriteString(literal(v[last:]))
	return out.String()
}

// literal keeps a text from being read as a format.
func literal(s string) string { return strings.ReplaceAll(s, "%", "%%") }

package istionet

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// headerOps reads edits of headers, in order of name. A request's authority is set by its name too, and is not a header.
func (o *object) headerOps(field string, in *networking.Headers_HeaderOperations, request bool) (model.HeaderOps, string) {
	var out model.HeaderOps
	set, authority := o.headerMap(field+".set", in.GetSet(), request)
	add, added := o.headerMap(field+".add", in.GetAdd(), request)
	switch {
	case authority != "" && added != "":
		o.fail(field+".add", "the authority is set and added")
	case authority == "":
		authority = added
	}
	out.Set, out.Add = set, add
	for i, name := range in.GetRemove() {
		at := fmt.Sprintf("%s.remove[%d]", field, i)
		if isAuthority(name) || strings.HasPrefix(name, ":") {
			o.fail(at, "%q cannot be removed", name)
		} else {
			o.token(at, name)
		}
		out.Remove = append(out.Remove, name)
	}
	return out, authority
}

func (o *object) headerMap(field string, in map[string]string, request bool) ([]model.Header, string) {
	var out []model.Header
	var authority string
	for _, name := range slices.Sorted(maps.Keys(in)) {
		at, value := field+"["+name+"]", in[name]
		o.headerValue(at, value)
		switch {
		case isAuthority(name) && request:
			if authority != "" {
				o.fail(at, "the authority is there twice")
			}
			authority = value
		case isAuthority(name) || strings.HasPrefix(name, ":"):
			o.fail(at, "%q cannot be changed", name)
		default:
			o.token(at, name)
			out = append(out, model.Header{Name: name, Value: value})
		}
	}
	return out, authority
}

func isAuthority(name string) bool {
	return strings.EqualFold(name, ":authority") || strings.EqualFold(name, "host")
}

// headerValue holds a value to what Envoy takes for a format: a percent sign is doubled, or begins and ends the name of
// something to fill in, with arguments in parentheses.
func (o *object) headerValue(field, value string) {
	for _, c := range []byte(value) {
		if c < ' ' && c != '\t' || c == 0x7f {
			o.fail(field, "%q has a control character", value)
			return
		}
	}
	for rest := value; ; {
		_, after, found := strings.Cut(rest, "%")
		if !found {
			return
		}
		if strings.HasPrefix(after, "%") {
			rest = after[1:]
			continue
		}
		end := operatorEnd(after)
		if end < 0 {
			o.fail(field, "%q: a percent sign is written twice, or encloses an operator such as %%REQ(name)%%", value)
			return
		}
		rest = after[end:]
	}
}

// operatorEnd gives where the text behind NAME%, NAME(arguments)% or NAME(arguments):length% begins, or -1.
func operatorEnd(s string) int {
	name := strings.IndexAny(s, "%(")
	if name <= 0 {
		return -1
	}
	if s[name] == '%' {
		return name + 1
	}
	parenthesis := strings.IndexByte(s, ')')
	if parenthesis < 0 {
		return -1
	}
	percent := strings.IndexByte(s[parenthesis:], '%')
	if percent < 0 {
		return -1
	}
	if length := s[parenthesis+1 : parenthesis+percent]; length != "" && (length[0] != ':' || strings.Trim(length[1:], "0123456789") != "") {
		return -1
	}
	return parenthesis + percent + 1
}

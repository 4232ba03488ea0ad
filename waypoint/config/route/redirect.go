package route

import (
	"fmt"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/route/match"
)

// Schemes and their ports.
const (
	schemeHTTP  = "http"
	schemeHTTPS = "https"
	portHTTP    = 80
	portHTTPS   = 443
)

// redirect answers with a location.
func (w hostWriter) redirect(r *model.RouteRule) (*routev3.Route_Redirect, error) {
	in := r.Action.Redirect
	out := &routev3.RedirectAction{HostRedirect: in.Host, PortRedirect: w.redirectPort(in)}
	if in.Scheme != "" {
		out.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: in.Scheme}
	}
	switch in.Code {
	case 0, 301:
		out.ResponseCode = routev3.RedirectAction_MOVED_PERMANENTLY
	case 302:
		out.ResponseCode = routev3.RedirectAction_FOUND
	case 303:
		out.ResponseCode = routev3.RedirectAction_SEE_OTHER
	case 307:
		out.ResponseCode = routev3.RedirectAction_TEMPORARY_REDIRECT
	case 308:
		out.ResponseCode = routev3.RedirectAction_PERMANENT_REDIRECT
	default:
		return nil, fmt.Errorf("redirect with status %d: Envoy knows 301, 302, 303, 307 and 308", in.Code)
	}
	if err := redirectPath(out, r.Match.Path, in.Path); err != nil {
		return nil, err
	}
	return &routev3.Route_Redirect{Redirect: out}, nil
}

// redirectPort is the port to name in the location; 0 leaves what the request's host has. Gateway API
// (HTTPRequestRedirectFilter.port): without a port, that of a scheme that is given, else the listener's; and the
// scheme's own port should not be written.
func (w hostWriter) redirectPort(in *model.Redirect) uint32 {
	own := schemeHTTP
	if w.https {
		own = schemeHTTPS
	}
	scheme := own
	if in.Scheme != "" {
		scheme = in.Scheme
	}
	port := uint32(in.Port)
	switch {
	case port != 0:
	case in.PortFromRequest || in.Scheme == "":
		port = uint32(w.port())
	default:
		port = schemePort(scheme)
	}
	// Clients write a listener's unusual port into their host, and Envoy would keep it there.
	kept := in.Host == "" && w.port() != 0 && uint32(w.port()) != schemePort(own)
	if port == schemePort(scheme) && !kept {
		return 0
	}
	return port
}

// schemePort is a scheme's own port, 0 if we know none.
func schemePort(scheme string) uint32 {
	switch scheme {
	case schemeHTTP:
		return portHTTP
	case schemeHTTPS:
		return portHTTPS
	}
	return 0
}

func redirectPath(out *routev3.RedirectAction, path *model.StringMatch, p *model.PathRewrite) error {
	switch {
	case p == nil:
	case p.Full != nil:
		out.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: *p.Full}
	case p.Prefix != nil:
		prefix, re := replacePrefix(path, *p.Prefix)
		if re != nil {
			out.PathRewriteSpecifier = &routev3.RedirectAction_RegexRewrite{RegexRewrite: re}
		} else if prefix != "" {
			out.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: prefix}
		}
	case p.Regex != "":
		if err := match.CheckRegex(p.Regex); err != nil {
			return fmt.Errorf("redirect path: %w", err)
		}
		if err := checkSubstitution(p.Regex, p.Substitution); err != nil {
			return fmt.Errorf("redirect path: %w", err)
		}
		out.PathRewriteSpecifier = &routev3.RedirectAction_RegexRewrite{RegexRewrite: substitute(p.Regex, p.Substitution)}
	}
	return nil
}

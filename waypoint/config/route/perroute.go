package route

import (
	"fmt"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	commonfaultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	sessionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/stateful_session/v3"
	cookiev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/stateful_session/cookie/v3"
	headerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/stateful_session/header/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/type/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
	"github.com/ambit-mesh/ambit/waypoint/config/route/match"
)

// actionFilters adds what a rule's action asks of filters.
func (w hostWriter) actionFilters(out map[string]*anypb.Any, r *model.RouteRule) error {
	put := func(name string, m proto.Message, err error) error {
		if err != nil {
			return err
		}
		any, err := pack(m)
		if err != nil {
			return err
		}
		out[name] = any
		return nil
	}
	if f := r.Action.Fault; f != nil {
		m, err := fault(f)
		if err := put(names.FilterFault, m, err); err != nil {
			return err
		}
	}
	if c := r.Action.CORS; c != nil {
		m, err := cors(c)
		if err := put(names.FilterCORS, m, err); err != nil {
			return err
		}
	}
	if s := r.Action.Session; s != nil {
		m, err := session(s)
		if err := put(names.FilterSession, m, err); err != nil {
			return err
		}
	}
	if e := r.Action.ExternalAuth; e != nil {
		// The same filters as for policies that ask a server, here about every request.
		name, err := w.authServer(e, r.ExtAuthz)
		if err := put(filterCustom(name), askAlways(name), err); err != nil {
			return err
		}
	}
	return nil
}

// fault makes requests slow or fail, before the backend is asked.
func fault(f *model.Fault) (*faultv3.HTTPFault, error) {
	out := &faultv3.HTTPFault{}
	if f.Delay > 0 {
		out.Delay = &commonfaultv3.FaultDelay{
			FaultDelaySecifier: &commonfaultv3.FaultDelay_FixedDelay{FixedDelay: durationpb.New(f.Delay)},
			Percentage:         fraction(f.DelayShare),
		}
	}
	switch {
	case f.AbortHTTP != 0:
		out.Abort = &faultv3.FaultAbort{ErrorType: &faultv3.FaultAbort_HttpStatus{HttpStatus: uint32(f.AbortHTTP)}}
	case f.AbortGRPC != "":
		code, err := grpcCode(f.AbortGRPC)
		if err != nil {
			return nil, err
		}
		out.Abort = &faultv3.FaultAbort{ErrorType: &faultv3.FaultAbort_GrpcStatus{GrpcStatus: code}}
	default:
		return out, nil
	}
	out.Abort.Percentage = fraction(f.AbortShare)
	return out, nil
}

// grpcCode reads a status by name or number.
func grpcCode(name string) (uint32, error) {
	var c codes.Code
	text := strconv.Quote(name)
	if n, err := strconv.ParseUint(name, 10, 8); err == nil {
		text = strconv.FormatUint(n, 10)
	}
	if err := c.UnmarshalJSON([]byte(text)); err != nil {
		return 0, fmt.Errorf("read gRPC status %q: %w", name, err)
	}
	return uint32(c), nil
}

// cors answers browsers that ask whether a page of another origin may call.
func cors(c *model.CORS) (*corsv3.CorsPolicy, error) {
	out := &corsv3.CorsPolicy{
		AllowMethods:                 strings.Join(c.Methods, ","),
		AllowHeaders:                 strings.Join(c.AllowHeaders, ","),
		ExposeHeaders:                strings.Join(c.ExposeHeaders, ","),
		FilterEnabled:                &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: 100}},
		ForwardNotMatchingPreflights: wrapperspb.Bool(c.ForwardUnmatched),
	}
	for _, o := range c.Origins {
		m, err := match.String(o)
		if err != nil {
			return nil, fmt.Errorf("compare origin: %w", err)
		}
		out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, m)
	}
	if c.MaxAge != nil {
		out.MaxAge = strconv.FormatInt(int64(c.MaxAge.Seconds()), 10)
	}
	if c.Credentials != nil {
		out.AllowCredentials = wrapperspb.Bool(*c.Credentials)
	}
	return out, nil
}

// session keeps a client on an endpoint.
func session(s *model.SessionPersistence) (*sessionv3.StatefulSessionPerRoute, error) {
	name := s.Name
	if name == "" {
		// Gateway API leaves the name to the implementation.
		name = "ambit-session"
	}
	var state proto.Message = &headerv3.HeaderBasedSessionState{Name: name}
	kind := "envoy.http.stateful_session.header"
	if !s.Header {
		path := s.Path
		if path == "" {
			path = "/"
		}
		state = &cookiev3.CookieBasedSessionState{Cookie: &httpv3.Cookie{Name: name, Path: path, Ttl: durationpb.New(s.TTL)}}
		kind = "envoy.http.stateful_session.cookie"
	}
	any, err := pack(state)
	if err != nil {
		return nil, err
	}
	return &sessionv3.StatefulSessionPerRoute{Override: &sessionv3.StatefulSessionPerRoute_StatefulSession{
		StatefulSession: &sessionv3.StatefulSession{SessionState: &corev3.TypedExtensionConfig{Name: kind, TypedConfig: any}},
	}}, nil
}

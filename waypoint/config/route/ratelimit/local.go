// Package ratelimit writes limits of requests as configuration of Envoy's local
// and global rate limit filters. waypoint/config/route calls it and attaches the
// result to virtual hosts and routes. It is pure. Local limits are counted by each
// proxy for itself, all its threads together; global ones by the server that is
// asked. A request that no limit selects is let through.
package ratelimit

import (
	"fmt"
	"math"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	localv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

const (
	// StatPrefix starts the filters' own counters.
	StatPrefix = "ratelimit"
	// tooMany is the status of a refused request unless the limit says otherwise.
	tooMany = 429
	// minInterval is the shortest interval that Envoy fills a bucket in; intervals are multiples of it, since Envoy
	// wants those of limits to be multiples of the default bucket's.
	minInterval = 50 * time.Millisecond
	// maxCounted bounds how many sources or header values one limit counts apart; the longest unused is forgotten.
	// A bucket takes some 200 bytes.
	maxCounted = 10_000
	// maxClauses bounds what alternatives with several conditions each multiply out to.
	maxClauses = 64
)

// Keys of descriptors. They are seen in Envoy's own pages only.
const (
	keyLimit  = "limit"
	keyMatch  = "match"
	keySource = "source"
	keyHeader = "header"
	keyAbsent = "header_absent"
)

// Local are the local limits of one place, by how they answer.
type Local struct {
	// Usual answer 429. Other answer the status that the first of them asks for.
	Usual, Other *localv3.LocalRateLimit
}

// Locals writes the local limits of policies, in their order. waypoint says that sources are known by the header that
// the proxy has written.
func Locals(policies []*model.RateLimit, waypoint bool) (Local, error) {
	var out Local
	for _, p := range policies {
		for i, l := range p.Local {
			to, status := &out.Usual, tooMany
			// Envoy knows some statuses and no others.
			if _, known := typev3.StatusCode_name[int32(l.Status)]; known && l.Status >= 400 && l.Status != tooMany {
				to, status = &out.Other, l.Status
			}
			if *to == nil {
				*to = filter(status)
			}
			w := writer{id: p.Key.String() + "/" + strconv.Itoa(i), waypoint: waypoint, limit: l}
			if err := w.add(*to); err != nil {
				return Local{}, fmt.Errorf("write limit %q: %w", w.id, err)
			}
		}
	}
	return out, nil
}

// All writes all local limits for one filter; the first status that is asked for holds for all.
func All(policies []*model.RateLimit, waypoint bool) (*localv3.LocalRateLimit, error) {
	l, err := Locals(policies, waypoint)
	switch {
	case err != nil:
		return nil, err
	case l.Other == nil:
		return l.Usual, nil
	case l.Usual != nil:
		l.Other.RateLimits = append(l.Other.RateLimits, l.Usual.RateLimits...)
		l.Other.Descriptors = append(l.Other.Descriptors, l.Usual.Descriptors...)
	}
	return l.Other, nil
}

// filter is the configuration without limits. Its own bucket never empties: what no descriptor matches is let through.
func filter(status int) *localv3.LocalRateLimit {
	always := &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: 100}}
	out := &localv3.LocalRateLimit{
		StatPrefix: StatPrefix,
		TokenBucket: &typev3.TokenBucket{
			MaxTokens: math.MaxUint32, TokensPerFill: wrapperspb.UInt32(math.MaxUint32), FillInterval: durationpb.New(minInterval),
		},
		FilterEnabled: always, FilterEnforced: always,
		AlwaysConsumeDefaultTokenBucket: wrapperspb.Bool(false),
		RateLimitedAsResourceExhausted:  true,
		EnableRetryAfterHeader:          true,
		MaxDynamicDescriptors:           wrapperspb.UInt32(maxCounted),
	}
	if status != tooMany {
		out.Status = &typev3.HttpStatus{Code: typev3.StatusCode(status)}
	}
	return out
}

// writer writes one limit: which requests it selects (actions, which give them a descriptor) and the descriptor's bucket.
type writer struct {
	id       string
	waypoint bool
	limit    model.LocalLimit
}

type entries = []*commonv3.RateLimitDescriptor_Entry

func (w *writer) add(to *localv3.LocalRateLimit) error {
	if w.limit.Per <= 0 || w.limit.Requests == 0 && w.limit.Burst == 0 {
		return fmt.Errorf("allow %d requests per %s: nothing could ever pass", w.limit.Requests, w.limit.Per)
	}
	actions := []*routev3.RateLimit_Action{genericKey(keyLimit, w.id)}
	descriptor := entries{{Key: keyLimit, Value: w.id}}
	clauses, err := w.matches()
	if err != nil {
		return err
	}
	for i, c := range clauses {
		value := strconv.Itoa(i)
		actions = append(actions, headersMatch(keyMatch, value, c.headers, !c.negated))
		descriptor = append(descriptor, &commonv3.RateLimitDescriptor_Entry{Key: keyMatch, Value: value})
	}
	if w.limit.PerSource {
		actions = append(actions, w.source())
		descriptor = append(descriptor, &commonv3.RateLimitDescriptor_Entry{Key: w.sourceKey()})
	}
	if w.limit.PerHeader == "" {
		w.bucket(to, actions, descriptor)
		return nil
	}
	// Requests without the header share a bucket, or leaving the header out would evade the limit.
	absent := []*routev3.HeaderMatcher{{
		Name: w.limit.PerHeader, InvertMatch: true, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true},
	}}
	w.bucket(to, plus(actions, headersMatch(keyAbsent, "yes", absent, true)), plus(descriptor, &commonv3.RateLimitDescriptor_Entry{Key: keyAbsent, Value: "yes"}))
	w.bucket(to, plus(actions, requestHeader(keyHeader, w.limit.PerHeader)), plus(descriptor, &commonv3.RateLimitDescriptor_Entry{Key: keyHeader}))
	return nil
}

// plus appends to a copy.
func plus[T any](to []T, e T) []T { return append(append(make([]T, 0, len(to)+1), to...), e) }

// bucket gives requests to which the actions apply a bucket.
func (w *writer) bucket(to *localv3.LocalRateLimit, actions []*routev3.RateLimit_Action, descriptor entries) {
	// Only requests that a limit counts are told how much of it is left.
	to.RateLimits = append(to.RateLimits, &routev3.RateLimit{Actions: actions, XRatelimitOption: routev3.RateLimit_DRAFT_VERSION_03})
	to.Descriptors = append(to.Descriptors, &commonv3.LocalRateLimitDescriptor{
		Entries: descriptor, ShadowMode: w.limit.DryRun, TokenBucket: w.tokens(),
	})
}

// tokens is the bucket: Burst at once, or as many as in one interval.
func (w *writer) tokens() *typev3.TokenBucket {
	size := w.limit.Burst
	if size == 0 {
		size = w.limit.Requests
	}
	interval := (w.limit.Per + minInterval - 1) / minInterval * minInterval
	out := &typev3.TokenBucket{MaxTokens: size, FillInterval: durationpb.New(interval)}
	if w.limit.Requests > 0 {
		out.TokensPerFill = wrapperspb.UInt32(w.limit.Requests)
	}
	return out
}

// source tells callers apart: on a waypoint by identity, which the proxy has written into a header; on a gateway,
// whose clients have none, by address.
func (w *writer) source() *routev3.RateLimit_Action {
	if w.waypoint {
		return requestHeader(keySource, names.HeaderXFCC)
	}
	return remoteAddress()
}

func (w *writer) sourceKey() string {
	if w.waypoint {
		return keySource
	}
	return keyRemoteAddress
}

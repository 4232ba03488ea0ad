package ca

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/identity"
)

const (
	// verdictTTL is how long the API server's verdict on a token is believed. A whole node that restarts
	// asks within seconds; a token that is withdrawn works for at most this much longer.
	verdictTTL = time.Minute
	// refusalTTL is the same for a refusal: short, since a token may become valid.
	refusalTTL = 5 * time.Second
	// maxVerdicts bounds the cache: more than proxies in any cluster.
	maxVerdicts = 16_384
	// reviewTimeout bounds one question to the API server.
	reviewTimeout = 10 * time.Second
	// maxReviews is how many questions run at once, so that a flood of invalid tokens stops here.
	maxReviews = 32
	// maxToken bounds a token, in bytes.
	maxToken = 16 << 10

	bearer        = "Bearer "
	accountPrefix = "system:serviceaccount:"
	accountGroup  = "system:serviceaccounts"
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	headerToken   = "authorization"
	headerCluster = "clusterid"
)

// ErrAnonymous says that a caller presented no credentials.
var ErrAnonymous = errors.New("no credentials presented")

// Caller is who calls, by the API server's word or by a certificate of ours.
type Caller struct {
	identity.Identity
	// PodName and PodUID are those that the token is bound to; empty for a token that is not.
	PodName, PodUID string
	// ByCertificate callers proved their identity with a certificate instead of a token.
	ByCertificate bool
}

// Authenticator finds out who a caller is.
type Authenticator struct {
	// client is nil without Kubernetes; then only certificates count.
	client      kubernetes.Interface
	trustDomain string
	clusterID   string

	flights singleflight.Group
	slots   chan struct{}

	mu       sync.Mutex
	verdicts map[[sha256.Size]byte]verdict
}

type verdict struct {
	caller  Caller
	err     error
	expires time.Time
}

// NewAuthenticator asks client for verdicts on tokens; nil accepts certificates only.
func NewAuthenticator(client kubernetes.Interface, trustDomain, clusterID string) *Authenticator {
	return &Authenticator{
		client: client, trustDomain: trustDomain, clusterID: clusterID,
		slots: make(chan struct{}, maxReviews), verdicts: map[[sha256.Size]byte]verdict{},
	}
}

// Authenticate checks the credentials of a gRPC call: a token if it has one, else its client certificate.
func (a *Authenticator) Authenticate(ctx context.Context) (Caller, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if got := md.Get(headerCluster); len(got) > 0 && got[0] != "" && got[0] != a.clusterID {
		return Caller{}, fmt.Errorf("authenticate caller: it is of cluster %q, this is %q", got[0], a.clusterID)
	}
	token, err := bearerToken(md)
	if err != nil {
		return Caller{}, err
	}
	if token != "" {
		return a.review(ctx, token)
	}
	return a.certificate(ctx)
}

func bearerToken(md metadata.MD) (string, error) {
	values := md.Get(headerToken)
	if len(values) == 0 {
		return "", nil
	}
	token, ok := strings.CutPrefix(values[0], bearer)
	switch {
	case len(values) > 1:
		return "", errors.New("authenticate caller: more than one token")
	case !ok || token == "":
		return "", errors.New("authenticate caller: the authorization header holds no bearer token")
	case len(token) > maxToken:
		return "", fmt.Errorf("authenticate caller: a token of %d bytes", len(token))
	}
	return token, nil
}

func (a *Authenticator) certificate(ctx context.Context) (Caller, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Caller{}, ErrAnonymous
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || !verified(info.State) {
		return Caller{}, ErrAnonymous
	}
	id, err := identity.Peer(info.State)
	if err != nil {
		return Caller{}, fmt.Errorf("authenticate caller: %w", err)
	}
	if id.TrustDomain != a.trustDomain {
		return Caller{}, fmt.Errorf("authenticate caller: %q is of another trust domain", id)
	}
	return Caller{Identity: id, ByCertificate: true}, nil
}

func verified(s tls.ConnectionState) bool { return len(s.VerifiedChains) > 0 }

// review asks the API server, once for all who ask about the same token at the same time.
func (a *Authenticator) review(ctx context.Context, token string) (Caller, error) {
	if a.client == nil {
		return Caller{}, errors.New("authenticate caller: tokens cannot be checked without Kubernetes")
	}
	key := sha256.Sum256([]byte(token))
	now := time.Now()
	if v, ok := a.cached(key, now); ok {
		return v.caller, v.err
	}
	done := a.flights.DoChan(string(key[:]), func() (any, error) {
		// Not ctx: others wait for the answer too.
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reviewTimeout)
		defer cancel()
		select {
		case a.slots <- struct{}{}:
			defer func() { <-a.slots }()
		case <-rctx.Done():
			return verdict{}, fmt.Errorf("review token: %w", rctx.Err())
		}
		v, err := a.ask(rctx, token)
		if err != nil {
			return verdict{}, err // no verdict at all: nothing to remember
		}
		v.expires = now.Add(verdictTTL)
		if v.err != nil {
			v.expires = now.Add(refusalTTL)
		}
		a.remember(key, v, now)
		return v, nil
	})
	select {
	case <-ctx.Done():
		return Caller{}, fmt.Errorf("review token: %w", ctx.Err())
	case r := <-done:
		if r.Err != nil {
			return Caller{}, r.Err
		}
		v := r.Val.(verdict)
		return v.caller, v.err
	}
}

func (a *Authenticator) cached(key [sha256.Size]byte, now time.Time) (verdict, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v, ok := a.verdicts[key]
	return v, ok && now.Before(v.expires)
}

// remember keeps a verdict; a full cache forgets the expired ones, then any.
func (a *Authenticator) remember(key [sha256.Size]byte, v verdict, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.verdicts) >= maxVerdicts {
		for k, old := range a.verdicts {
			if !now.Before(old.expires) {
				delete(a.verdicts, k)
			}
		}
		for k := range a.verdicts {
			if len(a.verdicts) < maxVerdicts {
				break
			}
			delete(a.verdicts, k)
		}
	}
	a.verdicts[key] = v
}

// ask returns a verdict, or an error when the API server gave none.
func (a *Authenticator) ask(ctx context.Context, token string) (verdict, error) {
	r, err := a.client.AuthenticationV1().TokenReviews().Create(ctx, &authv1.TokenReview{
		Spec: authv1.TokenReviewSpec{Token: token, Audiences: []string{ports.TokenAudience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return verdict{}, fmt.Errorf("review token: %w", err)
	}
	c, err := a.caller(&r.Status)
	return verdict{caller: c, err: err}, nil
}

// caller reads who the token is of, and refuses all but service accounts' tokens made for this audience.
func (a *Authenticator) caller(s *authv1.TokenReviewStatus) (Caller, error) {
	if s.Error != "" {
		return Caller{}, fmt.Errorf("review token: %s", s.Error)
	}
	if !s.Authenticated {
		return Caller{}, errors.New("review token: it is not valid")
	}
	// An API server that does not know audiences answers with none; then the token was not checked for ours.
	if !slices.Contains(s.Audiences, ports.TokenAudience) {
		return Caller{}, fmt.Errorf("review token: its audience is %v", s.Audiences)
	}
	if !slices.Contains(s.User.Groups, accountGroup) {
		return Caller{}, fmt.Errorf("review token: %q is not a service account", s.User.Username)
	}
	ns, sa, ok := strings.Cut(strings.TrimPrefix(s.User.Username, accountPrefix), ":")
	if !strings.HasPrefix(s.User.Username, accountPrefix) || !ok {
		return Caller{}, fmt.Errorf("review token: user name %q is not of a service account", s.User.Username)
	}
	id := identity.Identity{TrustDomain: a.trustDomain, Namespace: ns, ServiceAccount: sa}
	if err := id.Validate(); err != nil {
		return Caller{}, fmt.Errorf("review token: %w", err)
	}
	return Caller{Identity: id, PodName: extra(s, extraPodName), PodUID: extra(s, extraPodUID)}, nil
}

func extra(s *authv1.TokenReviewStatus, key string) string {
	if v := s.User.Extra[key]; len(v) == 1 {
		return v[0]
	}
	return ""
}

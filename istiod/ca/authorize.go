package ca

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// podWait is how long a request waits for a pod that the API server knows and this
// istiod has not heard of yet. A pod's first connection waits for it, and a refusal
// would cost the proxy a whole back-off.
const podWait = 3 * time.Second

// Pods answers who runs where. graph.Graph is one.
type Pods interface {
	Pod(model.Key) *model.Pod
	// Runs tells whether an unfinished pod of the mesh with this service account is on the node.
	Runs(node, namespace, serviceAccount string) bool
	// Changed returns a channel that is closed at the next change of any answer.
	Changed() <-chan struct{}
}

// authorizer decides which identity a caller may have.
type authorizer struct {
	trustDomain string
	// trusted are the service accounts of node proxies.
	trusted map[model.Key]bool
	pods    Pods
	// certificateRenewal lets a holder of a certificate have another of the same identity.
	certificateRenewal bool
	podWait            time.Duration
}

// own decides on a caller's own identity: its pod must exist, so that a token outlives its pod for nothing.
func (a *authorizer) own(ctx context.Context, c Caller) (identity.Identity, error) {
	if c.ByCertificate {
		if !a.certificateRenewal {
			return identity.Identity{}, errors.New("authorize caller: a certificate does not give another one here; present a token")
		}
		return c.Identity, nil
	}
	err := a.eventually(ctx, func() error {
		_, err := a.callerPod(c)
		return err
	})
	return c.Identity, err
}

// impersonated decides on another identity that a node proxy asks for.
func (a *authorizer) impersonated(ctx context.Context, c Caller, requested string) (identity.Identity, error) {
	if c.ByCertificate || !a.trusted[model.Key{Namespace: c.Namespace, Name: c.ServiceAccount}] {
		return identity.Identity{}, fmt.Errorf("authorize caller %q: it is not a trusted node proxy", c.Identity)
	}
	id, err := identity.Parse(requested)
	if err != nil {
		return identity.Identity{}, err
	}
	if id.TrustDomain != a.trustDomain {
		return identity.Identity{}, fmt.Errorf("authorize identity %q: the trust domain is not %q", requested, a.trustDomain)
	}
	err = a.eventually(ctx, func() error {
		p, err := a.callerPod(c)
		if err != nil {
			return err
		}
		if p.Node == "" || !a.pods.Runs(p.Node, id.Namespace, id.ServiceAccount) {
			return fmt.Errorf("authorize identity %q: no pod of the mesh runs as it on node %q", requested, p.Node)
		}
		return nil
	})
	return id, err
}

// callerPod finds the pod that the caller's token is bound to.
func (a *authorizer) callerPod(c Caller) (*model.Pod, error) {
	if c.PodName == "" || c.PodUID == "" {
		return nil, permanent{errors.New("authorize caller: its token is not bound to a pod")}
	}
	key := model.Key{Namespace: c.Namespace, Name: c.PodName}
	p := a.pods.Pod(key)
	switch {
	case p == nil:
		return nil, fmt.Errorf("authorize caller: pod %q is not known", key)
	case p.UID != c.PodUID:
		// Either we have not heard of the new pod of this name yet, or the token is of the old one.
		return nil, fmt.Errorf("authorize caller: pod %q has uid %q, the token %q", key, p.UID, c.PodUID)
	case p.ServiceAccount != c.ServiceAccount:
		return nil, permanent{fmt.Errorf("authorize caller: pod %q runs as %q, the token as %q", key, p.ServiceAccount, c.ServiceAccount)}
	case p.Finished:
		return nil, permanent{fmt.Errorf("authorize caller: pod %q has finished", key)}
	}
	return p, nil
}

// permanent marks a refusal that waiting cannot change.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// eventually repeats check whenever pods change, until it succeeds or the wait is over.
func (a *authorizer) eventually(ctx context.Context, check func() error) error {
	timeout := time.NewTimer(a.podWait)
	defer timeout.Stop()
	for {
		changed := a.pods.Changed()
		err := check()
		if err == nil || errors.As(err, new(permanent)) {
			return err
		}
		select {
		case <-changed:
		case <-timeout.C:
			return err
		case <-ctx.Done():
			return err
		}
	}
}

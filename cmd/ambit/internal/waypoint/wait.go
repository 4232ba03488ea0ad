package waypoint

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/cmd/ambit/internal/rollout"
)

// pollInterval is how often a waypoint is looked at: often enough that nobody waits noticeably longer than it takes.
const pollInterval = 500 * time.Millisecond

// Wait returns when the waypoint works, or with an error when ctx ends. It calls report with each new state.
func (c *Client) Wait(ctx context.Context, namespace, name string, report func(string)) (Waypoint, error) {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	last, hint := "", ""
	for {
		w, err := c.get(ctx, namespace, name)
		state := w.State()
		switch {
		case apierrors.IsNotFound(err):
			return w, err // nobody makes it but us
		case err != nil:
			state = err.Error()
		case w.Ready():
			return w, nil
		default:
			if trouble, h := c.trouble(ctx, namespace, name); trouble != "" {
				state, hint = state+" ("+trouble+")", h
			}
		}
		if state != last && ctx.Err() == nil {
			last = state
			report(state)
		}
		select {
		case <-ctx.Done():
			if hint == "" {
				hint = fmt.Sprintf("kubectl -n %s describe gateway %s", namespace, name)
			}
			return w, fmt.Errorf("wait for waypoint %s/%s: %s (hint: %s)", namespace, name, last, hint)
		case <-ticker.C:
		}
	}
}

func (c *Client) get(ctx context.Context, namespace, name string) (Waypoint, error) {
	g, err := c.Gateways.GatewayV1().Gateways(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return Waypoint{Namespace: namespace, Name: name}, fmt.Errorf("get waypoint %s/%s: %w", namespace, name, explain(err))
	}
	return Of(g), nil
}

// trouble says what keeps the waypoint's pods from starting, if that is known, and what to do.
func (c *Client) trouble(ctx context.Context, namespace, name string) (string, string) {
	s, err := rollout.Look(ctx, c.Kube, rollout.Workload{Kind: "Deployment", Namespace: namespace, Name: name})
	if err != nil || s.Done {
		return "", ""
	}
	return s.Waiting, s.Hint
}

// Package status holds what istiod writes into the cluster, and the election that
// lets one replica do it: the mesh's roots in every namespace, what becomes of the
// objects that users write (Writer), and the GatewayClasses (Classes). app.go runs
// Lead with the writers.
//
// What always holds: at most one replica writes; a writer that fails tries again
// with growing pauses and never stops the serving side; an object is written only
// when it differs, so that many namespaces make no write storm; what other
// controllers say in an object's status stays.
//
// It does not decide what the mesh does: it reports and distributes.
package status

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// Times of the election: a leader that dies is replaced within leaseDuration, and
// one that cannot renew stops before anyone else may start.
const (
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// LeaseName is the Lease that replicas compete for.
const LeaseName = "istiod-leader"

// Elected says whether this replica leads, for metrics and debug pages.
type Elected func(bool)

// Lead competes for the Lease until ctx ends, and runs work whenever it is held,
// with a context that ends when it is lost.
func Lead(ctx context.Context, c kubernetes.Interface, namespace, identity string, log *slog.Logger, elected Elected, work func(context.Context) error) error {
	for ctx.Err() == nil {
		le, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: &resourcelock.LeaseLock{
				LeaseMeta:  metav1.ObjectMeta{Name: LeaseName, Namespace: namespace},
				Client:     c.CoordinationV1(),
				LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
			},
			LeaseDuration:   leaseDuration,
			RenewDeadline:   renewDeadline,
			RetryPeriod:     retryPeriod,
			ReleaseOnCancel: true,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) {
					log.Info("leading")
					elected(true)
					if err := work(ctx); err != nil && ctx.Err() == nil {
						log.Error("leader's work ended", "error", err)
					}
				},
				OnStoppedLeading: func() { elected(false) },
			},
		})
		if err != nil {
			return fmt.Errorf("elect leader: %w", err)
		}
		le.Run(ctx) // returns when the Lease is lost too; then compete again
	}
	return nil
}

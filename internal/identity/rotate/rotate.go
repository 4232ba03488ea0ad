// Package rotate decides when a certificate is renewed and when a failed renewal is
// tried again. identity.Manager calls it. Its functions are pure: time and chance
// come in as arguments, so that every decision can be tested without waiting.
package rotate

import "time"

const (
	// jitter is how much of a certificate's life the renewal is spread over, around
	// its middle: certificates of one rollout were issued together and must not all
	// come back together.
	jitter = 0.1
	// FirstRetry is the wait after the first failure.
	FirstRetry = 500 * time.Millisecond
	// MaxRetry is the longest wait between two attempts.
	MaxRetry = 150 * time.Second
	// retryJitter spreads a retry by this share both ways.
	retryJitter = 0.2
)

// RenewAt is when a certificate of that validity is to be renewed: at the half of
// its life, give or take a twentieth. random is in [0,1).
func RenewAt(notBefore, notAfter time.Time, random float64) time.Time {
	life := notAfter.Sub(notBefore)
	return notBefore.Add(time.Duration(float64(life) * (0.5 + jitter*(random-0.5))))
}

// Retry is the wait after so many failures in a row (at least one). It doubles from
// FirstRetry to MaxRetry and never exceeds MaxRetry. random is in [0,1).
func Retry(failures int, random float64) time.Duration {
	d := FirstRetry
	for i := 1; i < failures && d < MaxRetry; i++ {
		d *= 2
	}
	d = time.Duration(float64(d) * (1 - retryJitter + 2*retryJitter*random))
	return min(d, MaxRetry)
}

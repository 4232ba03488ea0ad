package rotate

import (
	"testing"
	"time"
)

func TestRenewAt(t *testing.T) {
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		life   time.Duration
		random float64
		want   time.Duration
	}{
		{24 * time.Hour, 0.5, 12 * time.Hour},
		{24 * time.Hour, 0, 10*time.Hour + 48*time.Minute},
		{24 * time.Hour, 1, 13*time.Hour + 12*time.Minute},
		{time.Minute, 0.5, 30 * time.Second},
		{0, 0.3, 0},
	} {
		got := RenewAt(from, from.Add(tc.life), tc.random).Sub(from)
		if diff := got - tc.want; diff.Abs() > time.Microsecond {
			t.Errorf("life %v, random %v: renew after %v, want %v", tc.life, tc.random, got, tc.want)
		}
	}
}

func TestRetry(t *testing.T) {
	for _, tc := range []struct {
		failures int
		random   float64
		want     time.Duration
	}{
		{1, 0.5, 500 * time.Millisecond},
		{0, 0.5, 500 * time.Millisecond},
		{1, 0, 400 * time.Millisecond},
		{2, 0.5, time.Second},
		{4, 0.5, 4 * time.Second},
		{9, 0.5, 128 * time.Second},
		{10, 0.5, MaxRetry},
		{10, 1, MaxRetry},
		{1 << 30, 0.99, MaxRetry},
	} {
		if got := Retry(tc.failures, tc.random); (got - tc.want).Abs() > time.Microsecond {
			t.Errorf("%d failures, random %v: retry in %v, want %v", tc.failures, tc.random, got, tc.want)
		}
	}
}

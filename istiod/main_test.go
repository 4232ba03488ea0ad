package istiod

import (
	"os"
	"testing"
)

// TestMain turns off streaming lists: Istio's fake client sends no bookmark at
// the end of one, and its informers, made by an older generator, cannot say so.
func TestMain(m *testing.M) {
	if err := os.Setenv("KUBE_FEATURE_WatchListClient", "false"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

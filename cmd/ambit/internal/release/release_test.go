package release

import (
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/action"
	chartcommon "helm.sh/helm/v4/pkg/chart/common"
	kubefake "helm.sh/helm/v4/pkg/kube/fake"
	"helm.sh/helm/v4/pkg/release/common"
	helmv1 "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage"
	"helm.sh/helm/v4/pkg/storage/driver"

	"github.com/ambit-mesh/ambit/charts"
)

// inMemory returns a client whose releases are in memory, and whose objects go nowhere.
func inMemory(t *testing.T) *Client {
	t.Helper()
	version, err := chartcommon.ParseKubeVersion(offlineKubeVersion)
	if err != nil {
		t.Fatal(err)
	}
	config := action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
	memory := driver.NewMemory()
	memory.SetNamespace("istio-system")
	config.Releases = storage.Init(memory)
	config.KubeClient = &kubefake.PrintingKubeClient{Out: io.Discard}
	config.Capabilities = chartcommon.DefaultCapabilities.Copy()
	config.Capabilities.KubeVersion = *version
	return &Client{namespace: "istio-system", config: config}
}

// change alters the newest revision of a release in the store.
func (c *Client) change(t *testing.T, name string, f func(*helmv1.Release)) {
	t.Helper()
	last, err := c.last(name)
	if err != nil || last == nil {
		t.Fatalf("release %q: %v, %v", name, last, err)
	}
	f(last)
	if err := c.config.Releases.Update(last); err != nil {
		t.Fatal(err)
	}
}

// TestApplyTwice: the second run upgrades, and knows nothing of the first one's values.
func TestApplyTwice(t *testing.T) {
	c := inMemory(t)
	first, err := c.Apply(t.Context(), "istiod", map[string]any{"replicaCount": 3}, false)
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.Apply(t.Context(), "istiod", map[string]any{}, false)
	if err != nil {
		t.Fatal(err)
	}
	got := []Outcome{first, second}
	manifests := []string{got[0].Manifest, got[1].Manifest}
	got[0].Manifest, got[1].Manifest = "", ""
	want := []Outcome{
		{Name: "istiod", Chart: "istiod-0.1.0", Revision: 1, Action: "installed"},
		{Name: "istiod", Chart: "istiod-0.1.0", Revision: 2, Action: "upgraded"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("outcomes (-want +got):\n%s", diff)
	}
	if manifests[0] == manifests[1] {
		t.Error("the values of the first run are still in force")
	}
}

// TestForeignReleaseIsLeftAlone: a release named istiod may be Istio's.
func TestForeignReleaseIsLeftAlone(t *testing.T) {
	c := inMemory(t)
	if _, err := c.Apply(t.Context(), "istiod", nil, false); err != nil {
		t.Fatal(err)
	}
	c.change(t, "istiod", func(r *helmv1.Release) { r.Chart.Metadata.Home = "https://istio.io" })
	if _, err := c.Apply(t.Context(), "istiod", nil, false); !errors.Is(err, ErrForeign) {
		t.Errorf("upgrade: got error %v, want ErrForeign", err)
	}
	if _, err := c.Remove("istiod", time.Second, false); !errors.Is(err, ErrForeign) {
		t.Errorf("uninstall: got error %v, want ErrForeign", err)
	}
	if _, err := c.Apply(t.Context(), "istiod", nil, true); err != nil {
		t.Errorf("upgrade with adopt: %v", err)
	}
}

// TestKilledOperation: one that just began is respected; one that never ended does not block for ever.
func TestKilledOperation(t *testing.T) {
	c := inMemory(t)
	if _, err := c.Apply(t.Context(), "istiod", nil, false); err != nil {
		t.Fatal(err)
	}
	c.change(t, "istiod", func(r *helmv1.Release) { r.Info.Status, r.Info.LastDeployed = common.StatusPendingUpgrade, time.Now() })
	if _, err := c.Apply(t.Context(), "istiod", nil, false); !errors.Is(err, ErrBusy) {
		t.Errorf("young: got error %v, want ErrBusy", err)
	}
	c.change(t, "istiod", func(r *helmv1.Release) { r.Info.LastDeployed = time.Now().Add(-abandonedAfter) })
	if o, err := c.Apply(t.Context(), "istiod", nil, false); err != nil || o.Revision != 2 {
		t.Errorf("old: got %+v, %v, want revision 2", o, err)
	}
}

func TestRemove(t *testing.T) {
	c := inMemory(t)
	if found, err := c.Remove("cni", time.Second, false); found || err != nil {
		t.Errorf("nothing installed: got %v, %v", found, err)
	}
	if _, err := c.Apply(t.Context(), "cni", nil, false); err != nil {
		t.Fatal(err)
	}
	if found, err := c.Remove("cni", time.Second, false); !found || err != nil {
		t.Errorf("installed: got %v, %v", found, err)
	}
	if o, err := c.Apply(t.Context(), "cni", nil, false); err != nil || o.Action != "installed" {
		t.Errorf("after removing: got %+v, %v, want a new installation", o, err)
	}
}

func TestValuesFor(t *testing.T) {
	v, err := ParseValues(nil, []string{"global.hub=h", "global.tag=t", "cni.global.hub=other", "istiod.replicaCount=2"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]any{
		"base":    {"global": map[string]any{"hub": "h", "tag": "t", "istioNamespace": "ns"}},
		"istiod":  {"global": map[string]any{"hub": "h", "tag": "t", "istioNamespace": "ns"}, "replicaCount": int64(2)},
		"ztunnel": {"global": map[string]any{"hub": "h", "tag": "t", "istioNamespace": "ns"}},
		"cni":     {"global": map[string]any{"hub": "other", "tag": "t", "istioNamespace": "ns"}},
	}
	for range 2 { // the second pass shows that the first changed nothing
		for _, part := range charts.Parts() {
			if diff := cmp.Diff(want[part], v.For(part, "ns")); diff != "" {
				t.Errorf("values for %s (-want +got):\n%s", part, diff)
			}
		}
	}
}

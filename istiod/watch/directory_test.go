package watch

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// deadline bounds every wait of these tests.
const deadline = 30 * time.Second

// log is a handler that writes events down as "+Kind ns/name" or "-Kind ns/name".
type log struct{ events chan string }

func (l log) Handle(e Event) {
	sign := "+"
	if e.Object == nil {
		sign = "-"
	}
	l.events <- sign + string(e.Kind) + " " + e.Key.String()
}

func (l log) Synced() { l.events <- "synced" }

// directory runs a source on a fresh directory with the given files.
type directory struct {
	t    *testing.T
	path string
	src  *Directory
	log  log
}

func newDirectory(t *testing.T, files map[string]string) *directory {
	t.Helper()
	d := &directory{t: t, path: t.TempDir(), log: log{make(chan string, 100)}}
	for name, content := range files {
		d.write(name, content)
	}
	d.src = NewDirectory(d.path, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.src.Run(ctx, d.log) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return d
}

// write replaces a file in one step, as editors and kubelets do.
func (d *directory) write(name, content string) {
	d.t.Helper()
	path := filepath.Join(d.path, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(path+".tmp", []byte(content), 0o644); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		d.t.Fatal(err)
	}
}

// want waits for exactly these events, the order of one batch left open.
func (d *directory) want(events ...string) {
	d.t.Helper()
	limit := time.NewTimer(deadline)
	defer limit.Stop()
	var got []string
	for len(got) < len(events) {
		select {
		case e := <-d.log.events:
			got = append(got, e)
		case <-limit.C:
			d.t.Fatalf("got %q, want %q", got, events)
		}
	}
	slices.Sort(got)
	slices.Sort(events)
	if diff := cmp.Diff(events, got); diff != "" {
		d.t.Errorf("events (-want +got):\n%s", diff)
	}
}

func (d *directory) wantCondition(object, reason string) {
	d.t.Helper()
	end := time.Now().Add(deadline)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for time.Now().Before(end) {
		for _, c := range d.src.Conditions() {
			if strings.Contains(c.Object, object) && strings.Contains(c.Reason, reason) {
				return
			}
		}
		<-tick.C
	}
	d.t.Fatalf("conditions %+v, want one on %q with %q", d.src.Conditions(), object, reason)
}

// wantNoConditions waits, since a file's events are delivered before its condition is taken back.
func (d *directory) wantNoConditions() {
	d.t.Helper()
	end := time.Now().Add(deadline)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for len(d.src.Conditions()) != 0 {
		if time.Now().After(end) {
			d.t.Fatalf("conditions %+v, want none", d.src.Conditions())
		}
		<-tick.C
	}
}

func pod(name string, labels string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: a, labels: {%s}}\n", name, labels)
}

func TestDirectoryDeliversDifferences(t *testing.T) {
	d := newDirectory(t, map[string]string{
		"one.yaml":     pod("p1", "") + "---\n# nothing here\n---\n" + pod("p2", ""),
		"sub/two.yaml": "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: ignored}\n",
		"readme.txt":   "not YAML: {",
		".hidden.yaml": "not YAML: {",
		"other.yaml":   "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n",
	})
	d.want("+Pod a/p1", "+Pod a/p2", "+Namespace a", "synced")
	d.write("one.yaml", pod("p1", "")+"---\n"+pod("p2", "x: v")) // only what changed
	d.want("+Pod a/p2")
	d.write("one.yaml", pod("p2", "x: v")+"---\n"+pod("p3", ""))
	d.want("-Pod a/p1", "+Pod a/p3")
	d.write("new/deep/three.yaml", pod("p4", "")) // directories that appear are read
	d.want("+Pod a/p4")
	if err := os.RemoveAll(filepath.Join(d.path, "new")); err != nil {
		t.Fatal(err)
	}
	d.want("-Pod a/p4")
}

func TestBadFileKeepsItsLastGoodContent(t *testing.T) {
	d := newDirectory(t, map[string]string{"a.yaml": pod("p1", ""), "b.yaml": pod("p2", "")})
	d.want("+Pod a/p1", "+Pod a/p2", "synced")
	// The first document is good and must not be used without the second.
	d.write("a.yaml", pod("p1", "new: label")+"---\nkind: Pod\n")
	d.wantCondition("a.yaml", "document 2")
	d.write("b.yaml", pod("p2", "x: v")) // others are not disturbed
	d.want("+Pod a/p2")
	d.write("a.yaml", pod("p1", "new: label"))
	d.want("+Pod a/p1")
	d.wantNoConditions()
}

func TestOneObjectInTwoFiles(t *testing.T) {
	d := newDirectory(t, map[string]string{"a.yaml": pod("p1", "")})
	d.want("+Pod a/p1", "synced")
	d.write("b.yaml", pod("p1", "x: v"))
	d.wantCondition("b.yaml", "a.yaml")
	if err := os.Remove(filepath.Join(d.path, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	d.want("-Pod a/p1")
	d.write("c.yaml", pod("p2", "")) // any later look finds that b.yaml is free to have it
	d.want("+Pod a/p1", "+Pod a/p2")
}

func TestMissingDirectoryIsAMistake(t *testing.T) {
	src := NewDirectory(filepath.Join(t.TempDir(), "none"), slog.New(slog.DiscardHandler))
	if err := src.Run(t.Context(), log{make(chan string, 1)}); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("got %v", err)
	}
}

func TestDecodeNamesTheDocument(t *testing.T) {
	for in, want := range map[string]string{
		pod("p", "") + "---\n{bad":                  "document 2",
		"apiVersion: v1\nkind: Pod\nmetadata: {}\n": "metadata.name is missing",
		"kind: Pod\n": "apiVersion or kind is missing",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: [x]}":                      "read object",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {nodeName: [x]}": `read Pod "p"`,
	} {
		if _, err := decode([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want an error with %q", in, err, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(pod("p", "a: b") + "---\n" + pod("q", "")))
	f.Add([]byte("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {rules: [{from: [{source: {principals: [x]}}]}]}\n"))
	f.Add([]byte("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\nendpoints: [{addresses: [10.0.0.1]}]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		objects, err := decode(b)
		if err != nil {
			return
		}
		for _, o := range objects {
			scoped := o.id.kind != model.KindNamespace && o.id.kind != model.KindNode
			if o.id.key.Name == "" || scoped != (o.id.key.Namespace != "") || o.document < 1 {
				t.Errorf("object without a full name: %+v", o.id)
			}
		}
	})
}

// Every kind is read under the name that the model has for it.
func TestParseEveryKind(t *testing.T) {
	var docs, want []string
	for name, k := range objectKinds {
		group, kind, _ := strings.Cut(name, "/")
		version := "v1"
		if group != "" {
			version = group + "/v1"
		}
		docs = append(docs, fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: x, namespace: ns}\n", version, kind))
		want = append(want, string(k.kind))
	}
	events, err := Parse([]byte(strings.Join(docs, "---\n")), "f")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range events {
		got = append(got, string(e.Kind))
		cluster := e.Kind == model.KindNode || e.Kind == model.KindNamespace || e.Kind == model.KindGatewayClass
		if (e.Key.Namespace == "") != cluster {
			t.Errorf("%s %s: wrong namespace", e.Kind, e.Key)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSecretsStringData(t *testing.T) {
	events, err := Parse([]byte("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {tls.crt: abc}\n"), "f")
	if err != nil {
		t.Fatal(err)
	}
	if got := events[0].Object.(*corev1.Secret); string(got.Data["tls.crt"]) != "abc" || got.StringData != nil {
		t.Errorf("got %+v", got)
	}
}

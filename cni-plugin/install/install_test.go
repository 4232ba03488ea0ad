package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/cni-plugin/plugin"
)

var update = flag.Bool("update", false, "write the golden files")

var entry = plugin.Config{
	Type: plugin.Type, AgentSocket: "/var/run/istio-cni/pluginevent.sock",
	ExcludeNamespaces: []string{"istio-system", "kube-system"}, LogFile: "/var/run/istio-cni/plugin.log",
}

func TestInsertGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.conf*")
	if err != nil {
		t.Fatal(err)
	}
	var seen int
	for _, f := range files {
		if strings.HasSuffix(f, ".golden") {
			continue
		}
		seen++
		t.Run(filepath.Base(f), func(t *testing.T) {
			in, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Insert(in, entry)
			if err != nil {
				t.Fatal(err)
			}
			golden := f + ".golden"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Error(d)
			}
			again, err := Insert(got, entry)
			if err != nil || !bytes.Equal(again, got) {
				t.Errorf("a second insert changes something: %v\n%s", err, again)
			}
			// The runtime's own parser takes it, and meets us last.
			list, err := libcni.ConfListFromBytes(got)
			if err != nil {
				t.Fatal(err)
			}
			if last := list.Plugins[len(list.Plugins)-1].Network.Type; last != plugin.Type {
				t.Errorf("last plugin is %q", last)
			}
			removed, err := Remove(got)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(removed), plugin.Type) {
				t.Errorf("not removed: %s", removed)
			}
		})
	}
	if seen < 4 {
		t.Errorf("only %d inputs", seen)
	}
}

func TestRemoveGivesTheListBack(t *testing.T) {
	in, err := os.ReadFile("testdata/flannel.conflist")
	if err != nil {
		t.Fatal(err)
	}
	with, err := Insert(in, entry)
	if err != nil {
		t.Fatal(err)
	}
	without, err := Remove(with)
	if err != nil {
		t.Fatal(err)
	}
	var a, b any
	if err := errors.Join(json.Unmarshal(in, &a), json.Unmarshal(without, &b)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(a, b); d != "" {
		t.Error(d)
	}
}

func TestInsertRefusesWhatIsNoNetwork(t *testing.T) {
	for _, in := range []string{
		"", "{}", "[]", "null", "{", `{"plugins":[]}`, `{"plugins":{}}`, `{"plugins":[{}]}`, `{"plugins":[1]}`,
		`{"type":""}`, `{"type":1}`, `{"type":"a"}{}`, `{"type":"a","type":"b"}`, `{"name":"n","plugins":[{"type":"ambit-cni"}]} x`,
		strings.Repeat(" ", maxConf) + `{"type":"a"}`,
	} {
		if out, err := Insert([]byte(in), entry); !errors.Is(err, errNotNetwork) {
			t.Errorf("%.40q: %v\n%s", in, err, out)
		}
	}
	// Only us in the list: there is no plugin to come after.
	if _, err := Remove([]byte(`{"name":"n","plugins":[{"type":"ambit-cni"}]}`)); !errors.Is(err, errNotNetwork) {
		t.Errorf("remove the only plugin: %v", err)
	}
}

func FuzzInsert(f *testing.F) {
	files, err := filepath.Glob("testdata/*.conf*")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := Insert(in, entry)
		if err != nil {
			return
		}
		if !json.Valid(out) {
			t.Fatalf("not JSON: %s", out)
		}
		again, err := Insert(out, entry)
		if err != nil || !bytes.Equal(again, out) {
			t.Fatalf("not idempotent: %v\n%s\n%s", err, out, again)
		}
		_, plugins, err := parseList(out)
		if err != nil {
			t.Fatal(err)
		}
		var ours int
		for _, p := range plugins {
			if typ, _ := pluginType(p); typ == plugin.Type {
				ours++
			}
		}
		if ours != 1 {
			t.Fatalf("%d entries of ours: %s", ours, out)
		}
	})
}

// node is a node's directories.
type node struct {
	t    *testing.T
	c    Config
	mu   sync.Mutex
	last error
	seen int
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t}
	n.c = Config{
		Binary: filepath.Join(dir, "image", plugin.Type), BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"),
		Entry: entry, Log: slog.New(slog.DiscardHandler),
		Report: func(err error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.last, n.seen = err, n.seen+1
		},
	}
	for _, d := range []string{filepath.Dir(n.c.Binary), n.c.BinDir, n.c.ConfDir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.write(n.c.Binary, "binary 1")
	return n
}

func (n *node) write(path, content string) {
	n.t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) conf(name, testdata string) string {
	n.t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", testdata))
	if err != nil {
		n.t.Fatal(err)
	}
	path := filepath.Join(n.c.ConfDir, name)
	n.write(path, string(b))
	return path
}

func (n *node) read(path string) string {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return string(b)
}

func (n *node) has(path string) bool { return strings.Contains(n.read(path), `"ambit-cni"`) }

func (n *node) state() (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.seen, n.last
}

func (n *node) wait(what string, cond func() bool) {
	n.t.Helper()
	deadline, tick := time.NewTimer(20*time.Second), time.NewTicker(5*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline.C:
			seen, err := n.state()
			n.t.Fatalf("waited in vain for %s; last of %d reports: %v", what, seen, err)
		case <-tick.C:
		}
	}
}

func (n *node) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := New(n.c).Run(ctx); err != nil {
			n.t.Error(err)
		}
	})
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); done.Wait() }) }
	n.t.Cleanup(stop)
	return stop
}

func TestEnsureTakesTheFirstNetwork(t *testing.T) {
	n := newNode(t)
	n.write(filepath.Join(n.c.ConfDir, "00-broken.conflist"), "{")
	n.write(filepath.Join(n.c.ConfDir, "01-list-in-conf.conf"), `{"name":"x","plugins":[{"type":"a"}]}`)
	n.write(filepath.Join(n.c.ConfDir, "02-note.txt"), "hello")
	first := n.conf("10-flannel.conflist", "flannel.conflist")
	second := n.conf("20-other.conflist", "flannel.conflist")
	in := New(n.c)
	for range 2 {
		if err := in.Ensure(); err != nil {
			t.Fatal(err)
		}
	}
	if !n.has(first) || n.has(second) {
		t.Errorf("first %v, second %v", n.has(first), n.has(second))
	}
	fi, err := os.Stat(first)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %o, was 600", fi.Mode().Perm())
	}
	bin, err := os.Stat(filepath.Join(n.c.BinDir, plugin.Type))
	if err != nil || bin.Mode().Perm() != binaryMode {
		t.Errorf("binary: %v, %v", bin, err)
	}
	left, err := filepath.Glob(filepath.Join(n.c.ConfDir, ".ambit*"))
	if err != nil || len(left) > 0 {
		t.Errorf("temporary files stay: %v, %v", left, err)
	}
}

func TestEnsureTurnsASinglePluginIntoAList(t *testing.T) {
	n := newNode(t)
	conf := n.conf("10-bridge.conf", "bridge.conf")
	in := New(n.c)
	for range 2 {
		if err := in.Ensure(); err != nil {
			t.Fatal(err)
		}
	}
	if n.read(conf) != "" {
		t.Error("the single plugin's file is still there: the runtime would take it")
	}
	if !n.has(conf + "list") {
		t.Error("no list")
	}
	// The primary plugin writes its file again.
	n.conf("10-bridge.conf", "bridge.conf")
	if err := in.Ensure(); err != nil {
		t.Fatal(err)
	}
	if n.read(conf) != "" || !n.has(conf+"list") {
		t.Error("not joined again")
	}
}

func TestConfNameChoosesTheFile(t *testing.T) {
	n := newNode(t)
	first, second := n.conf("10-a.conflist", "flannel.conflist"), n.conf("20-b.conf", "bridge.conf")
	n.c.ConfName = "20-b.conf"
	in := New(n.c)
	for range 2 {
		if err := in.Ensure(); err != nil {
			t.Fatal(err)
		}
	}
	if n.has(first) || !n.has(second+"list") {
		t.Error("joined another file")
	}
}

func TestMissingThingsAreNamed(t *testing.T) {
	n := newNode(t)
	in := New(n.c)
	if err := in.Ensure(); !errors.Is(err, errNoNetwork) || !strings.Contains(err.Error(), n.c.ConfDir) {
		t.Errorf("no configuration: %v", err)
	}
	if err := os.Remove(n.c.ConfDir); err != nil {
		t.Fatal(err)
	}
	if err := in.Ensure(); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), n.c.ConfDir) {
		t.Errorf("no directory: %v", err)
	}
	if err := os.RemoveAll(n.c.BinDir); err != nil {
		t.Fatal(err)
	}
	if err := in.Ensure(); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), n.c.BinDir) {
		t.Errorf("no plugin directory: %v", err)
	}
}

func TestRunComesBackAfterEveryChange(t *testing.T) {
	n := newNode(t)
	stop := n.run()
	n.wait("a report", func() bool { _, err := n.state(); return errors.Is(err, errNoNetwork) })
	// The primary plugin is installed later than we are.
	conf := n.conf("10-flannel.conflist", "flannel.conflist")
	n.wait("our entry", func() bool { _, err := n.state(); return err == nil && n.has(conf) })
	// It rewrites its file.
	n.conf("10-flannel.conflist", "flannel.conflist")
	n.wait("our entry again", func() bool { return n.has(conf) })
	// Another one takes the first place.
	other := n.conf("05-cilium.conflist", "flannel.conflist")
	n.wait("our entry in the new first", func() bool { return n.has(other) })
	// The binary is removed, or replaced by an older one.
	bin := filepath.Join(n.c.BinDir, plugin.Type)
	if err := os.Remove(bin); err != nil {
		t.Fatal(err)
	}
	n.wait("the binary", func() bool { return n.read(bin) == "binary 1" })
	n.write(bin, "binary 0")
	n.wait("the right binary", func() bool { return n.read(bin) == "binary 1" })
	stop()
	// An agent that stops leaves all in place.
	if !n.has(other) || n.read(bin) == "" {
		t.Error("gone after the end")
	}
}

func TestUninstall(t *testing.T) {
	n := newNode(t)
	conf, foreign := n.conf("10-flannel.conflist", "flannel.conflist"), n.conf("20-x.conflist", "flannel.conflist")
	before := n.read(foreign)
	n.write(filepath.Join(n.c.ConfDir, "00-broken.conflist"), "{")
	in := New(n.c)
	if err := in.Ensure(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := in.Uninstall(); err != nil {
			t.Fatal(err)
		}
	}
	if n.has(conf) || n.read(filepath.Join(n.c.BinDir, plugin.Type)) != "" {
		t.Error("not removed")
	}
	if n.read(foreign) != before {
		t.Error("a file without us was changed")
	}
}

// TestReadersNeverSeeHalfAFile reads while the file is replaced again and again.
func TestReadersNeverSeeHalfAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	a, b := bytes.Repeat([]byte("a"), 100_000), bytes.Repeat([]byte("b"), 50_000)
	if err := writeFile(path, a, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		defer cancel()
		for i := range 50 {
			if err := writeFile(path, [][]byte{a, b}[i%2], 0o600); err != nil {
				t.Error(err)
			}
		}
	})
	for ctx.Err() == nil {
		got, err := os.ReadFile(path)
		if err != nil || (!bytes.Equal(got, a) && !bytes.Equal(got, b)) {
			t.Fatalf("read %d bytes, %v", len(got), err)
		}
	}
	done.Wait()
}

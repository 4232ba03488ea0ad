package watch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settle is how long the directory must be quiet before it is read, so that a copy of many files is
	// read once; maxSettle bounds the wait when it never is.
	settle    = 20 * time.Millisecond
	maxSettle = 500 * time.Millisecond
	// rescan is how often the directory is read although nothing was heard: some file systems send no events.
	rescan = 10 * time.Second
	// maxFile bounds one file, in bytes: larger than any manifest that people write.
	maxFile = 16 << 20
)

// Directory is the source that reads a directory of YAML files, with all below it.
type Directory struct {
	path string
	log  *slog.Logger

	mu         sync.Mutex
	conditions map[string]string
	// files holds what each file contributes; only Run uses it.
	files map[string]*file
	// owner tells which file an object comes from.
	owner map[objectID]string
}

var _ Source = (*Directory)(nil)

// file is one file's last good content.
type file struct {
	modified time.Time
	size     int64
	objects  map[objectID]Event
	raw      map[objectID]string
}

// NewDirectory makes a source on a directory.
func NewDirectory(path string, log *slog.Logger) *Directory {
	return &Directory{path: path, log: log, conditions: map[string]string{}, files: map[string]*file{}, owner: map[objectID]string{}}
}

// Conditions implements Source.
func (d *Directory) Conditions() []Condition {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []Condition
	for object, reason := range d.conditions {
		out = append(out, Condition{Object: object, Reason: reason})
	}
	slices.SortFunc(out, func(a, b Condition) int { return strings.Compare(a.Object, b.Object) })
	return out
}

func (d *Directory) condition(object string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		delete(d.conditions, object)
		return
	}
	if old := d.conditions[object]; old != err.Error() {
		d.conditions[object] = err.Error()
		d.log.Error("file not used; its last good content stays in force", "file", object, "error", err)
	}
}

// Run implements Source.
func (d *Directory) Run(ctx context.Context, h Handler) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch directory %q: %w", d.path, err)
	}
	defer w.Close()
	if err := d.scan(w, h); err != nil {
		return err // at the start a directory that cannot be read is a mistake in the configuration
	}
	h.Synced()
	tick := time.NewTicker(rescan)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case _, ok := <-w.Events:
			if !ok || !quiet(ctx, w) {
				return nil
			}
		case err := <-w.Errors:
			// The queue overflowed: the scan below finds what was missed.
			d.log.Warn("events of the directory were lost", "error", err)
		}
		d.condition(d.path, d.scan(w, h))
	}
}

// quiet waits until no event came for a moment; false when the watch ended.
func quiet(ctx context.Context, w *fsnotify.Watcher) bool {
	limit := time.NewTimer(maxSettle)
	defer limit.Stop()
	for {
		t := time.NewTimer(settle)
		select {
		case <-ctx.Done():
			t.Stop()
			return false
		case _, ok := <-w.Events:
			t.Stop()
			if !ok {
				return false
			}
		case <-t.C:
			return true
		case <-limit.C:
			t.Stop()
			return true
		}
	}
}

// scan reads every file that changed and delivers the difference.
func (d *Directory) scan(w *fsnotify.Watcher, h Handler) error {
	seen := map[string]bool{}
	err := filepath.WalkDir(d.path, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			if path != d.path && errors.Is(err, fs.ErrNotExist) {
				return nil // gone while we looked
			}
			return err
		}
		if e.IsDir() {
			if hidden(e.Name()) && path != d.path {
				return filepath.SkipDir
			}
			return w.Add(path) // adding it again changes nothing
		}
		if ext := filepath.Ext(path); hidden(e.Name()) || ext != ".yaml" && ext != ".yml" && ext != ".json" {
			return nil
		}
		seen[path] = true
		d.condition(path, d.load(path, h))
		return nil
	})
	if err != nil {
		return fmt.Errorf("read directory %q: %w", d.path, err)
	}
	for path := range d.files {
		if !seen[path] {
			d.replace(path, &file{}, h)
			delete(d.files, path)
			d.condition(path, nil)
		}
	}
	return nil
}

// hidden tells editors' and ConfigMap volumes' own entries from the user's; a volume's
// visible entries are links to the hidden ones.
func hidden(name string) bool { return strings.HasPrefix(name, ".") }

// load reads one file if it changed. A file is used whole or not at all.
func (d *Directory) load(path string, h Handler) error {
	st, err := os.Stat(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the next scan removes it
		}
		return fmt.Errorf("read file %q: %w", path, err)
	}
	old := d.files[path]
	if old != nil && old.modified.Equal(st.ModTime()) && old.size == st.Size() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if reason, bad := d.conditions[path]; bad {
			return errors.New(reason)
		}
		return nil
	}
	if st.Size() > maxFile {
		return fmt.Errorf("read file %q: %d bytes are more than %d", path, st.Size(), maxFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read file %q: %w", path, err)
	}
	objects, err := decode(b)
	if old == nil {
		old = &file{}
		d.files[path] = old
	}
	old.modified, old.size = st.ModTime(), st.Size()
	if err != nil {
		return fmt.Errorf("read file %q: %w", path, err)
	}
	now := &file{modified: st.ModTime(), size: st.Size(), objects: map[objectID]Event{}, raw: map[objectID]string{}}
	for _, o := range objects {
		if owner, taken := d.owner[o.id]; taken && owner != path {
			old.modified = time.Time{} // look again, since the other file may let go of it
			return fmt.Errorf("read file %q: document %d: %s %q is in file %q too", path, o.document, o.id.kind, o.id.key, owner)
		}
		if _, twice := now.objects[o.id]; twice {
			return fmt.Errorf("read file %q: document %d: %s %q occurs twice", path, o.document, o.id.kind, o.id.key)
		}
		now.objects[o.id] = Event{Kind: o.id.kind, Key: o.id.key, Object: o.object, Origin: path}
		now.raw[o.id] = o.raw
	}
	d.replace(path, now, h)
	d.files[path] = now
	return nil
}

// replace delivers what differs between a file's last good content and its new one.
func (d *Directory) replace(path string, now *file, h Handler) {
	old := d.files[path]
	if old == nil {
		old = &file{}
	}
	for id := range old.objects {
		if _, stays := now.objects[id]; !stays {
			delete(d.owner, id)
			h.Handle(Event{Kind: id.kind, Key: id.key, Origin: path})
		}
	}
	for id, e := range now.objects {
		d.owner[id] = path
		if old.raw[id] != now.raw[id] {
			h.Handle(e)
		}
	}
}

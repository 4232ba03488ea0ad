package install

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/ambit-mesh/ambit/cni-plugin/plugin"
)

const (
	binaryMode = 0o755
	// checkEvery finds what a file watch misses: directories that appear late, other mounts, lost events.
	checkEvery = 10 * time.Second
	// settle is the pause after a change before the files are read: a primary plugin writes several in a row,
	// and two writers that disagree must not spin.
	settle = 200 * time.Millisecond
)

// Config says what goes where.
type Config struct {
	// Binary is the plugin in the agent's image; BinDir and ConfDir are the node's directories as the agent sees them.
	Binary, BinDir, ConfDir string
	// ConfName is the configuration file to join; empty means the one that the runtime uses, which is the first.
	ConfName string
	// Entry is our part of the network configuration, with paths as the node sees them.
	Entry plugin.Config
	// Report is told after each check: nil means that the plugin is in place.
	Report func(error)
	Log    *slog.Logger
}

// Installer keeps the plugin in place.
type Installer struct {
	c Config
}

// New returns an installer; it does nothing until Run or Ensure.
func New(c Config) *Installer { return &Installer{c: c} }

// Ensure brings the node to the wished state once.
func (in *Installer) Ensure() error {
	if _, err := os.Stat(in.c.BinDir); err != nil {
		return fmt.Errorf("find CNI plugin directory: %w", err)
	}
	// The binary comes first: a runtime must not meet an entry without one.
	bin := filepath.Join(in.c.BinDir, plugin.Type)
	changed, err := copyIfChanged(in.c.Binary, bin)
	if err != nil {
		return err
	}
	if changed {
		in.c.Log.Info("CNI plugin binary installed", "path", bin)
	}
	path, have, err := primary(in.c.ConfDir, in.c.ConfName)
	if err != nil {
		return err
	}
	want, err := Insert(have, in.c.Entry)
	if err != nil {
		return fmt.Errorf("insert into %q: %w", path, err)
	}
	return in.replace(path, have, want)
}

// replace writes want over path, or beside it under the name of a list, and removes the single-plugin file then.
func (in *Installer) replace(path string, have, want []byte) error {
	to := listPath(path)
	if to == path && string(have) == string(want) {
		return nil
	}
	fi, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("read mode: %w", err)
	}
	if err := writeFile(to, want, fi.Mode().Perm()); err != nil {
		return err
	}
	if to != path {
		if err := ignoreMissing(os.Remove(path)); err != nil {
			return fmt.Errorf("remove single-plugin configuration: %w", err)
		}
	}
	in.c.Log.Info("CNI configuration changed", "path", to)
	return nil
}

// Uninstall takes our entry out of every configuration, then removes the binary.
func (in *Installer) Uninstall() error {
	files, err := confFiles(in.c.ConfDir)
	if err != nil {
		return err
	}
	var errs error
	for _, f := range files {
		have, err := readBounded(f)
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("read %q: %w", f, err))
			continue
		}
		want, err := Remove(have)
		if err != nil || string(have) == string(want) {
			// Not a network, or not with us in it: not ours to change.
			continue
		}
		errs = errors.Join(errs, in.replace(f, have, want))
	}
	if errs != nil {
		// A runtime that still meets our entry needs the binary to get a clear answer.
		return fmt.Errorf("remove CNI plugin: %w", errs)
	}
	if err := ignoreMissing(os.Remove(filepath.Join(in.c.BinDir, plugin.Type))); err != nil {
		return fmt.Errorf("remove CNI plugin: %w", err)
	}
	in.c.Log.Info("CNI plugin removed", "conf", in.c.ConfDir, "bin", in.c.BinDir)
	return nil
}

// Run keeps the plugin in place until ctx ends, and leaves it there.
func (in *Installer) Run(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch CNI directories: %w", err)
	}
	defer w.Close()
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	var last string
	for {
		// A directory that is missing now is tried again at the next tick; adding one twice is harmless.
		for _, d := range []string{in.c.ConfDir, in.c.BinDir} {
			if err := w.Add(d); err != nil {
				in.c.Log.Debug("directory not watched", "path", d, "error", err)
			}
		}
		err := in.Ensure()
		in.c.Report(err)
		if s := fmt.Sprint(err); s != last && err != nil {
			in.c.Log.Error("CNI plugin is not in place; tried again", "error", err, "every", checkEvery)
		}
		last = fmt.Sprint(err)
		if !wait(ctx, w, tick.C) {
			return nil
		}
	}
}

// wait returns when the files may have changed and nothing moved for a moment; false when ctx ended.
func wait(ctx context.Context, w *fsnotify.Watcher, tick <-chan time.Time) bool {
	select {
	case <-ctx.Done():
		return false
	case <-tick:
		return true
	case <-w.Errors:
	case <-w.Events:
	}
	t := time.NewTimer(settle)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
			return true
		case <-w.Events:
		case <-w.Errors:
		}
	}
}

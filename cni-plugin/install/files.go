package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// confExtensions are those that runtimes load, a list or a single plugin each.
var confExtensions = []string{".conf", ".conflist", ".json"}

// errNoNetwork means that there is no primary CNI configuration (yet).
var errNoNetwork = errors.New("no CNI network configuration")

// confFiles lists the configuration files of dir in the order in which runtimes try them.
func confFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return nil, fmt.Errorf("read CNI configuration directory %q: %w", dir, err)
	}
	var out []string
	for _, e := range entries {
		if !e.IsDir() && slices.Contains(confExtensions, filepath.Ext(e.Name())) {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, nil
}

// primary returns the first file that is a network configuration, which is the one that runtimes use; with a
// name only that file, also after it has become a list.
func primary(dir, name string) (path string, content []byte, err error) {
	files, err := confFiles(dir)
	if err != nil {
		return "", nil, err
	}
	var skipped error
	for _, f := range files {
		if name != "" && filepath.Base(f) != name && filepath.Base(f) != listPath(name) {
			continue
		}
		b, err := readBounded(f)
		if err == nil {
			err = checkKind(f, b)
		}
		if err == nil {
			return f, b, nil
		}
		skipped = errors.Join(skipped, fmt.Errorf("%s: %w", filepath.Base(f), err))
	}
	if skipped != nil {
		return "", nil, fmt.Errorf("%w in %q: %w", errNoNetwork, dir, skipped)
	}
	return "", nil, fmt.Errorf("%w in %q: install the cluster's CNI plugin", errNoNetwork, dir)
}

// checkKind refuses what runtimes refuse: a list needs its extension and a name, a single plugin must not have it.
func checkKind(path string, b []byte) error {
	if _, _, err := parseList(b); err != nil {
		return err
	}
	o, err := parseObject(b)
	if err != nil {
		return err
	}
	isList, named := o.get("plugins") != nil, filepath.Ext(path) == ".conflist"
	if isList != named {
		return fmt.Errorf("%w: extension and content disagree on whether it is a list", errNotNetwork)
	}
	if isList && o.text("name") == "" {
		return fmt.Errorf("%w: no name", errNotNetwork)
	}
	return nil
}

func readBounded(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.Size() > maxConf {
		return nil, fmt.Errorf("%d bytes, at most %d", fi.Size(), maxConf)
	}
	return os.ReadFile(path)
}

// listPath is where a configuration is written: a list must be called .conflist, or runtimes read it as a
// single plugin.
func listPath(path string) string {
	return strings.TrimSuffix(path, filepath.Ext(path)) + ".conflist"
}

// writeFile replaces path in one step: a reader sees the old or the new content, also after a power loss.
func writeFile(path string, content []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	// The name starts with a dot and ends in nothing that a runtime loads.
	tmp, err := os.CreateTemp(dir, ".ambit-*.tmp")
	if err != nil {
		return fmt.Errorf("write %q: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %q: %w", path, errors.Join(err, ignoreMissing(os.Remove(tmp.Name()))))
		}
	}()
	_, err = tmp.Write(content)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// copyIfChanged brings the binary to its place unless the same one is there.
func copyIfChanged(from, to string) (changed bool, err error) {
	want, err := os.ReadFile(from)
	if err != nil {
		return false, fmt.Errorf("read plugin binary: %w", err)
	}
	if fi, err := os.Stat(to); err == nil && fi.Mode().Perm() == binaryMode && fi.Size() == int64(len(want)) {
		have, err := os.ReadFile(to)
		if err == nil && bytes.Equal(have, want) {
			return false, nil
		}
	}
	return true, writeFile(to, want, binaryMode)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

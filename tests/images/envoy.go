package images

import (
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/tests/envoybin"
)

const (
	// envoyPath is where waypoint/agent looks for Envoy unless told otherwise.
	envoyPath = "/usr/local/bin/envoy"
	// rootsFile is the bundle of public roots, where Envoy's and Debian's programs look: for TLS to hosts outside the mesh.
	rootsFile = "/etc/ssl/certs/ca-certificates.crt"
	// copyrightFile is the licence of the C library that goes with Envoy.
	copyrightFile = "/usr/share/doc/libc6/copyright"
	// maxInterpreter bounds the name of a program's loader.
	maxInterpreter = 4096
)

// envoyFiles are Envoy and what it needs to start: the release's binary is linked to the C library of this machine.
func envoyFiles() ([]File, error) {
	envoy, err := envoybin.Locate()
	if err != nil {
		return nil, err
	}
	files := []File{{Path: envoyPath, Source: envoy, Mode: 0o755}}
	libraries, err := sharedLibraries(envoy)
	if err != nil {
		return nil, err
	}
	for _, l := range libraries {
		files = append(files, File{Path: l, Source: l, Mode: 0o755})
	}
	// A wheel keeps the licence beside the package.
	licences, err := filepath.Glob(filepath.Join(filepath.Dir(envoy), "..", "..", "*.dist-info", "licenses", "LICENSE"))
	if err != nil {
		return nil, fmt.Errorf("find envoy's licence: %w", err)
	}
	for _, l := range licences {
		files = append(files, File{Path: "/usr/share/doc/envoy/copyright", Source: l, Mode: 0o644})
	}
	for _, f := range []string{rootsFile, copyrightFile} {
		if _, err := os.Stat(f); err == nil {
			files = append(files, File{Path: f, Source: f, Mode: 0o644})
		}
	}
	return files, nil
}

// libraryDirectories are where the loader looks by itself, Debian's first.
func libraryDirectories(m elf.Machine) []string {
	triplets := map[elf.Machine]string{elf.EM_X86_64: "x86_64-linux-gnu", elf.EM_AARCH64: "aarch64-linux-gnu"}
	var dirs []string
	if t := triplets[m]; t != "" {
		dirs = append(dirs, "/lib/"+t, "/usr/lib/"+t)
	}
	return append(dirs, "/lib64", "/usr/lib64", "/lib", "/usr/lib")
}

// sharedLibraries are the loader of a program and the libraries that it needs, and these need, as they lie on this
// machine.
func sharedLibraries(program string) ([]string, error) {
	found := map[string]bool{}
	var add func(file string) error
	add = func(file string) error {
		interpreter, needed, dirs, err := dynamic(file)
		if err != nil {
			return fmt.Errorf("read what %q is linked to: %w", file, err)
		}
		if interpreter != "" {
			found[interpreter] = true
		}
		for _, name := range needed {
			if slices.ContainsFunc(keys(found), func(f string) bool { return filepath.Base(f) == name }) {
				continue
			}
			i := slices.IndexFunc(dirs, func(d string) bool { _, err := os.Stat(filepath.Join(d, name)); return err == nil })
			if i < 0 {
				return fmt.Errorf("find library %q of %q: not in %s", name, file, strings.Join(dirs, ", "))
			}
			library := filepath.Join(dirs[i], name)
			found[library] = true
			if err := add(library); err != nil {
				return err
			}
		}
		return nil
	}
	if err := add(program); err != nil {
		return nil, err
	}
	list := keys(found)
	slices.Sort(list)
	return list, nil
}

func keys(m map[string]bool) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	return out
}

// dynamic is what an ELF file says of its loader and its libraries.
func dynamic(file string) (interpreter string, needed, dirs []string, err error) {
	f, err := elf.Open(file)
	if err != nil {
		return "", nil, nil, err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP || p.Filesz > maxInterpreter {
			continue
		}
		b, err := io.ReadAll(p.Open())
		if err != nil {
			return "", nil, nil, err
		}
		interpreter = strings.TrimRight(string(b), "\x00")
	}
	needed, err = f.ImportedLibraries()
	return interpreter, needed, libraryDirectories(f.Machine), err
}

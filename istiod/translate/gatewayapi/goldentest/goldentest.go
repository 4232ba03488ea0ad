// Package goldentest compares what translators make of the YAML files in a
// folder with golden files beside them. Tests of the packages under
// istiod/translate call it, and nothing else does.
//
// A golden file holds the model value as text: fields in the order of the struct,
// zero fields left out, pointers to zero values kept. It is made for people to
// review, not for programs to read.
package goldentest

import (
	"encoding"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Run translates every *.yaml in dir and compares the result with the *.golden beside it, or writes that.
func Run(t *testing.T, dir string, update bool, translate func(t testing.TB, in []byte) (any, error)) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no inputs in %s: %v", dir, err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".yaml"), func(t *testing.T) {
			in, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			v, err := translate(t, in)
			got := Text(v)
			if err != nil {
				got += "error: " + err.Error() + "\n"
			}
			golden := strings.TrimSuffix(f, ".yaml") + ".golden"
			if update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got; -update writes it)\n%s", diff)
			}
		})
	}
}

// Seeds gives the contents of every *.yaml in dir to a fuzz target.
func Seeds(f *testing.F, dir string) {
	f.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		f.Fatalf("no inputs in %s: %v", dir, err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
}

// Text writes a value as golden files hold it.
func Text(v any) string {
	var b strings.Builder
	write(&b, reflect.ValueOf(v), "")
	return b.String()
}

func write(b *strings.Builder, v reflect.Value, indent string) {
	if s, ok := scalar(v); ok {
		b.WriteString(indent + s + "\n")
		return
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		write(b, v.Elem(), indent)
	case reflect.Struct:
		for i := range v.NumField() {
			field := v.Type().Field(i)
			switch {
			case v.Field(i).IsZero():
			case field.Anonymous:
				write(b, v.Field(i), indent)
			default:
				named(b, field.Name, v.Field(i), indent)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			named(b, "-", v.Index(i), indent)
		}
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(x, y reflect.Value) int { return strings.Compare(fmt.Sprint(x), fmt.Sprint(y)) })
		for _, k := range keys {
			named(b, fmt.Sprint(k), v.MapIndex(k), indent)
		}
	}
}

func named(b *strings.Builder, name string, v reflect.Value, indent string) {
	if name != "-" {
		name += ":"
	}
	if s, ok := scalar(v); ok {
		b.WriteString(indent + name + " " + s + "\n")
		return
	}
	b.WriteString(indent + name + "\n")
	write(b, v, indent+"  ")
}

// scalar gives the text of what stands on one line.
func scalar(v reflect.Value) (string, bool) {
	if !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		return "nothing", true
	}
	if v.Kind() == reflect.Pointer {
		return scalar(v.Elem())
	}
	switch x := v.Interface().(type) {
	case time.Time:
		return x.UTC().Format(time.RFC3339), true
	case time.Duration:
		return x.String(), true
	case encoding.TextMarshaler:
		text, err := x.MarshalText()
		return string(text), err == nil
	case []byte:
		return fmt.Sprintf("%q", x), true
	}
	switch v.Kind() {
	case reflect.String:
		return fmt.Sprintf("%q", v), true
	case reflect.Uint8:
		// An enumeration: its type says of what.
		return fmt.Sprintf("%s %d", v.Type().Name(), v.Uint()), true
	case reflect.Struct, reflect.Slice, reflect.Map, reflect.Interface:
		return "", false
	}
	return fmt.Sprint(v), true
}

package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/ambit-mesh/ambit/cni-plugin/plugin"
)

const (
	// maxConf bounds a configuration file in bytes: real ones have one to four thousand.
	maxConf = 1 << 20
	// defaultName and defaultVersion complete a single-plugin file that lacks what a list must have.
	defaultName    = "k8s-pod-network"
	defaultVersion = "0.3.1"
)

// errNotNetwork marks a file that is no CNI network configuration; runtimes skip it too.
var errNotNetwork = errors.New("not a CNI network configuration")

// field is one member of a JSON object, in the file's order.
type field struct {
	key string
	raw json.RawMessage
}

// object is a JSON object that keeps order and the spelling of what it does not touch.
type object []field

func parseObject(b []byte) (object, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("%w: no JSON object", errNotNetwork)
	}
	var o object
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errNotNetwork, err)
		}
		key, ok := t.(string)
		if !ok {
			return nil, fmt.Errorf("%w: key %v", errNotNetwork, t)
		}
		if o.get(key) != nil {
			// Readers differ in which of the two they take: do not guess for them.
			return nil, fmt.Errorf("%w: %q is there twice", errNotNetwork, key)
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, fmt.Errorf("%w: value of %q: %w", errNotNetwork, key, err)
		}
		o = append(o, field{key, raw})
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotNetwork, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: text after the object", errNotNetwork)
	}
	return o, nil
}

func (o object) get(key string) json.RawMessage {
	for _, f := range o {
		if f.key == key {
			return f.raw
		}
	}
	return nil
}

// text returns a member that is a string, else "".
func (o object) text(key string) string {
	var s string
	if json.Unmarshal(o.get(key), &s) != nil {
		return ""
	}
	return s
}

func (o object) set(key string, raw json.RawMessage) {
	for i := range o {
		if o[i].key == key {
			o[i].raw = raw
		}
	}
}

// encode writes the object with two spaces of indent and a final newline.
func (o object) encode() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		k, err := marshal(f.key)
		if err != nil {
			return nil, err
		}
		b.Write(k)
		b.WriteByte(':')
		b.Write(f.raw)
	}
	b.WriteByte('}')
	var out bytes.Buffer
	if err := json.Indent(&out, b.Bytes(), "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// marshal is json.Marshal without escapes for HTML.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// parseList reads a configuration, a list or a single plugin; a single plugin becomes a list of one.
func parseList(b []byte) (object, []json.RawMessage, error) {
	if len(b) > maxConf {
		return nil, nil, fmt.Errorf("%w: %d bytes, at most %d", errNotNetwork, len(b), maxConf)
	}
	o, err := parseObject(b)
	if err != nil {
		return nil, nil, err
	}
	if raw := o.get("plugins"); raw != nil {
		var plugins []json.RawMessage
		if err := json.Unmarshal(raw, &plugins); err != nil || len(plugins) == 0 {
			return nil, nil, fmt.Errorf("%w: plugins is not a list with members", errNotNetwork)
		}
		for i, p := range plugins {
			if _, err := pluginType(p); err != nil {
				return nil, nil, fmt.Errorf("plugin %d: %w", i, err)
			}
		}
		return o, plugins, nil
	}
	if _, err := pluginType(b); err != nil {
		return nil, nil, err
	}
	return single(o, b)
}

// single wraps a single plugin's configuration; its version and name become the list's.
func single(o object, b []byte) (object, []json.RawMessage, error) {
	list := object{}
	for _, f := range []struct{ key, fallback string }{{"cniVersion", defaultVersion}, {"name", defaultName}} {
		v := o.text(f.key)
		if v == "" {
			v = f.fallback
		}
		raw, err := marshal(v)
		if err != nil {
			return nil, nil, err
		}
		list = append(list, field{f.key, raw})
	}
	return append(list, field{"plugins", nil}), []json.RawMessage{b}, nil
}

func pluginType(b []byte) (string, error) {
	o, err := parseObject(b)
	if err != nil {
		return "", err
	}
	t := o.text("type")
	if t == "" {
		return "", fmt.Errorf("%w: no type", errNotNetwork)
	}
	return t, nil
}

// Insert returns conf as a list whose last plugin is ours; an entry of ours that is already there is replaced.
// The result equals conf when nothing was to be done.
func Insert(conf []byte, entry plugin.Config) ([]byte, error) {
	raw, err := marshal(entry)
	if err != nil {
		return nil, err
	}
	return edit(conf, raw)
}

// Remove returns conf without our entry.
func Remove(conf []byte) ([]byte, error) { return edit(conf, nil) }

func edit(conf []byte, entry json.RawMessage) ([]byte, error) {
	o, plugins, err := parseList(conf)
	if err != nil {
		return nil, err
	}
	var keep []json.RawMessage
	for i, p := range plugins {
		t, err := pluginType(p)
		if err != nil {
			return nil, err
		}
		if t != plugin.Type {
			keep = append(keep, p)
		} else if i == len(plugins)-1 && entry != nil && o.get("plugins") != nil && sameJSON(p, entry) {
			return conf, nil
		}
	}
	if len(keep) == len(plugins) && entry == nil {
		return conf, nil
	}
	if len(keep) == 0 {
		return nil, fmt.Errorf("%w: no plugin besides ours", errNotNetwork)
	}
	if entry != nil {
		keep = append(keep, entry)
	}
	parts := make([]string, len(keep))
	for i, p := range keep {
		parts[i] = string(p)
	}
	o.set("plugins", json.RawMessage("["+strings.Join(parts, ",")+"]"))
	return o.encode()
}

// sameJSON compares but for white space.
func sameJSON(a, b []byte) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}

package admin

import (
	"net/http"
	"strings"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/push"
)

// proxies lists names and versions, never contents: secrets are among them.
func (c Config) proxies(w http.ResponseWriter, r *http.Request) {
	want := r.URL.Query().Get("proxy")
	out := map[string]map[string]map[string]string{}
	for _, key := range c.Directory.Keys() {
		cache := c.Directory.Get(key)
		if cache == nil || want != "" && want != key.String() {
			continue
		}
		types := map[string]map[string]string{}
		for _, t := range push.EnvoyTypes() {
			names := map[string]string{}
			for _, res := range cache.All(t) {
				names[res.Name] = res.Version
			}
			types[t[strings.LastIndexByte(t, '.')+1:]] = names
		}
		out[key.String()] = types
	}
	writeJSON(w, out)
}

func (c Config) statuses(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("name")
	out := []*model.Status{}
	for _, s := range c.Layer7.Statuses() {
		if strings.Contains(s.Key.String(), name) {
			out = append(out, s)
		}
	}
	writeJSON(w, out)
}

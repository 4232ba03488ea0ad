package telemetry

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestOnlyLocalClientsMayChangeAProcess(t *testing.T) {
	h := LocalOnly(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	for from, want := range map[string]int{
		"127.0.0.1:4000":          http.StatusNoContent,
		"[::1]:4000":              http.StatusNoContent,
		"[::ffff:127.0.0.1]:4000": http.StatusNoContent,
		"10.0.0.1:4000":           http.StatusForbidden,
		"[fd00::1]:4000":          http.StatusForbidden,
		"@":                       http.StatusForbidden,
	} {
		r := httptest.NewRequest(http.MethodPost, "/logging?level=debug", nil)
		r.RemoteAddr = from
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("from %s: status %d, want %d", from, w.Code, want)
		}
	}
}

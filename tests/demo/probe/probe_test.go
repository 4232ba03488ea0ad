package probe

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestClientCountsWhatTheServerSays(t *testing.T) {
	srv := httptest.NewServer(&Server{Name: "product", Version: "v1", Pod: "p"})
	defer srv.Close()
	r, err := Fetch{URL: srv.URL + "/a?status=418", Count: 20, Concurrency: 4, Timeout: 5 * time.Second, Headers: []string{"Host: shop", "X-Group: test"}}.Do(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.Requests != 20 || r.Status["418"] != 20 || r.Versions["product/v1"] != 20 || r.Pods["p"] != 20 || len(r.Errors) != 0 {
		t.Errorf("got %+v", r)
	}
	if r.Last == nil || r.Last.Host != "shop" || r.Last.URL != "/a?status=418" {
		t.Fatalf("got %+v", r.Last)
	}
	if diff := cmp.Diff([]string{"test"}, r.Last.Headers["X-Group"]); diff != "" {
		t.Error(diff)
	}
}

func TestControlMakesTheServerFaulty(t *testing.T) {
	s := &Server{Name: "product"}
	get := func(path string) int {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code
	}
	if got := get("/control?status=nothing"); got != 400 {
		t.Errorf("a status that is none: %d", got)
	}
	get("/control?status=503")
	if got := get("/"); got != 503 {
		t.Errorf("faulty: %d", got)
	}
	get("/control?status=200")
	if got := get("/"); got != 200 {
		t.Errorf("mended: %d", got)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/count", nil))
	if w.Body.String() != "2" {
		t.Errorf("count %s", w.Body)
	}
}

func TestFailuresOnTheWireAreCounted(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close()
	r, err := Fetch{URL: srv.URL, Count: 3, Timeout: time.Second}.Do(t.Context())
	if err != nil || r.Requests != 3 || r.Errors["refused"] != 3 {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestWellKnownFilesAreServed(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "jwks.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	(&Server{WellKnown: dir}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/.well-known/jwks.json", nil))
	if w.Code != 200 || w.Body.String() != "{}" {
		t.Errorf("got %d %q", w.Code, w.Body)
	}
}

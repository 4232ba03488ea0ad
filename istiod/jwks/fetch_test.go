package jwks

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// issuer is a server of keys and of discovery documents on loopback.
func issuer(t *testing.T) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	reply := func(path, body string) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) })
	}
	reply("/keys", `{"keys":[`+rsaKey+`]}`)
	reply("/html", "<html>the secret of somebody else</html>")
	reply("/long", `{"keys":[`+rsaKey+strings.Repeat(" ", maxBytes)+`]}`)
	reply("/good"+discoveryPath, fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, s.URL+"/good/", s.URL+"/keys"))
	reply("/stranger"+discoveryPath, fmt.Sprintf(`{"issuer":"https://other.example","jwks_uri":%q}`, s.URL+"/keys"))
	reply("/file"+discoveryPath, fmt.Sprintf(`{"issuer":%q,"jwks_uri":"file:///etc/passwd"}`, s.URL+"/file"))
	reply("/nothing"+discoveryPath, fmt.Sprintf(`{"issuer":%q}`, s.URL+"/nothing"))
	mux.Handle("/once", http.RedirectHandler("/keys", http.StatusFound))
	mux.Handle("/loop", http.RedirectHandler("/loop", http.StatusFound))
	mux.Handle("/elsewhere", http.RedirectHandler("ftp://127.0.0.1/keys", http.StatusFound))
	mux.Handle("/login", http.RedirectHandler(strings.Replace(s.URL, "http://", "http://me:pass@", 1)+"/keys", http.StatusFound))
	return s
}

func TestFetch(t *testing.T) {
	s := issuer(t)
	c := client(s.Client().Transport)
	for _, tt := range []struct {
		name string
		from source
		err  string
	}{
		{name: "by URI", from: source{uri: s.URL + "/keys"}},
		{name: "by discovery", from: source{issuer: s.URL + "/good"}},
		{name: "by discovery, with a slash", from: source{issuer: s.URL + "/good/"}},
		{name: "one redirect", from: source{uri: s.URL + "/once"}},
		{name: "redirects without end", from: source{uri: s.URL + "/loop"}, err: "more than 5 redirects"},
		{name: "redirect to another scheme", from: source{uri: s.URL + "/elsewhere"}, err: "neither http nor https"},
		{name: "redirect with credentials", from: source{uri: s.URL + "/login"}, err: "holds credentials"},
		{name: "missing", from: source{uri: s.URL + "/missing"}, err: "answer 404"},
		{name: "not a key set", from: source{uri: s.URL + "/html"}, err: "parse key set"},
		{name: "too long", from: source{uri: s.URL + "/long"}, err: "longer than 1048576 bytes"},
		{name: "issuer without document", from: source{issuer: s.URL + "/bad"}, err: "answer 404"},
		{name: "document of another issuer", from: source{issuer: s.URL + "/stranger"}, err: `it is of issuer "https://other.example"`},
		{name: "document that leads to a file", from: source{issuer: s.URL + "/file"}, err: "neither http nor https"},
		{name: "document without URI", from: source{issuer: s.URL + "/nothing"}, err: "jwks_uri"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := fetch(t.Context(), c, tt.from)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %q, error %v, want one with %q", got, err, tt.err)
				} else if strings.Contains(err.Error(), "secret of somebody") || strings.Contains(err.Error(), "pass@") {
					t.Errorf("the error tells too much: %v", err)
				}
				return
			}
			if want := `{"keys":[` + rsaKey + `]}`; err != nil || got != want {
				t.Errorf("got %q (%v), want %q", got, err, want)
			}
		})
	}
}

// TestNoDowngrade: what https began, http does not end.
func TestNoDowngrade(t *testing.T) {
	plain := issuer(t)
	mux := http.NewServeMux()
	secure := httptest.NewTLSServer(mux)
	defer secure.Close()
	mux.Handle("/keys", http.RedirectHandler(plain.URL+"/keys", http.StatusFound))
	mux.HandleFunc(discoveryPath, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, secure.URL, plain.URL+"/keys")
	})
	c := client(secure.Client().Transport)
	for name, from := range map[string]source{"redirect": {uri: secure.URL + "/keys"}, "discovery": {issuer: secure.URL}} {
		if got, err := fetch(t.Context(), c, from); err == nil || !strings.Contains(err.Error(), "from https to http") {
			t.Errorf("%s: got %q (%v)", name, got, err)
		}
	}
	// Without the server's root its certificate is not trusted.
	if _, err := fetch(t.Context(), client(nil), source{uri: secure.URL + "/keys"}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate that nobody trusts: %v", err)
	}
}

func TestCheckURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://example.org/keys": "", "http://10.0.0.1:8080": "", "https://[fd00::1]/": "",
		"": "neither http nor https", "example.org/keys": "neither http nor https", "file:///etc/passwd": "neither http nor https",
		"https://": "names no host", "https://:443/": "names no host", "https://me:pass@example.org": "holds credentials",
		"https://exa mple": "parse URL",
	} {
		err := CheckURL(in)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %v, want %q", in, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "pass@") {
			t.Errorf("%q: the error shows credentials: %v", in, err)
		}
	}
}

// TestRealServer: a fetcher with its own transport gets keys over a socket and tells of them, and ends without a trace.
func TestRealServer(t *testing.T) {
	s := issuer(t)
	changed := make(chan string, 4)
	f := New(Config{Changed: func(uri, issuer string) { changed <- uri + "|" + issuer }})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	keys, err := f.Get(s.URL+"/keys", "https://issuer.example")
	if keys != model.UnusableJWKS && err != nil {
		t.Errorf("first answer: %q (%v)", keys, err)
	}
	if got := <-changed; got != s.URL+"/keys|https://issuer.example" {
		t.Errorf("told of %q", got)
	}
	if keys, err = f.Get(s.URL+"/keys", "https://issuer.example"); err != nil || keys != `{"keys":[`+rsaKey+`]}` {
		t.Errorf("got %q (%v)", keys, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}

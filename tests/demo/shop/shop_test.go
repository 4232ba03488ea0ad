package main

import (
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"strings"
	"testing"
)

// shopOf starts every service on loopback.
func shopOf(t *testing.T) (url string) {
	t.Helper()
	serve := func(h http.Handler) string {
		s := httptest.NewServer(h)
		t.Cleanup(s.Close)
		return s.URL
	}
	c := newCaller()
	t.Cleanup(c.client.CloseIdle)
	var p peers
	p.store = serve(newStore())
	p.catalog, p.payments = serve(catalog()), serve(payments())
	p.cart = serve(cart(c, p))
	p.checkout = serve(checkout(c, p))
	h, err := newWeb(c, p)
	if err != nil {
		t.Fatal(err)
	}
	return serve(h)
}

func TestVisitorBuysTwoThings(t *testing.T) {
	url := shopOf(t)
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar}
	see := func(want string, resp *http.Response, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK || !strings.Contains(string(b), want) {
			t.Errorf("status %d, page without %q:\n%s", resp.StatusCode, want, b)
		}
	}
	resp, err := browser.Get(url)
	see("0 in your cart, 0.00", resp, err)
	for _, id := range []string{"map", "rope"} {
		resp, err = browser.Post(url+"/add/"+id, "", nil)
	}
	see("2 in your cart, 20.50", resp, err)
	resp, err = browser.Post(url+"/buy", "", nil)
	see("Order 1 is paid", resp, err)
	resp, err = browser.Get(url)
	see("0 in your cart", resp, err)
}

func TestFailedCallIsShown(t *testing.T) {
	h, err := newWeb(newCaller(), peers{catalog: "http://127.0.0.1:1", cart: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if w.Code != http.StatusBadGateway || !strings.Contains(w.Body.String(), "refused") {
		t.Errorf("status %d, body %q", w.Code, w.Body)
	}
}

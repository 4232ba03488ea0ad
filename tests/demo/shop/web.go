package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
)

//go:embed page.html
var pageText string

// visitorCookie tells visitors apart.
const visitorCookie = "visitor"

// web renders the page and passes on what the visitor does.
type web struct {
	*caller
	peers
	page *template.Template
}

// page is what the template shows.
type page struct {
	Visitor  string
	Catalog  list
	Cart     contents
	Count    int
	Cents    int
	Message  string
	ServedBy string
}

func newWeb(c *caller, p peers) (http.Handler, error) {
	t, err := template.New("page").Funcs(template.FuncMap{
		"price": func(cents int) string { return fmt.Sprintf("%d.%02d", cents/100, cents%100) },
	}).Parse(pageText)
	if err != nil {
		return nil, fmt.Errorf("parse the page: %w", err)
	}
	w := &web{c, p, t}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", w.show)
	mux.HandleFunc("POST /add/{product}", w.add)
	mux.HandleFunc("POST /buy", w.buy)
	return mux, nil
}

func (w *web) show(out http.ResponseWriter, r *http.Request) {
	p := page{Visitor: visitor(out, r), Message: r.URL.Query().Get("message"), ServedBy: podName()}
	err := errors.Join(
		w.call(r.Context(), http.MethodGet, w.catalog+"/products", nil, &p.Catalog),
		w.call(r.Context(), http.MethodGet, w.cartOf(p.Visitor), nil, &p.Cart),
	)
	if err != nil {
		fail(out, err)
		return
	}
	for _, n := range p.Cart.Items {
		p.Count += n
	}
	p.Cents = total(p.Cart.Items)
	out.Header().Set("Content-Type", "text/html; charset=utf-8")
	_ = w.page.Execute(out, p) // the visitor went away
}

func (w *web) add(out http.ResponseWriter, r *http.Request) {
	err := w.call(r.Context(), http.MethodPost, w.cartOf(visitor(out, r))+"/"+url.PathEscape(r.PathValue("product")), nil, nil)
	if err != nil {
		fail(out, err)
		return
	}
	http.Redirect(out, r, "/", http.StatusSeeOther)
}

func (w *web) buy(out http.ResponseWriter, r *http.Request) {
	var done receipt
	err := w.call(r.Context(), http.MethodPost, w.checkout+"/orders/"+url.PathEscape(visitor(out, r)), nil, &done)
	if err != nil {
		fail(out, err)
		return
	}
	message := fmt.Sprintf("Order %d is paid. Thank you!", done.Order)
	http.Redirect(out, r, "/?message="+url.QueryEscape(message), http.StatusSeeOther)
}

func (w *web) cartOf(visitor string) string { return w.cart + "/carts/" + url.PathEscape(visitor) }

// visitor reads the cookie, or gives a new visitor the name of the first: a demo has one.
func visitor(out http.ResponseWriter, r *http.Request) string {
	if c, err := r.Cookie(visitorCookie); err == nil && c.Value != "" {
		return c.Value
	}
	http.SetCookie(out, &http.Cookie{Name: visitorCookie, Value: "guest", Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
	return "guest"
}

// decode reads a JSON body of bounded size.
func decode(r *http.Request, into any) error {
	if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxValue)).Decode(into); err != nil {
		return fmt.Errorf("decode the request: %w", err)
	}
	return nil
}

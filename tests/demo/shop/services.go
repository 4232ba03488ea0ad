package main

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
)

// product is one thing to buy. Prices are in cents.
type product struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Cents int    `json:"cents"`
}

// list is what catalog answers.
type list struct {
	Products []product `json:"products"`
	ServedBy string    `json:"servedBy"`
}

// contents is what cart answers: product id to count.
type contents struct {
	Items    map[string]int `json:"items"`
	ServedBy string         `json:"servedBy"`
}

// receipt is what checkout and payments answer.
type receipt struct {
	Order    int64  `json:"order"`
	Cents    int    `json:"cents"`
	ServedBy string `json:"servedBy"`
}

func products() []product {
	return []product{
		{"compass", "Brass compass", 2490}, {"lantern", "Storm lantern", 3900}, {"rope", "Hemp rope, 20 m", 1250},
		{"map", "Map of the old town", 800}, {"kettle", "Camping kettle", 1990},
	}
}

func catalog() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /products", func(w http.ResponseWriter, _ *http.Request) { answer(w, list{products(), podName()}) })
	// How much there is of each product is not everybody's business: the demo asks for a token.
	mux.HandleFunc("GET /stock", func(w http.ResponseWriter, _ *http.Request) {
		out := contents{Items: map[string]int{}, ServedBy: podName()}
		for i, p := range products() {
			out.Items[p.ID] = 3 + i
		}
		answer(w, out)
	})
	return mux
}

// cart keeps no state of its own, so that any replica answers for any visitor.
func cart(c *caller, p peers) http.Handler {
	load := func(r *http.Request) (contents, error) {
		out := contents{Items: map[string]int{}, ServedBy: podName()}
		err := c.call(r.Context(), http.MethodGet, p.store+"/values/"+r.PathValue("visitor"), nil, &out.Items)
		return out, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /carts/{visitor}", func(w http.ResponseWriter, r *http.Request) {
		out, err := load(r)
		if err != nil {
			fail(w, err)
			return
		}
		answer(w, out)
	})
	mux.HandleFunc("POST /carts/{visitor}/{product}", func(w http.ResponseWriter, r *http.Request) {
		out, err := load(r)
		if err == nil {
			out.Items[r.PathValue("product")]++
			err = c.call(r.Context(), http.MethodPut, p.store+"/values/"+r.PathValue("visitor"), out.Items, nil)
		}
		if err != nil {
			fail(w, err)
			return
		}
		answer(w, out)
	})
	mux.HandleFunc("DELETE /carts/{visitor}", func(w http.ResponseWriter, r *http.Request) {
		if err := c.call(r.Context(), http.MethodPut, p.store+"/values/"+r.PathValue("visitor"), map[string]int{}, nil); err != nil {
			fail(w, err)
		}
	})
	return mux
}

func checkout(c *caller, p peers) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders/{visitor}", func(w http.ResponseWriter, r *http.Request) {
		var chosen contents
		var paid receipt
		url := p.cart + "/carts/" + r.PathValue("visitor")
		err := c.call(r.Context(), http.MethodGet, url, nil, &chosen)
		if err == nil {
			err = c.call(r.Context(), http.MethodPost, p.payments+"/charges", receipt{Cents: total(chosen.Items)}, &paid)
		}
		if err == nil {
			err = c.call(r.Context(), http.MethodDelete, url, nil, nil)
		}
		if err != nil {
			fail(w, err)
			return
		}
		answer(w, paid)
	})
	return mux
}

func total(items map[string]int) int {
	sum := 0
	for _, p := range products() {
		sum += items[p.ID] * p.Cents
	}
	return sum
}

func payments() http.Handler {
	var orders atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"orders": orders.Load(), "servedBy": podName()})
	})
	mux.HandleFunc("POST /charges", func(w http.ResponseWriter, r *http.Request) {
		var in receipt
		if err := decode(r, &in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer(w, receipt{orders.Add(1), in.Cents, podName()})
	})
	return mux
}

// maxValue bounds one stored value.
const maxValue = 64 << 10 // bytes

// newStore answers null for a key without a value.
func newStore() http.Handler {
	var mu sync.Mutex
	values := map[string][]byte{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /values/{key}", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		value, ok := values[r.PathValue("key")]
		mu.Unlock()
		if !ok {
			value = []byte("{}")
		}
		_, _ = w.Write(value) // the caller went away
	})
	mux.HandleFunc("PUT /values/{key}", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxValue))
		if err != nil {
			http.Error(w, fmt.Sprintf("read the value: %v", err), http.StatusBadRequest)
			return
		}
		mu.Lock()
		values[r.PathValue("key")] = b
		mu.Unlock()
	})
	return mux
}

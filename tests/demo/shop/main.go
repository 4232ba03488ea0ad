// Command shop is the demo's application: a small shop of several services, each
// of which is a sub-command and runs as its own Deployment under its own
// ServiceAccount. Its image is ambit/shop.
//
// web serves the page and calls catalog, cart and checkout; checkout calls cart
// and payments; cart keeps its carts in store. They talk plain HTTP and know
// nothing of a mesh. They never repeat a failed call, so that none stays hidden.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/tests/demo/httpconn"
)

const (
	// callTimeout bounds a call from service to service.
	callTimeout = 5 * time.Second
	// connectionAge and connectionUses bound kept connections, as busy services do to spread their load.
	connectionAge  = time.Second
	connectionUses = 50
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		os.Exit(1)
	}
}

// peers are the addresses of the other services.
type peers struct{ catalog, cart, checkout, payments, store string }

func command() *cobra.Command {
	var listen string
	var p peers
	root := &cobra.Command{Use: "shop", Short: "One service of the demo's shop", SilenceUsage: true,
		Example: "  shop catalog --listen :8080\n  shop web --catalog http://catalog --cart http://cart --checkout http://checkout"}
	f := root.PersistentFlags()
	f.StringVar(&listen, "listen", ":8080", "address to serve on")
	f.StringVar(&p.catalog, "catalog", "http://catalog", "`URL` of the catalog")
	f.StringVar(&p.cart, "cart", "http://cart", "`URL` of the cart")
	f.StringVar(&p.checkout, "checkout", "http://checkout", "`URL` of the checkout")
	f.StringVar(&p.payments, "payments", "http://payments", "`URL` of payments")
	f.StringVar(&p.store, "store", "http://store", "`URL` of the store")
	client := newCaller()
	for _, s := range []struct {
		name, short string
		handler     func() (http.Handler, error)
	}{
		{"web", "The page that a person sees", func() (http.Handler, error) { return newWeb(client, p) }},
		{"catalog", "What there is to buy", func() (http.Handler, error) { return catalog(), nil }},
		{"cart", "What a visitor has chosen", func() (http.Handler, error) { return cart(client, p), nil }},
		{"checkout", "Turns a cart into an order", func() (http.Handler, error) { return checkout(client, p), nil }},
		{"payments", "Takes the money", func() (http.Handler, error) { return payments(), nil }},
		{"store", "Keeps values under keys, in memory", func() (http.Handler, error) { return newStore(), nil }},
	} {
		root.AddCommand(&cobra.Command{Use: s.name, Short: s.short, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				handler, err := s.handler()
				if err != nil {
					return err
				}
				return serve(cmd.Context(), listen, handler)
			}})
	}
	return root
}

// serve answers until the context ends, then lets running requests finish.
func serve(ctx context.Context, listen string, service http.Handler) error {
	mux := http.NewServeMux()
	mux.Handle("/", service)
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	server := &http.Server{Addr: listen, Handler: mux, ReadHeaderTimeout: callTimeout}
	done := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		defer cancel()
		done <- server.Shutdown(ctx)
	})
	defer stop()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %q: %w", listen, err)
	}
	return <-done
}

func newCaller() *caller {
	return &caller{client: &httpconn.Client{MaxAge: connectionAge, MaxUses: connectionUses, Timeout: callTimeout}}
}

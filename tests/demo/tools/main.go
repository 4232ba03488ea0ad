// Command tools makes and answers traffic in the demo's pods: a load generator, an
// echo server, and the few questions that one asks by hand. Its image is
// ambit/tools.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/ambit-mesh/ambit/tests/demo/httpconn"
	"github.com/ambit-mesh/ambit/tests/demo/load"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "tools",
		Short:         "Make and answer traffic in a pod",
		SilenceUsage:  true,
		SilenceErrors: false,
		Example: `  tools load --rate 100 --target http://web/ --streams 10 --stream-target echo:9000
  tools echo --listen :9000
  tools get http://web/
  tools request POST http://127.0.0.1:9090/reset
  tools lookup web.shop.svc.cluster.local
  tools serve --name product --version v1
  tools fetch --count 100 --header "X-group: test" http://product/
  tools collect --listen :4317`,
	}
	root.AddCommand(loadCommand(), echoCommand(), requestCommand(), getCommand(), lookupCommand(),
		serveCommand(), fetchCommand(), collectCommand())
	return root
}

func loadCommand() *cobra.Command {
	config := load.Config{}
	var listen string
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Send HTTP requests and keep streams open, and count what becomes of them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			generator, err := load.New(config)
			if err != nil {
				return err
			}
			group, ctx := errgroup.WithContext(cmd.Context())
			group.Go(func() error { return generator.Run(ctx) })
			group.Go(func() error { return serve(ctx, listen, generator.Handler()) })
			return group.Wait()
		},
	}
	host, _ := os.Hostname() // an empty name in the report is not worth a failure
	f := cmd.Flags()
	f.StringVar(&config.Name, "name", host, "name in the report")
	f.StringArrayVar(&config.Targets, "target", nil, "`URL` to request, with an optional method before it; repeatable")
	f.IntVar(&config.Rate, "rate", 100, "requests per second over all targets")
	f.IntVar(&config.Workers, "workers", 8, "concurrent requests")
	f.IntVar(&config.Streams, "streams", 0, "long-lived streams to keep open")
	f.StringArrayVar(&config.StreamTargets, "stream-target", nil, "echo server, `host:port`; repeatable")
	f.StringVar(&listen, "listen", ":9090", "address of the report")
	return cmd
}

// serve answers HTTP until the context ends.
func serve(ctx context.Context, listen string, handler http.Handler) error {
	server := &http.Server{Addr: listen, Handler: handler, ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %q: %w", listen, err)
	}
	return nil
}

func echoCommand() *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use: "echo", Short: "Send back what arrives on TCP connections", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return echo(cmd.Context(), listen) },
	}
	cmd.Flags().StringVar(&listen, "listen", ":9000", "address")
	return cmd
}

// echo serves until the context ends; the process's end closes what is open then.
func echo(ctx context.Context, listen string) error {
	var config net.ListenConfig
	ln, err := config.Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("serve echo: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go func() {
			_, _ = io.Copy(conn, conn) // the peer counts what breaks
			_ = conn.Close()
		}()
	}
}

func getCommand() *cobra.Command {
	return &cobra.Command{
		Use: "get URL", Short: "Request a URL once on a new connection and print the answer", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return request(cmd.Context(), cmd.OutOrStdout(), http.MethodGet, args[0])
		},
	}
}

func requestCommand() *cobra.Command {
	return &cobra.Command{
		Use: "request METHOD URL", Short: "The same with a method", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return request(cmd.Context(), cmd.OutOrStdout(), args[0], args[1])
		},
	}
}

// request prints the body; the error of a connection that failed starts with its kind.
func request(ctx context.Context, out io.Writer, method, url string) error {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return fmt.Errorf("make a request: %w", err)
	}
	client := &httpconn.Client{Timeout: 5 * time.Second}
	resp, err := client.Do(ctx, req)
	if err != nil {
		return fmt.Errorf("%s: %w", httpconn.Kind(err), err)
	}
	if _, err := out.Write(resp.Body); err != nil {
		return fmt.Errorf("print the answer: %w", err)
	}
	if resp.Status >= http.StatusBadRequest {
		return fmt.Errorf("status %d", resp.Status)
	}
	return nil
}

func lookupCommand() *cobra.Command {
	return &cobra.Command{
		Use: "lookup NAME", Short: "Print the addresses of a name", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			addresses, err := net.DefaultResolver.LookupHost(cmd.Context(), args[0])
			if err != nil {
				return fmt.Errorf("look up %q: %w", args[0], err)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), strings.Join(addresses, "\n"))
			return err
		},
	}
}

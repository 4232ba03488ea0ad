package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/tests/demo/probe"
)

func serveCommand() *cobra.Command {
	var listen string
	host, _ := os.Hostname() // an empty name in answers is not worth a failure
	s := &probe.Server{Pod: host}
	cmd := &cobra.Command{
		Use: "serve", Short: "Answer HTTP requests with what reached it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), listen, s) },
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", ":8080", "address")
	f.StringVar(&s.Name, "name", "probe", "name in answers")
	f.StringVar(&s.WellKnown, "well-known", "", "`directory` to serve under /.well-known/")
	f.StringVar(&s.Version, "version", "", "version in answers")
	return cmd
}

func fetchCommand() *cobra.Command {
	f := probe.Fetch{}
	var ca, certificate, key string
	cmd := &cobra.Command{
		Use: "fetch URL", Short: "Request a URL many times and print what became of it as JSON", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.URL = args[0]
			for file, into := range map[string]*[]byte{ca: &f.CA, certificate: &f.Certificate, key: &f.Key} {
				if file == "" {
					continue
				}
				var err error
				if *into, err = readPEM(file); err != nil {
					return err
				}
			}
			r, err := f.Do(cmd.Context())
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(r)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.Method, "method", "GET", "method")
	flags.StringArrayVarP(&f.Headers, "header", "H", nil, "`\"Name: value\"`; Host sets the authority; repeatable")
	flags.IntVarP(&f.Count, "count", "n", 1, "requests")
	flags.IntVarP(&f.Concurrency, "concurrency", "c", 1, "requests at once")
	flags.IntVar(&f.Rate, "rate", 0, "requests per second, 0 for as many as possible")
	flags.DurationVar(&f.Timeout, "timeout", 10*time.Second, "bound of each request")
	flags.BoolVar(&f.KeepAlive, "keep-alive", false, "use connections again")
	flags.BoolVar(&f.HTTP2, "http2", false, "speak HTTP/2, without TLS by prior knowledge")
	flags.StringVar(&f.Address, "connect", "", "`host:port` to connect to, whatever the URL says")
	flags.StringVar(&ca, "cacert", "", "`file` of the only accepted roots for https, or data:<base64>")
	flags.StringVar(&certificate, "cert", "", "`file` of the client's certificate")
	flags.StringVar(&key, "key", "", "`file` of its key")
	return cmd
}

// readPEM takes a file, or the content itself: a pod without a shell has nobody to write files.
func readPEM(from string) ([]byte, error) {
	if data, ok := strings.CutPrefix(from, "data:"); ok {
		b, err := base64.StdEncoding.DecodeString(data)
		if err != nil {
			return nil, fmt.Errorf("decode base64: %w", err)
		}
		return b, nil
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return nil, fmt.Errorf("read file %q: %w", from, err)
	}
	return b, nil
}

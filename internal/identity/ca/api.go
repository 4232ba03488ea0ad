// Package ca is placed here with its API; see Client and Directory.
package ca

import (
	"context"
	"log/slog"
	"time"

	"github.com/ambit-mesh/ambit/internal/identity"
)

// Config configures a Client.
type Config struct {
	// Address is https://host:port, or http://host:port for plaintext.
	Address    string
	RootFile   string // PEM roots of the server; re-read when it changes
	TokenFile  string // re-read for each call
	ClusterID  string
	ServerName string // default ports.IstiodServerName
	Log        *slog.Logger
}

// Client asks istiod's certificate service. It implements identity.Signer.
type Client struct{ cfg Config }

// New makes a Client; it connects when first used.
func New(cfg Config) (*Client, error) { return &Client{cfg: cfg}, nil }

// Sign implements identity.Signer.
func (c *Client) Sign(ctx context.Context, id identity.Identity, csrPEM []byte, validity time.Duration) ([]string, error) {
	return nil, identity.ErrInvalid
}

// Close closes the connection.
func (c *Client) Close() error { return nil }

// Directory is a development CA: it signs with dir/root-cert.pem and dir/root-key.pem.
func Directory(dir string) (identity.Signer, error) { return nil, identity.ErrInvalid }

// CreateDirectory makes such a directory, refusing to overwrite one.
func CreateDirectory(dir, trustDomain string) error { return identity.ErrInvalid }

// Package ca gets certificates signed: by istiod (Client), or by a key in a
// directory on this machine (Directory), for development and for tests. Both are an
// identity.Signer; identity.Manager calls them. They keep no certificate and never
// see a workload's private key. Whether the caller may have an identity is decided
// by istiod; Directory signs whatever it is asked for.
package ca

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	capb "github.com/ambit-mesh/ambit/api/ca"
	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/internal/xds/dial"
)

const (
	// callTimeout bounds one request when the caller sets no earlier deadline.
	callTimeout = 10 * time.Second
	// maxResponseBytes bounds an answer: a chain is a few KiB, a bundle of many roots
	// tens of KiB.
	maxResponseBytes = 1 << 20
	// impersonated is the metadata key that names the identity wanted.
	impersonated = "ImpersonatedIdentity"
)

// Config configures a Client.
type Config struct {
	Address    string // https://host:port, or http://host:port for plaintext
	RootFile   string // PEM roots of the server; read anew at each connection
	TokenFile  string // read anew at each call
	ClusterID  string
	ServerName string // default ports.IstiodServerName
	Log        *slog.Logger
}

// Client asks istiod's certificate service. It implements identity.Signer.
type Client struct {
	conn *grpc.ClientConn
	stub capb.IstioCertificateServiceClient
}

var _ identity.Signer = (*Client)(nil)

// New makes a Client; it connects when first used.
func New(cfg Config) (*Client, error) {
	conn, err := dial.New(dial.Options{
		Address: cfg.Address, RootFile: cfg.RootFile, ServerName: cfg.ServerName, TokenFile: cfg.TokenFile, ClusterID: cfg.ClusterID,
	}, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponseBytes)))
	if err != nil {
		return nil, fmt.Errorf("make certificate client: %w", err)
	}
	if cfg.Log != nil && cfg.TokenFile != "" && strings.HasPrefix(cfg.Address, "http://") {
		cfg.Log.Warn("certificate requests and their token go unencrypted", slog.String("address", cfg.Address))
	}
	return &Client{conn: conn, stub: capb.NewIstioCertificateServiceClient(conn)}, nil
}

// Sign implements identity.Signer.
func (c *Client) Sign(ctx context.Context, id identity.Identity, csrPEM []byte, validity time.Duration) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	reply, err := c.stub.CreateCertificate(ctx, &capb.IstioCertificateRequest{
		Csr:              string(csrPEM),
		ValidityDuration: int64(validity / time.Second),
		Metadata:         &structpb.Struct{Fields: map[string]*structpb.Value{impersonated: structpb.NewStringValue(id.String())}},
	})
	if err != nil {
		return nil, fmt.Errorf("request certificate of %q: %w", id, err)
	}
	return reply.GetCertChain(), nil
}

// Close closes the connection.
func (c *Client) Close() error {
	if err := c.conn.Close(); err != nil {
		return fmt.Errorf("close certificate client: %w", err)
	}
	return nil
}

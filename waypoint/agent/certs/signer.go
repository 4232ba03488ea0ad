package certs

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	capb "github.com/ambit-mesh/ambit/api/ca"
	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/internal/xds/dial"
)

const (
	// callTimeout bounds one request: istiod waits at most 3 s for a pod that it has not heard of yet.
	callTimeout = 10 * time.Second
	// maxResponseBytes bounds an answer: a chain is a few KiB, a bundle of many roots tens of KiB.
	maxResponseBytes = 1 << 20
)

// Own asks istiod's certificate service for the caller's own identity: unlike the
// client of package ca, which names an identity to impersonate, and which istiod
// answers only for node proxies. It implements identity.Signer.
type Own struct {
	conn *grpc.ClientConn
	stub capb.IstioCertificateServiceClient
}

var _ identity.Signer = (*Own)(nil)

// NewOwn makes an Own; it connects when first used.
func NewOwn(o dial.Options) (*Own, error) {
	conn, err := dial.New(o, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponseBytes)))
	if err != nil {
		return nil, fmt.Errorf("make certificate client: %w", err)
	}
	return &Own{conn: conn, stub: capb.NewIstioCertificateServiceClient(conn)}, nil
}

// Sign implements identity.Signer. Whose certificate it is follows from the token; that it is id's is checked by the caller.
func (o *Own) Sign(ctx context.Context, id identity.Identity, csrPEM []byte, validity time.Duration) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	reply, err := o.stub.CreateCertificate(ctx, &capb.IstioCertificateRequest{
		Csr: string(csrPEM), ValidityDuration: int64(validity / time.Second),
	})
	if err != nil {
		return nil, fmt.Errorf("request own certificate of %q: %w", id, err)
	}
	return reply.GetCertChain(), nil
}

// Close closes the connection.
func (o *Own) Close() error {
	if err := o.conn.Close(); err != nil {
		return fmt.Errorf("close certificate client: %w", err)
	}
	return nil
}

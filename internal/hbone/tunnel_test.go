package hbone

import (
	"errors"
	"io"
	"testing"
)

func TestBytesGoBothWays(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c := w.dial()
	c.roundTrip(t, "hello")
	c.CloseWrite()
	if _, err := io.ReadAll(c); err != nil {
		t.Fatal(err)
	}
	res, err := c.wait(t)
	if err != nil || res != (Result{BytesToApp: 5, BytesFromApp: 5}) {
		t.Errorf("Splice = %+v, %v", res, err)
	}
	if got := c.s.ResponseHeaders(); len(got) != 1 || got[0].Name != "baggage" {
		t.Errorf("answer's headers = %v", got)
	}
	if got := c.s.PeerTLS().PeerCertificates[0].URIs[0].String(); got != serverID {
		t.Errorf("peer is %s", got)
	}
}

func TestConnectionRefusedIs503(t *testing.T) {
	w := newWorld(t, worldOptions{})
	w.app.Close()
	ctx, cancel := w.ctxTimeout()
	defer cancel()
	_, err := w.pool.Open(ctx, w.target, "10.0.0.1:80", nil)
	var st *StatusError
	if !errors.As(err, &st) || st.Status != 503 {
		t.Fatalf("Open = %v, want 503", err)
	}
}

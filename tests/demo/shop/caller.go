package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/ambit-mesh/ambit/tests/demo/httpconn"
)

// caller makes JSON calls to other services, once each.
type caller struct{ client *httpconn.Client }

// call sends body if it is not nil and decodes the answer into result if that is not nil.
func (c *caller) call(ctx context.Context, method, url string, body, result any) error {
	var payload io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encode call to %q: %w", url, err)
		}
		payload = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, payload)
	if err != nil {
		return fmt.Errorf("make call to %q: %w", url, err)
	}
	resp, err := c.client.Do(ctx, req)
	if err != nil {
		return fmt.Errorf("call %q: %s: %w", url, httpconn.Kind(err), err)
	}
	if resp.Status >= http.StatusBadRequest {
		return fmt.Errorf("call %q: status %d: %s", url, resp.Status, bytes.TrimSpace(resp.Body))
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(resp.Body, result); err != nil {
		return fmt.Errorf("decode answer of %q: %w", url, err)
	}
	return nil
}

// answer writes JSON, with the pod's name so that one sees who answered.
func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Served-By", podName())
	_ = json.NewEncoder(w).Encode(value) // the caller went away
}

// fail answers with the error of a call to another service.
func fail(w http.ResponseWriter, err error) {
	http.Error(w, err.Error(), http.StatusBadGateway)
}

// podName is the host name in a pod.
func podName() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}

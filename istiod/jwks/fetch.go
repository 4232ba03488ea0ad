package jwks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// fetchTimeout bounds one fetch, discovery and redirects included. It is the default of Istio's RequestAuthentication.
	fetchTimeout = 5 * time.Second
	// maxBytes bounds one answer. A set of ten RSA keys with their certificates takes 30 KB; Envoy gets every byte inline.
	maxBytes = 1 << 20
	// maxRedirects of one request. Identity providers use one, to another host name.
	maxRedirects = 5
	// discoveryPath is appended to an issuer (OpenID Connect Discovery 1.0 section 4).
	discoveryPath = "/.well-known/openid-configuration"
)

// CheckURL tells why keys cannot be fetched from a URL. Credentials in it are refused, since URLs are shown in status and logs.
func CheckURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return fmt.Errorf("parse URL %q: %w", s, errors.Unwrap(err))
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("use URL %q: its scheme is neither http nor https", s)
	case u.Hostname() == "":
		return fmt.Errorf("use URL %q: it names no host", s)
	case u.User != nil:
		return fmt.Errorf("use URL of host %q: it holds credentials", u.Host)
	}
	return nil
}

// client speaks HTTP within the bounds of this package.
func client(transport http.RoundTripper) *http.Client {
	return &http.Client{
		Transport: transport,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) > maxRedirects {
				return fmt.Errorf("more than %d redirects", maxRedirects)
			}
			if err := CheckURL(req.URL.String()); err != nil {
				return fmt.Errorf("follow redirect: %w", err)
			}
			if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
				return errors.New("a redirect leads from https to http")
			}
			return nil
		},
	}
}

// fetch returns the normalised keys of a source.
func fetch(ctx context.Context, c *http.Client, s source) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	uri := s.uri
	if uri == "" {
		var err error
		if uri, err = discover(ctx, c, s.issuer); err != nil {
			return "", err
		}
	}
	body, err := get(ctx, c, uri)
	if err != nil {
		return "", err
	}
	set, err := Normalize(body)
	if err != nil {
		return "", fmt.Errorf("read %q: %w", uri, err)
	}
	return set, nil
}

// discover finds the URI of an issuer's keys.
func discover(ctx context.Context, c *http.Client, issuer string) (string, error) {
	at := strings.TrimSuffix(issuer, "/") + discoveryPath
	body, err := get(ctx, c, at)
	if err != nil {
		return "", err
	}
	var doc struct {
		Issuer string `json:"issuer"`
		URI    string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return "", fmt.Errorf("parse %q: %w", at, err)
	}
	// OpenID Connect Discovery 1.0 section 4.3: the issuer MUST be the one that was asked. A slash at the end is forgiven.
	if strings.TrimSuffix(doc.Issuer, "/") != strings.TrimSuffix(issuer, "/") {
		return "", fmt.Errorf("read %q: it is of issuer %q", at, doc.Issuer)
	}
	if err := CheckURL(doc.URI); err != nil {
		return "", fmt.Errorf("read jwks_uri of %q: %w", at, err)
	}
	if strings.HasPrefix(issuer, "https:") && !strings.HasPrefix(doc.URI, "https:") {
		return "", fmt.Errorf("read jwks_uri of %q: it leads from https to http", at)
	}
	return doc.URI, nil
}

// get reads one answer. Errors say nothing of its text, since the URI may lead to what the policy's author may not read.
func get(ctx context.Context, c *http.Client, uri string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return nil, fmt.Errorf("ask %q: %w", uri, err)
	}
	req.Header.Set("Accept", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		// The client's own error repeats method and URL.
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		// Our own port, in a message, would make every failure a new one.
		var op *net.OpError
		if errors.As(err, &op) {
			err = fmt.Errorf("%s: %w", op.Op, op.Err)
		}
		return nil, fmt.Errorf("ask %q: %w", uri, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask %q: answer %d", uri, resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("ask %q: %w", uri, err)
	}
	if len(body) > maxBytes {
		return nil, fmt.Errorf("ask %q: the answer is longer than %d bytes", uri, maxBytes)
	}
	return body, nil
}

package probe

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ambit-mesh/ambit/tests/demo/httpconn"
)

const (
	// maxBody bounds what is read of an answer, in bytes.
	maxBody = 1 << 20
	// maxErrors bounds the texts of errors in a report.
	maxErrors = 5
)

// Fetch is what to request.
type Fetch struct {
	Method, URL string
	Headers     []string // "Name: value"; Host sets the authority
	Count       int
	Concurrency int
	// Rate bounds requests per second; 0 is no bound.
	Rate    int
	Timeout time.Duration
	// KeepAlive uses connections again; else each request has its own.
	KeepAlive bool
	// HTTP2 speaks it without TLS and upgrade.
	HTTP2 bool
	// Address is dialled whatever the URL's host is.
	Address string
	// CA is PEM of the only accepted roots for https; Certificate and Key are the client's own.
	CA, Certificate, Key []byte
}

// Report is what became of the requests.
type Report struct {
	Requests int `json:"requests"`
	// Status counts answers by status, Errors those without by kind.
	Status map[string]int `json:"status"`
	Errors map[string]int `json:"errors,omitempty"`
	// Versions counts answers by "name/version" of the server, Pods by pod.
	Versions map[string]int `json:"versions,omitempty"`
	Pods     map[string]int `json:"pods,omitempty"`
	Texts    []string       `json:"texts,omitempty"`
	P50, P99 float64        // milliseconds
	Max      float64
	// Last is the last answer, LastHeaders and LastBody what came with it, whoever answered.
	Last        *Answer     `json:"last,omitempty"`
	LastHeaders http.Header `json:"lastHeaders,omitempty"`
	LastBody    string      `json:"lastBody,omitempty"`
	Redirects   []string    `json:"redirects,omitempty"`
}

// OK is the number of answers with status 200.
func (r Report) OK() int { return r.Status["200"] }

// Do makes the requests and waits for all of them, or for the context's end.
func (f Fetch) Do(ctx context.Context) (Report, error) {
	transport, err := f.transport()
	if err != nil {
		return Report{}, err
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: f.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	c := &counter{report: Report{Status: map[string]int{}, Errors: map[string]int{}, Versions: map[string]int{}, Pods: map[string]int{}}}
	group, ctx := errgroup.WithContext(ctx)
	var started atomic.Int64
	begin := time.Now()
	for range max(1, f.Concurrency) {
		group.Go(func() error {
			for {
				n := started.Add(1)
				if n > int64(f.Count) || !f.pace(ctx, begin, n) {
					return nil
				}
				if err := f.one(ctx, client, c); err != nil {
					return err
				}
			}
		})
	}
	err = group.Wait()
	return c.finish(), err
}

// pace waits until it is time for request n; false if the context ended before.
func (f Fetch) pace(ctx context.Context, begin time.Time, n int64) bool {
	if f.Rate <= 0 {
		return ctx.Err() == nil
	}
	at := begin.Add(time.Duration(n-1) * time.Second / time.Duration(f.Rate))
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (f Fetch) transport() (*http.Transport, error) {
	t := &http.Transport{DisableKeepAlives: !f.KeepAlive, MaxIdleConnsPerHost: f.Concurrency}
	if f.HTTP2 {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetUnencryptedHTTP2(true)
		t.Protocols.SetHTTP2(true)
	}
	if f.Address != "" {
		t.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, f.Address)
		}
	}
	if len(f.CA) > 0 {
		t.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(f.CA) {
			return nil, errors.New("read roots: no certificate in them")
		}
		if len(f.Certificate) > 0 {
			pair, err := tls.X509KeyPair(f.Certificate, f.Key)
			if err != nil {
				return nil, fmt.Errorf("read the client's certificate: %w", err)
			}
			t.TLSClientConfig.Certificates = []tls.Certificate{pair}
		}
	}
	return t, nil
}

// one makes one request. Its error is one of the caller's making; what goes wrong on the wire is counted.
func (f Fetch) one(ctx context.Context, client *http.Client, c *counter) error {
	req, err := http.NewRequestWithContext(ctx, cmp.Or(f.Method, http.MethodGet), f.URL, nil)
	if err != nil {
		return fmt.Errorf("make a request: %w", err)
	}
	for _, h := range f.Headers {
		name, value, ok := splitHeader(h)
		if !ok {
			return fmt.Errorf("read header %q: want \"Name: value\"", h)
		}
		if name == "Host" {
			req.Host = value
			continue
		}
		req.Header.Add(name, value)
	}
	begin := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		c.failed(err)
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		c.failed(err)
		return nil
	}
	c.answered(resp, body, time.Since(begin))
	return nil
}

// counter is safe for concurrent use.
type counter struct {
	mu     sync.Mutex
	report Report
	times  []float64
}

func (c *counter) failed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Requests++
	c.report.Errors[httpconn.Kind(err)]++
	if len(c.report.Texts) < maxErrors {
		c.report.Texts = append(c.report.Texts, err.Error())
	}
}

func (c *counter) answered(resp *http.Response, body []byte, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Requests++
	c.report.Status[strconv.Itoa(resp.StatusCode)]++
	c.times = append(c.times, float64(took.Microseconds())/1000)
	c.report.Last, c.report.LastHeaders, c.report.LastBody = nil, resp.Header, ""
	if to := resp.Header.Get("Location"); to != "" && len(c.report.Redirects) < maxErrors {
		c.report.Redirects = append(c.report.Redirects, to)
	}
	var a struct {
		Answer
		ServedBy string `json:"servedBy"` // how the demo's shop names its pods
	}
	switch err := json.Unmarshal(body, &a); {
	case err == nil && a.Name != "":
		c.report.Last = &a.Answer
		c.report.Versions[a.Name+"/"+a.Version]++
		c.report.Pods[a.Pod]++
	case err == nil && a.ServedBy != "":
		c.report.Pods[a.ServedBy]++
	default:
		c.report.LastBody = string(body)
	}
}

func (c *counter) finish() Report {
	if n := len(c.times); n > 0 {
		slices.Sort(c.times)
		c.report.P50, c.report.P99, c.report.Max = c.times[n/2], c.times[n*99/100], c.times[n-1]
	}
	return c.report
}

func splitHeader(h string) (name, value string, ok bool) {
	for i := range h {
		if h[i] == ':' {
			value = h[i+1:]
			for len(value) > 0 && value[0] == ' ' {
				value = value[1:]
			}
			return http.CanonicalHeaderKey(h[:i]), value, i > 0
		}
	}
	return "", "", false
}

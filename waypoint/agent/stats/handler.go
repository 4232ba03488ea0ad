package stats

import (
	"compress/gzip"
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"github.com/ambit-mesh/ambit/internal/telemetry"
)

const (
	// PathStats is where Istio's annotations send Prometheus.
	PathStats = "/stats/prometheus"
	// scrapeTimeout bounds a scrape; Prometheus gives up after 10 s unless told otherwise.
	scrapeTimeout = 30 * time.Second
	// maxScrapes is how many may run at once: each makes Envoy format all its statistics on its main thread.
	maxScrapes = 2
)

// Handler serves both the agent's metrics and, rewritten, those that open gives, on /stats/prometheus and /metrics.
func Handler(r *Rewriter, open func(context.Context) (io.ReadCloser, error), own prometheus.Gatherer, log *slog.Logger) http.Handler {
	slots := make(chan struct{}, maxScrapes)
	h := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		ctx, cancel := context.WithTimeout(req.Context(), scrapeTimeout)
		defer cancel()
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		case <-ctx.Done():
			http.Error(w, "too many scrapes", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", string(expfmt.NewFormat(expfmt.TypeTextPlain)))
		out := io.Writer(w)
		if strings.Contains(req.Header.Get("Accept-Encoding"), "gzip") {
			w.Header().Set("Content-Encoding", "gzip")
			z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
			if err == nil { // the level is a valid one
				defer z.Close()
				out = z
			}
		}
		if err := writeOwn(out, own); err != nil {
			log.Warn("cannot write metrics", telemetry.FieldError, err)
			return
		}
		if err := r.fetch(ctx, out, open); err != nil {
			log.Warn("cannot write envoy's statistics", telemetry.FieldError, err)
			// Part of a page would look as if the rest had been reset: cut the connection instead of ending the answer.
			_ = http.NewResponseController(w).SetWriteDeadline(time.Unix(1, 0))
		}
	})
	mux := http.NewServeMux()
	mux.Handle(PathStats, h)
	mux.Handle(telemetry.PathMetrics, h)
	return mux
}

func writeOwn(out io.Writer, own prometheus.Gatherer) error {
	all, err := own.Gather()
	if err != nil {
		return err
	}
	for _, f := range all {
		if _, err := expfmt.MetricFamilyToText(out, f); err != nil {
			return err
		}
	}
	return nil
}

// fetch copies Envoy's page. An Envoy that does not answer yet has no statistics; the agent's own are enough then.
func (r *Rewriter) fetch(ctx context.Context, out io.Writer, open func(context.Context) (io.ReadCloser, error)) error {
	page, err := open(ctx)
	if err != nil {
		r.unreachable.Add(1)
		return nil
	}
	defer page.Close()
	return r.Copy(out, page)
}

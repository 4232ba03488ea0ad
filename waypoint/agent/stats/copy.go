// Package stats turns Envoy's Prometheus page into the mesh's: what waypoint/config
// makes Envoy count under "envoy_mesh_" comes out under Istio's names with Istio's
// labels, and everything else as it is. The agent calls it for each scrape.
//
// It always holds that memory does not grow with the page: lines are handled as they
// come, of a metric that is renamed only the series are kept, and those are bounded;
// that series which differ in nothing Istio's labels can say are added up, since two
// of the same labels would make Prometheus refuse the page; and that a line which
// cannot be read costs that line. What is dropped is counted.
//
// It asks nobody and keeps nothing between two scrapes but those counts.
package stats

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

const (
	// maxLineBytes bounds a line: a series has some 25 labels of a few dozen bytes.
	maxLineBytes = 64 << 10
	// batchBytes is how much text of a metric that is renamed is parsed at once.
	batchBytes = 256 << 10
	// MaxSeries bounds the series of one metric, as for ztunnel's: about 4 KiB each while the metric is written.
	MaxSeries = telemetry.MaxTCPSeries
)

// envoyPrefix starts every name on Envoy's page; ours follows with the scope of waypoint/config.
const (
	envoyPrefix = "envoy_"
	ourPrefix   = envoyPrefix + names.StatsScope + "_"
	istioPrefix = "istio_"
)

// Self is the proxy as the source of what it sends: a gateway's requests begin with it.
type Self struct {
	telemetry.Peer
}

// Rewriter rewrites pages. Its methods may be called from any goroutine.
type Rewriter struct {
	self    Self
	limit   int
	dropped atomic.Uint64
	// unreachable counts scrapes at which Envoy did not answer.
	unreachable atomic.Uint64
}

// New returns a Rewriter.
func New(self Self) *Rewriter { return &Rewriter{self: self, limit: MaxSeries} }

// Dropped counts lines and series that were left out.
func (r *Rewriter) Dropped() uint64 { return r.dropped.Load() }

// Unreachable counts scrapes that show the agent's own metrics only.
func (r *Rewriter) Unreachable() uint64 { return r.unreachable.Load() }

// renamed is Istio's name and the help of what is counted as name, or nothing.
func renamed(name string) (istio, help string) {
	stat, ours := strings.CutPrefix(name, ourPrefix)
	if !ours {
		return "", ""
	}
	switch stat {
	case names.StatRequests:
		help = "HTTP requests."
	case names.StatDuration:
		help = "Duration of HTTP requests."
	case names.StatRequestBytes:
		help = "Size of HTTP request bodies."
	case names.StatResponseBytes:
		help = "Size of HTTP response bodies."
	case names.StatTCPOpened:
		help = "TCP connections opened."
	case names.StatTCPClosed:
		help = "TCP connections closed."
	case names.StatTCPSent:
		help = "Bytes sent in response, to the client."
	case names.StatTCPReceived:
		help = "Bytes received in request, from the client."
	default:
		return "", ""
	}
	return istioPrefix + stat, help
}

// Copy rewrites the page in into out.
func (r *Rewriter) Copy(out io.Writer, in io.Reader) error {
	p := &page{r: r, out: out}
	lines := bufio.NewReaderSize(in, maxLineBytes)
	for {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			r.dropped.Add(1)
			if err = skipLine(lines); err == nil {
				continue
			}
			line = nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read statistics: %w", err)
		}
		if len(bytes.TrimSpace(line)) > 0 {
			if err := p.line(bytes.TrimRight(line, "\r\n")); err != nil {
				return fmt.Errorf("write statistics: %w", err)
			}
		}
		if err != nil {
			if err := p.endFamily(); err != nil {
				return fmt.Errorf("write statistics: %w", err)
			}
			return nil
		}
	}
}

// skipLine reads to the end of a line that is too long.
func skipLine(lines *bufio.Reader) error {
	for {
		if _, err := lines.ReadSlice('\n'); !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// page is one rewriting.
type page struct {
	r     *Rewriter
	out   io.Writer
	name  string  // Envoy's name of the metric at hand
	ours  *family // set while it is one that is renamed
	batch []byte  // its lines that were not parsed yet
}

// typeLine starts the line that begins a metric, comment any that is no series.
const (
	typeLine = "# TYPE "
	comment  = "#"
)

func (p *page) line(line []byte) error {
	if !utf8.Valid(line) { // one bad byte, from a peer's header for example, would cost the whole page
		line = bytes.ToValidUTF8(line, []byte(string(utf8.RuneError)))
	}
	if rest, ok := bytes.CutPrefix(line, []byte(typeLine)); ok {
		return p.beginFamily(line, rest)
	}
	if p.ours == nil {
		if bytes.HasPrefix(line, []byte(comment)) || bytes.HasPrefix(line, []byte(envoyPrefix)) {
			return p.pass(line)
		}
		p.r.dropped.Add(1) // nothing of Envoy's, and it could clash with what is made here
		return nil
	}
	if bytes.HasPrefix(line, []byte(comment)) {
		return nil
	}
	p.batch = append(append(p.batch, line...), '\n')
	if len(p.batch) >= batchBytes {
		p.parse()
	}
	return nil
}

func (p *page) pass(line []byte) error {
	if _, err := p.out.Write(line); err != nil {
		return err
	}
	_, err := p.out.Write([]byte{'\n'})
	return err
}

// beginFamily handles "# TYPE name kind".
func (p *page) beginFamily(line, rest []byte) error {
	if err := p.endFamily(); err != nil {
		return err
	}
	name, kind, _ := strings.Cut(string(rest), " ")
	p.name = name
	istio, help := renamed(name)
	t, known := dto.MetricType_value[strings.ToUpper(strings.TrimSpace(kind))]
	if istio == "" || !known {
		return p.pass(line)
	}
	p.ours = newFamily(istio, help, dto.MetricType(t), p.r.limit)
	return nil
}

// endFamily writes the metric that was collected.
func (p *page) endFamily() error {
	if p.ours == nil {
		return nil
	}
	p.parse()
	f := p.ours
	p.ours = nil
	p.r.dropped.Add(f.dropped)
	if len(f.series) == 0 {
		return nil
	}
	_, err := expfmt.MetricFamilyToText(p.out, f.message())
	return err
}

// parse adds the batch to the metric: at once, or if that fails line by line, so that a bad one costs itself only. A
// histogram may be cut anywhere, since what belongs together is added up.
func (p *page) parse() {
	if len(p.batch) == 0 {
		return
	}
	if !p.add(p.batch) {
		for line := range bytes.Lines(p.batch) {
			if !p.add(line) {
				p.r.dropped.Add(1)
			}
		}
	}
	p.batch = p.batch[:0]
}

func (p *page) add(text []byte) bool {
	header := fmt.Sprintf("# TYPE %s %s\n", p.name, strings.ToLower(p.ours.kind.String()))
	parser := expfmt.NewTextParser(model.UTF8Validation)
	all, err := parser.TextToMetricFamilies(io.MultiReader(strings.NewReader(header), bytes.NewReader(text)))
	if err != nil {
		return false
	}
	for _, m := range all[p.name].GetMetric() {
		p.ours.add(p.r.self.labels(m.GetLabel(), isTCP(p.name)), m)
	}
	return true
}

// isTCP tells metrics of connections from those of requests.
func isTCP(name string) bool { return strings.HasPrefix(name, ourPrefix+"tcp_") }

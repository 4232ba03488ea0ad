package telemetry

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
)

// Environment variables that all mains read for their log.
const (
	// EnvLogLevel is debug, info, warn or error; info when empty.
	EnvLogLevel = "LOG_LEVEL"
	// EnvLogFormat is text or json; text when empty.
	EnvLogFormat = "LOG_FORMAT"
)

// Field names of log lines that more than one package writes.
const (
	FieldScope = "scope"
	FieldError = "error"
)

// Logging owns a process's logger and its level.
type Logging struct {
	level *slog.LevelVar
	root  *slog.Logger
}

// NewLogging returns a logger that writes to w. Level and format are the values
// of EnvLogLevel and EnvLogFormat; empty means info and text.
func NewLogging(w io.Writer, level, format string) (*Logging, error) {
	l := &Logging{level: new(slog.LevelVar)}
	if level != "" {
		if err := l.SetLevel(level); err != nil {
			return nil, err
		}
	}
	opts := &slog.HandlerOptions{Level: l.level}
	switch format {
	case "", "text", "plain":
		l.root = slog.New(slog.NewTextHandler(w, opts))
	case "json":
		l.root = slog.New(slog.NewJSONHandler(w, opts))
	default:
		return nil, fmt.Errorf("set log format %q: want text or json", format)
	}
	return l, nil
}

// Root returns the logger without a scope.
func (l *Logging) Root() *slog.Logger { return l.root }

// Logger returns the logger of one scope, for example "proxy" or "xds".
func (l *Logging) Logger(scope string) *slog.Logger { return l.root.With(FieldScope, scope) }

// Level returns the level in force.
func (l *Logging) Level() slog.Level { return l.level.Level() }

// SetLevel changes the level of every logger at once. Istio's form
// "info,access=debug" is accepted; its part without a scope counts.
func (l *Logging) SetLevel(level string) error {
	for part := range strings.SplitSeq(level, ",") {
		name := strings.TrimSpace(part)
		if name == "" || strings.Contains(name, "=") {
			continue
		}
		v, err := parseLevel(name)
		if err != nil {
			return err
		}
		l.level.Set(v)
	}
	return nil
}

func parseLevel(name string) (slog.Level, error) {
	switch strings.ToLower(name) {
	case "trace", "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error", "off", "none":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("set log level %q: want debug, info, warn or error", name)
}

// ServeHTTP shows the level, and sets it when asked by POST or PUT with ?level=.
func (l *Logging) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if level := r.URL.Query().Get("level"); level != "" {
		if r.Method != http.MethodPost && r.Method != http.MethodPut {
			http.Error(w, "to change the level, send a POST", http.StatusMethodNotAllowed)
			return
		}
		if err := l.SetLevel(level); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	fmt.Fprintf(w, "current log level is %s\n", strings.ToLower(l.Level().String()))
}

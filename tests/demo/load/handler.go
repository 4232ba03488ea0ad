package load

import (
	"encoding/json"
	"net/http"
)

// Handler serves the report and the few controls:
//
//	GET  /report          counts since the last reset, as JSON
//	POST /reset           zero the counts
//	POST /streams/reopen  end every stream in order and open it again
func (g *Generator) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /report", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(g.report.snapshot()) // the reader went away
	})
	mux.HandleFunc("POST /reset", func(http.ResponseWriter, *http.Request) { g.report.reset() })
	mux.HandleFunc("POST /streams/reopen", func(http.ResponseWriter, *http.Request) { g.Reopen() })
	return mux
}

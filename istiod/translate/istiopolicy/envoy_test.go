package istiopolicy

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/tests/envoybin"
)

// validateTimeout bounds one start of Envoy on a machine that does other things too.
const validateTimeout = time.Minute

// envoyTakes asks the binary about a configuration with these access logs.
func envoyTakes(t *testing.T, logs []any) (string, error) {
	t.Helper()
	b, err := json.Marshal(map[string]any{"static_resources": map[string]any{"listeners": []any{map[string]any{
		"name": "l", "address": map[string]any{"socket_address": map[string]any{"address": "127.0.0.1", "port_value": 1}}, "access_log": logs,
		"filter_chains": []any{map[string]any{"filters": []any{map[string]any{"name": "d", "typed_config": map[string]any{
			"@type": "type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config",
		}}}}},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), validateTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, envoybin.Path(t), "--mode", "validate", "-c", path, "--log-level", "error").CombinedOutput()
	return string(out), err
}

func logOf(format, filter string) any {
	out := map[string]any{"name": "f", "typed_config": map[string]any{
		"@type":      "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
		"log_format": map[string]any{"text_format_source": map[string]any{"inline_string": format + "\n"}},
	}}
	if filter != "" {
		out["filter"] = map[string]any{"extension_filter": map[string]any{"name": "cel", "typed_config": map[string]any{
			"@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter", "expression": filter,
		}}}
	}
	return out
}

// TestEnvoyTakesWhatPasses: an expression or a format that passes here and that Envoy refuses would stop everything that is
// sent to a proxy together with it.
func TestEnvoyTakesWhatPasses(t *testing.T) {
	var logs []any
	for _, e := range goodCEL() {
		logs = append(logs, logOf("x", e))
	}
	for _, f := range goodFormats() {
		logs = append(logs, logOf(f, ""))
	}
	if out, err := envoyTakes(t, logs); err != nil {
		t.Errorf("Envoy refuses it: %v\n%s", err, out)
	}
	// It does refuse what does not pass.
	for _, bad := range []any{logOf("x", "string(a)"), logOf("x", "a +"), logOf("%PROTOCOL", "")} {
		if _, err := envoyTakes(t, []any{bad}); err == nil {
			t.Errorf("Envoy takes %v", bad)
		}
	}
}

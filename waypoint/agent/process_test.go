package agent

import (
	"regexp"
	"strconv"
	"testing"
)

var startedLine = regexp.MustCompile(`msg="envoy started" scope=app pid=(\d+)`)

// envoyPID finds Envoy's process in the agent's log.
func envoyPID(t *testing.T, p *proxy) int {
	t.Helper()
	m := startedLine.FindStringSubmatch(p.log.String())
	if m == nil {
		t.Fatal("the log does not name Envoy's process")
	}
	pid, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

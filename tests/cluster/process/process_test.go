package process

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRecordNamesThisProcess(t *testing.T) {
	self, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	if !self.Alive() {
		t.Error("the calling process is not alive")
	}
	for name, other := range map[string]Record{
		"another start time": {PID: self.PID, StartTime: self.StartTime + 1, BootID: self.BootID},
		"another boot":       {PID: self.PID, StartTime: self.StartTime, BootID: "x"},
	} {
		if other.Alive() {
			t.Errorf("%s: taken for the calling process", name)
		}
		if err := other.Kill(); err != nil { // would end this test if it were not refused
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRecordRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.json")
	want := Record{PID: 7, StartTime: 9, BootID: "b", Init: 8}
	if err := want.Write(path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got Record
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestKillEndsTheProcess(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	start, err := startTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	r := Record{PID: cmd.Process.Pid, StartTime: start, BootID: boot}
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process ended by itself")
	}
	if r.Alive() {
		t.Error("still alive after it was reaped")
	}
	if err := r.Kill(); err != nil {
		t.Errorf("kill a process that is gone: %v", err)
	}
}

func FuzzParseStartTime(f *testing.F) {
	f.Add([]byte("1 (a) b) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 42 1 1"))
	f.Add([]byte("1 (z) Z 0"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseStartTime(b) // must not panic
	})
}

func TestParseStartTime(t *testing.T) {
	got, err := parseStartTime([]byte("1 (a) b) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 42 1 1"))
	if err != nil || got != 42 {
		t.Errorf("start time %d, error %v; want 42", got, err)
	}
	if _, err := parseStartTime([]byte("1 (a) Z 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 42 1 1")); err == nil {
		t.Error("a zombie passes as running")
	}
}

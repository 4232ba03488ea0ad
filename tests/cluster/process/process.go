// Package process identifies a process beyond its number: by pid and start time,
// which together never name another one. The cluster tool reads the records, the
// node program writes its own before it becomes what it starts.
package process

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Record names one process.
type Record struct {
	PID int `json:"pid"`
	// StartTime is in clock ticks since boot, field 22 of /proc/PID/stat; it stays the same through exec.
	StartTime uint64 `json:"startTime"`
	// BootID tells a record of an earlier boot of the machine.
	BootID string `json:"bootID"`
	// Init is the host's pid of a node's PID 1, zero for other processes.
	Init int `json:"init,omitempty"`
}

// Self is the record of the calling process.
func Self() (Record, error) {
	start, err := startTime(os.Getpid())
	if err != nil {
		return Record{}, err
	}
	boot, err := bootID()
	return Record{PID: os.Getpid(), StartTime: start, BootID: boot}, err
}

// Write stores the record under path at once or not at all.
func (r Record) Write(path string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode process record: %w", err)
	}
	if err := os.WriteFile(path+".new", b, 0o644); err != nil {
		return fmt.Errorf("write process record: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write process record: %w", err)
	}
	return nil
}

// Alive says whether this very process runs. A zombie does not run.
func (r Record) Alive() bool {
	boot, err := bootID()
	if err != nil || boot != r.BootID {
		return false
	}
	start, err := startTime(r.PID)
	return err == nil && start == r.StartTime
}

// Kill sends SIGKILL if the process is alive. A pidfd closes the gap between the check and the signal.
func (r Record) Kill() error {
	fd, err := unix.PidfdOpen(r.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", r.PID, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !r.Alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", r.PID, err)
	}
	return nil
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return string(bytes.TrimSpace(b)), nil
}

// startTime reads /proc/PID/stat, see proc(5). The second field may hold spaces and parentheses, so it counts from
// the last parenthesis. A zombie counts as gone.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, fmt.Errorf("read the state of process %d: %w", pid, err)
	}
	return parseStartTime(b)
}

func parseStartTime(stat []byte) (uint64, error) {
	const state, start = 0, 19 // field indexes after the name
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) <= start {
		return 0, fmt.Errorf("parse process state %q: too few fields", stat)
	}
	if string(fields[state]) == "Z" {
		return 0, errors.New("parse process state: a zombie")
	}
	t, err := strconv.ParseUint(string(fields[start]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse process state: start time: %w", err)
	}
	return t, nil
}

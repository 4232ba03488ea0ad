package capture

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"syscall"

	"github.com/ambit-mesh/ambit/internal/linux"
)

type syscallRawConn = syscall.RawConn

// runIn runs a command that is born in ns and in a cgroup, and returns its output.
func runIn(ns *linux.NetNS, cgroup, name string, args ...string) ([]byte, error) {
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	// A child is in the namespace of the thread that starts it.
	if err := ns.Do(cmd.Start); err != nil {
		return nil, err
	}
	err = cmd.Wait()
	return out.Bytes(), err
}

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/tests/cluster/nodespec"
	"github.com/ambit-mesh/ambit/tests/cluster/process"
)

// enter joins the node's cgroups and network namespace, starts PID 1 in fresh namespaces of the other kinds, and
// waits for its end. The cgroups come first: a new cgroup namespace takes the cgroups of that moment as its roots.
func enter(spec nodespec.Spec, specFile string) error {
	self, err := process.Self()
	if err != nil {
		return err
	}
	if err := self.Write(spec.Record); err != nil {
		return err
	}
	if err := joinNodeCgroups(spec); err != nil {
		return err
	}
	if err := enterNetNS(spec.NetNS); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "init", "--spec", specFile)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID | unix.CLONE_NEWCGROUP,
		Setsid:     true,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start PID 1: %w", err)
	}
	self.Init = cmd.Process.Pid
	if err := errors.Join(self.Write(spec.Record), leaveNodeRoot(spec)); err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("node %q ended: %w", spec.Name, err)
	}
	return nil
}

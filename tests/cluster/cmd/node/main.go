// Command node starts the processes of the test cluster in their namespaces, and
// is PID 1 of a node. Only the cluster tool (tests/cluster) calls it:
//
//	node exec [--record FILE] [--netns PATH] [--cgroup DIR] -- PROGRAM ARGUMENT...
//	node enter --spec FILE     makes a node's namespaces and stays as their parent
//	node init --spec FILE      PID 1 inside them
//
// Every process writes its record before it does anything else, so that the tool
// can end it. When the parent of a node is killed, the kernel kills PID 1 and with
// it every process of the node; its mounts go with its mount namespace.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/tests/cluster/nodespec"
	"github.com/ambit-mesh/ambit/tests/cluster/process"
)

func main() {
	// Namespaces and parent-death signals belong to a thread: everything here stays on the first one.
	runtime.LockOSThread()
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("name a command: exec, enter or init")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	record := flags.String("record", "", "`file` to write the process record to")
	netns := flags.String("netns", "", "`path` of the network namespace to enter")
	cgroup := flags.String("cgroup", "", "cgroup `directory` to join")
	specFile := flags.String("spec", "", "node specification `file`")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if args[0] == "exec" {
		return become(*record, *netns, *cgroup, flags.Args())
	}
	spec, err := nodespec.Read(*specFile)
	if err != nil {
		return err
	}
	switch args[0] {
	case "enter":
		return enter(spec, *specFile)
	case "init":
		return initNode(spec)
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// become writes the record, enters what is asked for and turns into the program.
func become(record, netns, cgroup string, argv []string) error {
	if len(argv) == 0 {
		return errors.New("name a program to run")
	}
	if record != "" {
		self, err := process.Self()
		if err != nil {
			return err
		}
		if err := self.Write(record); err != nil {
			return err
		}
	}
	if cgroup != "" {
		if err := joinCgroup(cgroup); err != nil {
			return err
		}
	}
	if netns != "" {
		if err := enterNetNS(netns); err != nil {
			return err
		}
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("find program %q: %w", argv[0], err)
	}
	if err := unix.Exec(path, argv, os.Environ()); err != nil {
		return fmt.Errorf("run %q: %w", path, err)
	}
	return nil
}

// enterNetNS moves the calling thread.
func enterNetNS(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %q: %w", path, err)
	}
	return nil
}

package hbone

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inNetNS marks the process that runs in a network namespace of its own.
const inNetNS = "HBONE_TEST_NETNS"

// TestMain runs the tests in a fresh network namespace with nothing but loopback: they open tens of thousands of
// connections, whose ports other programs of the machine may want. Without the right to make one they run where they are.
func TestMain(m *testing.M) {
	if os.Getenv(inNetNS) == "" {
		if code, ok := reexec(); ok {
			os.Exit(code)
		}
	} else if err := loopbackUp(); err != nil {
		fmt.Fprintln(os.Stderr, "set loopback up:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func reexec() (code int, ok bool) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNetNS+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, true
	case errors.As(err, &exit):
		return exit.ExitCode(), true
	}
	return 0, false
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return err
	}
	// Of this namespace alone: the tests use more connections than the usual range has ports.
	return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("1024 65000"), 0o644)
}

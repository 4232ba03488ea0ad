package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
)

// WriteStatus prints a line per process of the cluster.
func (c *Cluster) WriteStatus(w io.Writer) error {
	records, err := c.records()
	if err != nil {
		return err
	}
	if len(records) == 0 {
		return fmt.Errorf("show cluster %q: it does not run", c.name)
	}
	for _, r := range records {
		state := "running"
		if !r.alive() {
			state = "ended, see " + c.logDir()
		}
		fmt.Fprintf(w, "%-26s pid %-8d %s\n", strings.TrimSuffix(filepath.Base(r.file), ".json"), r.PID, state)
	}
	return nil
}

// Env is shell text that defines how to reach the cluster.
func (c *Cluster) Env() string {
	return fmt.Sprintf("export KUBECONFIG=%s\nambit_kubectl() { nsenter --net=%s %s \"$@\"; }\n", c.Kubeconfig(), c.NetNS(), filepath.Join(c.binDir(), "kubectl"))
}

// Forward accepts TCP connections at listen, in the caller's network namespace, and joins each with one to target in
// the cluster's. It returns when the context ends.
func (c *Cluster) Forward(ctx context.Context, listen, target string) error {
	var config net.ListenConfig
	ln, err := config.Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("forward %q: %w", listen, err)
	}
	c.progress.Note("forwarding %s to %s in the cluster; interrupt to end", ln.Addr(), target)
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("forward %q: %w", listen, err)
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := c.join(ctx, conn, target); err != nil {
				c.progress.Note("%v", err)
			}
		}()
	}
}

// join copies both ways until both ended, and owns the connection.
func (c *Cluster) join(ctx context.Context, client net.Conn, target string) error {
	defer func() { _ = client.Close() }()
	server, err := c.Dial(ctx, "tcp", target)
	if err != nil {
		return fmt.Errorf("reach %q: %w", target, err)
	}
	defer func() { _ = server.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = errors.Join(client.Close(), server.Close()) })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		copyHalf(server, client)
	}()
	copyHalf(client, server)
	<-done
	return nil
}

// copyHalf copies one direction and passes its end on. A broken connection simply ends it.
func copyHalf(dst, src net.Conn) {
	_, _ = io.Copy(dst, src)
	if tcp, ok := dst.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
}

package kube

import (
	"log/slog"

	"k8s.io/klog/v2"
)

// LogTo sends what client-go logs (connections lost, watches restarted) to l, in place of standard error in a
// format of its own. client-go has one log per process: a main calls this once, before it makes clients.
func LogTo(l *slog.Logger) { klog.SetSlogLogger(l) }

package plugin

import (
	"fmt"
	"io"
	"log/slog"
	"os"
)

// maxLog is the size in bytes at which the log starts anew; one older file is kept. A line has about 200 bytes.
const maxLog = 1 << 20

// record writes one line for a request. It may fail in silence: a full disk must not keep a pod from starting,
// and the runtime shows the error of a request that failed anyway.
func record(path, verb string, req *Request, reply *Reply, err error) {
	w := open(path)
	if w == nil {
		return
	}
	defer w.Close()
	l := slog.New(slog.NewTextHandler(w, nil)).With("verb", verb, "pod", req.PodNamespace+"/"+req.PodName,
		"uid", req.PodUID, "netns", req.NetNS, "ips", fmt.Sprint(req.IPs))
	switch {
	case err != nil:
		l.Error("request failed", "error", err)
	case reply.Error != "":
		l.Error("pod refused", "error", reply.Error)
	default:
		l.Info("pod may start", "enrolled", reply.Enrolled, "reason", reply.Reason)
	}
}

func open(path string) io.WriteCloser {
	if path == "" {
		return nil
	}
	if fi, err := os.Stat(path); err == nil && fi.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil
		}
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil
	}
	return f
}

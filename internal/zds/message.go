package zds

import (
	"errors"
	"fmt"
	"os"
	"unicode/utf8"

	zdspb "github.com/ambit-mesh/ambit/api/zds"
)

// Sockets are what serves one pod: its netns and, unless the peer speaks V1 only, its listeners. The holder owns them.
type Sockets struct {
	NetNS            *os.File
	Outbound         *os.File
	InboundPlaintext *os.File
	InboundHBONE     *os.File
}

// Close closes every file that is there.
func (s Sockets) Close() {
	CloseFiles([]*os.File{s.NetNS, s.Outbound, s.InboundPlaintext, s.InboundHBONE})
}

// HasListeners reports whether all listeners are there.
func (s Sockets) HasListeners() bool {
	return s.Outbound != nil && s.InboundPlaintext != nil && s.InboundHBONE != nil
}

// Pack gives the listeners' part of a message and the files beside it, in the order that Unpack reads.
// Without listeners the part is nil and only the netns goes along. The files stay s's.
func (s Sockets) Pack(o zdspb.OriginalDestination, appMark uint32) (*zdspb.Listeners, []*os.File) {
	if !s.HasListeners() {
		return nil, []*os.File{s.NetNS}
	}
	return &zdspb.Listeners{
		Roles:               []zdspb.ListenerRole{zdspb.ListenerRole_OUTBOUND, zdspb.ListenerRole_INBOUND_PLAINTEXT, zdspb.ListenerRole_INBOUND_HBONE},
		OriginalDestination: o,
		AppMark:             appMark,
	}, []*os.File{s.NetNS, s.Outbound, s.InboundPlaintext, s.InboundHBONE}
}

// Unpack takes the files that came with an Add or a HeldWorkload; on error they are closed.
func Unpack(l *zdspb.Listeners, files []*os.File) (Sockets, error) {
	if err := checkFiles(l, len(files)); err != nil {
		CloseFiles(files)
		return Sockets{}, err
	}
	s := Sockets{NetNS: files[0]}
	for i, r := range l.GetRoles() {
		switch r {
		case zdspb.ListenerRole_OUTBOUND:
			s.Outbound = files[i+1]
		case zdspb.ListenerRole_INBOUND_PLAINTEXT:
			s.InboundPlaintext = files[i+1]
		case zdspb.ListenerRole_INBOUND_HBONE:
			s.InboundHBONE = files[i+1]
		}
	}
	return s, nil
}

// AckMessage answers a request: err nil means done.
func AckMessage(err error) *zdspb.WorkloadResponse {
	a := &zdspb.Ack{}
	if err != nil {
		a.Error = err.Error()
	}
	return &zdspb.WorkloadResponse{Payload: &zdspb.WorkloadResponse_Ack{Ack: a}}
}

// CloseFiles closes those that are not nil.
func CloseFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			// Nothing was written to it: the result cannot matter.
			_ = f.Close()
		}
	}
}

func checkRequest(m *zdspb.WorkloadRequest, files int) error {
	switch p := m.GetPayload().(type) {
	case *zdspb.WorkloadRequest_Add:
		if p.Add.GetUid() == "" {
			return fmt.Errorf("%w: add without uid", ErrInvalid)
		}
		if p.Add.GetWorkloadInfo() == nil {
			return fmt.Errorf("%w: add %q without workload info", ErrInvalid, p.Add.GetUid())
		}
		if err := checkFiles(p.Add.GetListeners(), files); err != nil {
			return fmt.Errorf("add %q: %w", p.Add.GetUid(), err)
		}
		return nil
	case *zdspb.WorkloadRequest_Keep:
		return checkBare("keep", p.Keep.GetUid(), files)
	case *zdspb.WorkloadRequest_Del:
		return checkBare("del", p.Del.GetUid(), files)
	case *zdspb.WorkloadRequest_SnapshotSent:
		return checkBare("snapshot", "-", files)
	}
	return fmt.Errorf("%w: request of unknown kind", ErrInvalid)
}

func checkResponse(m *zdspb.WorkloadResponse, files int) error {
	switch p := m.GetPayload().(type) {
	case *zdspb.WorkloadResponse_Ack:
		return checkBare("ack", "-", files)
	case *zdspb.WorkloadResponse_HeldEnd:
		return checkBare("held end", "-", files)
	case *zdspb.WorkloadResponse_Held:
		if p.Held.GetUid() == "" {
			return fmt.Errorf("%w: held workload without uid", ErrInvalid)
		}
		if err := checkFiles(p.Held.GetListeners(), files); err != nil {
			return fmt.Errorf("held workload %q: %w", p.Held.GetUid(), err)
		}
		return nil
	}
	return fmt.Errorf("%w: response of unknown kind", ErrInvalid)
}

// checkBare refuses file descriptors beside a message that has no use for them.
func checkBare(kind, uid string, files int) error {
	if uid == "" {
		return fmt.Errorf("%w: %s without uid", ErrInvalid, kind)
	}
	if files != 0 {
		return fmt.Errorf("%w: %s with %d file descriptors", ErrInvalid, kind, files)
	}
	return nil
}

// checkFiles wants the netns, and one file for each listener, each role at most once and known.
func checkFiles(l *zdspb.Listeners, files int) error {
	if files == 0 {
		return fmt.Errorf("%w: no network namespace beside it", ErrInvalid)
	}
	if want := 1 + len(l.GetRoles()); files != want {
		return fmt.Errorf("%w: %d file descriptors, want %d", ErrInvalid, files, want)
	}
	seen := map[zdspb.ListenerRole]bool{}
	for _, r := range l.GetRoles() {
		if _, known := zdspb.ListenerRole_name[int32(r)]; !known || seen[r] {
			return fmt.Errorf("%w: listener role %v unknown or given twice", ErrInvalid, r)
		}
		seen[r] = true
	}
	return nil
}

// cut shortens s to at most n bytes without splitting a character: protobuf refuses broken UTF-8.
func cut(s string, n int) string {
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// IsInvalid reports whether err is about one packet only, so that the connection can go on.
func IsInvalid(err error) bool { return errors.Is(err, ErrInvalid) }

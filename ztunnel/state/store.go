package state

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/ztunnel/policy"
)

// Config configures a Store.
type Config struct {
	Node      string // this node; empty means that every workload counts as local
	Network   string
	ClusterID string
	Log       *slog.Logger // nil means slog.Default
}

// Store takes updates and publishes snapshots. All methods may be called from any
// goroutine; updates are applied one at a time.
type Store struct {
	cfg     Config
	current atomic.Pointer[Snapshot]

	mu     sync.Mutex // of writers
	intern *interner
}

// NewStore makes an empty Store.
func NewStore(cfg Config) *Store {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	s := &Store{cfg: cfg, intern: newInterner()}
	s.current.Store(emptySnapshot())
	return s
}

// Snapshot is the newest state. It never blocks.
func (s *Store) Snapshot() *Snapshot { return s.current.Load() }

// Changed is closed at the next change. To miss nothing, call it before Snapshot, or
// use Snapshot.Superseded.
func (s *Store) Changed() <-chan struct{} { return s.current.Load().superseded }

// publish makes next the current snapshot. The caller holds mu.
func (s *Store) publish(next *Snapshot) {
	next.Generation++
	next.superseded = make(chan struct{})
	old := s.current.Swap(next)
	close(old.superseded)
}

// HandleAddress is the xds.Handler for ports.TypeAddress.
func (s *Store) HandleAddress(u xds.Update) map[string]error {
	s.mu.Lock()
	defer s.mu.Unlock()
	rejected := map[string]error{}
	b := newBuilder(s.current.Load(), s.cfg.Node)
	for _, name := range u.Removed {
		b.remove(name)
	}
	for _, r := range u.Resources {
		if err := s.addAddress(b, r.GetName(), r.GetResource().GetTypeUrl(), r.GetResource().GetValue()); err != nil {
			rejected[r.GetName()] = err
		}
	}
	next := b.snapshot()
	s.publish(next)
	s.intern.sweep(next.Workloads)
	return rejected
}

func (s *Store) addAddress(b *builder, name, typeURL string, value []byte) error {
	if typeURL != ports.TypeAddress {
		return fmt.Errorf("resource is a %q, want %q", typeURL, ports.TypeAddress)
	}
	var a workload.Address
	if err := proto.Unmarshal(value, &a); err != nil {
		return fmt.Errorf("decode address: %w", err)
	}
	switch t := a.GetType().(type) {
	case *workload.Address_Workload:
		w, err := convertWorkload(t.Workload, s.intern)
		if err != nil {
			return err
		}
		// The name is what a later removal says.
		if w.UID != name {
			return fmt.Errorf("workload %q comes under another name", w.UID)
		}
		b.setWorkload(w)
	case *workload.Address_Service:
		svc, err := convertService(t.Service, s.intern)
		if err != nil {
			return err
		}
		if svc.Key() != name {
			return fmt.Errorf("service %q comes under another name", svc.Key())
		}
		b.setService(svc)
	default:
		return fmt.Errorf("address is neither workload nor service")
	}
	return nil
}

// HandleAuthorization is the xds.Handler for ports.TypeAuthorization.
func (s *Store) HandleAuthorization(u xds.Update) map[string]error {
	s.mu.Lock()
	defer s.mu.Unlock()
	rejected := map[string]error{}
	old := s.current.Load()
	next := *old
	next.policies = old.policies.clone()
	for _, name := range u.Removed {
		next.policies.remove(name)
	}
	for _, r := range u.Resources {
		p, err := compile(r.GetName(), r.GetResource().GetTypeUrl(), r.GetResource().GetValue())
		if err != nil {
			rejected[r.GetName()] = err
			next.policies.refuse(r.GetName())
			continue
		}
		next.policies.set(p)
	}
	next.policies.index()
	next.PolicyGeneration++
	s.publish(&next)
	return rejected
}

func compile(name, typeURL string, value []byte) (*policy.Policy, error) {
	if typeURL != ports.TypeAuthorization {
		return nil, fmt.Errorf("resource is a %q, want %q", typeURL, ports.TypeAuthorization)
	}
	var a security.Authorization
	if err := proto.Unmarshal(value, &a); err != nil {
		return nil, fmt.Errorf("decode authorization: %w", err)
	}
	p, err := policy.Compile(&a)
	if err != nil {
		return nil, err
	}
	if p.Name() != name {
		return nil, fmt.Errorf("policy %q comes under another name", p.Name())
	}
	return p, nil
}

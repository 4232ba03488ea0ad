package ztunnel

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/internal/identity/ca"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// fileCheckEvery is how often LOCAL_XDS_PATH is looked at: a person who edits it waits no longer.
const fileCheckEvery = 250 * time.Millisecond

// signer is istiod's CA or the development one.
func (a *app) signer() (identity.Signer, error) {
	if a.cfg.CADirectory != "" {
		return ca.Directory(a.cfg.CADirectory)
	}
	c, err := ca.New(ca.Config{
		Address: a.cfg.CAAddress, RootFile: a.cfg.CARoot, TokenFile: a.cfg.TokenFile, ClusterID: a.cfg.ClusterID,
		ServerName: serverName(a.cfg.CAAddress),
		Log:        a.logging.Logger("ca"),
	})
	if err != nil {
		return nil, err
	}
	a.closers = append(a.closers, func() {
		if err := c.Close(); err != nil {
			a.log.Warn("close CA client", telemetry.FieldError, err)
		}
	})
	return c, nil
}

// startState loads the file or connects to istiod.
func (a *app) startState(ctx context.Context, g *errgroup.Group) error {
	c := &stateCondition{condition: a.ready.Condition("state"), synced: a.synced}
	if a.cfg.LocalXDS != "" {
		if err := a.store.LoadFile(a.cfg.LocalXDS); err != nil {
			return err
		}
		c.complete()
		g.Go(func() error { return a.watchFile(ctx) })
		return nil
	}
	c.missing(fmt.Errorf("no complete answer from %q yet", a.cfg.XDSAddress))
	node, err := a.cfg.node()
	if err != nil {
		return err
	}
	client, err := xds.New(xds.Config{
		Address: a.cfg.XDSAddress, RootFile: a.cfg.XDSRoot, TokenFile: a.cfg.TokenFile, ClusterID: a.cfg.ClusterID,
		ServerName: serverName(a.cfg.XDSAddress), Node: node,
		Types: map[string]xds.Handler{
			ports.TypeAddress: a.store.HandleAddress, ports.TypeAuthorization: a.store.HandleAuthorization,
		},
		Log: a.logging.Logger("xds"),
		Hooks: xds.Hooks{Handled: a.metrics.xdsHandled, Connected: func(err error) {
			a.metrics.xdsConnected(err)
			if err != nil {
				c.missing(fmt.Errorf("stream to istiod: %w", err))
			}
		}},
	})
	if err != nil {
		return err
	}
	g.Go(func() error { return client.Run(ctx) })
	g.Go(func() error {
		select {
		case <-client.Ready():
			c.complete()
		case <-ctx.Done():
		}
		return nil
	})
	return nil
}

// stateCondition is met once state was complete. A stream that is lost later is
// for the log and the metric: the state stays good for traffic.
type stateCondition struct {
	condition *telemetry.Condition
	synced    chan struct{}

	mu   sync.Mutex
	done bool
}

func (c *stateCondition) complete() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	close(c.synced)
	c.condition.Set(nil)
}

func (c *stateCondition) missing(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.done {
		c.condition.Set(err)
	}
}

// serverName is the name that istiod must prove. An address that is a service's
// name is that name; any other, such as a forwarded port, stands for the default.
func serverName(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ports.IstiodServerName
	}
	host := strings.TrimSuffix(u.Hostname(), ".cluster.local")
	if strings.HasSuffix(host, ".svc") {
		return host
	}
	return ports.IstiodServerName
}

// watchFile loads the file again when it was changed. A file with a mistake
// changes nothing.
func (a *app) watchFile(ctx context.Context) error {
	tick := time.NewTicker(fileCheckEvery)
	defer tick.Stop()
	last, err := os.Stat(a.cfg.LocalXDS)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, e := os.Stat(a.cfg.LocalXDS)
		if e != nil || (err == nil && os.SameFile(last, now) && last.ModTime().Equal(now.ModTime()) && last.Size() == now.Size()) {
			continue
		}
		last, err = now, nil
		if e := a.store.LoadFile(a.cfg.LocalXDS); e != nil {
			a.log.Error("load changed state, keeping the last good one", telemetry.FieldError, e)
			continue
		}
		a.log.Info("loaded changed state", "path", a.cfg.LocalXDS)
	}
}

// node is what istiod is told of us.
func (c Config) node() (*core.Node, error) {
	meta, err := structpb.NewStruct(map[string]interface{}{
		"NAME": c.PodName, "NAMESPACE": c.PodNamespace, "INSTANCE_IPS": c.InstanceIP, "NODE_NAME": c.NodeName,
		"SERVICE_ACCOUNT": c.ServiceAccount, "CLUSTER_ID": c.ClusterID, "NETWORK": c.Network,
	})
	if err != nil {
		return nil, fmt.Errorf("describe node: %w", err)
	}
	return &core.Node{
		Id:       fmt.Sprintf("ztunnel~%s~%s.%s~%s.svc.cluster.local", c.InstanceIP, c.PodName, c.PodNamespace, c.PodNamespace),
		Metadata: meta,
	}, nil
}

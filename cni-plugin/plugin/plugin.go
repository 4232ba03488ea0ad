package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/version"
)

// Main is the whole program: it reads the runtime's request from environment and standard input, answers on
// standard output and exits.
func Main(about string) {
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add:    func(a *skel.CmdArgs) error { return cmdAdd(context.Background(), a, os.Stdout) },
		Del:    func(*skel.CmdArgs) error { return nil },
		Check:  func(a *skel.CmdArgs) error { return cmdCheck(context.Background(), a) },
		GC:     func(*skel.CmdArgs) error { return nil },
		Status: func(*skel.CmdArgs) error { return nil },
	}, version.All, about)
}

// netConf is what the runtime gives on standard input: our Config, the list's version and the result so far.
type netConf struct {
	Config
	CNIVersion string          `json:"cniVersion"`
	PrevResult json.RawMessage `json:"prevResult"`
}

// podArgs are the CNI_ARGS of a Kubernetes runtime; their names are the runtime's.
type podArgs struct {
	types.CommonArgs
	K8S_POD_NAME      types.UnmarshallableString
	K8S_POD_NAMESPACE types.UnmarshallableString
	K8S_POD_UID       types.UnmarshallableString
}

func cmdAdd(ctx context.Context, a *skel.CmdArgs, out io.Writer) error {
	conf, req, err := parse(a)
	if err != nil {
		return err
	}
	if needsAgent(conf, req) {
		reply, err := ask(ctx, conf.AgentSocket, PathAdd, req)
		record(conf.LogFile, "ADD", req, reply, err)
		if err := verdict(req, reply, err); err != nil {
			return err
		}
	}
	if _, err := out.Write(conf.PrevResult); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

func cmdCheck(ctx context.Context, a *skel.CmdArgs) error {
	conf, req, err := parse(a)
	if err != nil {
		return err
	}
	if !needsAgent(conf, req) {
		return nil
	}
	reply, err := ask(ctx, conf.AgentSocket, PathCheck, req)
	return verdict(req, reply, err)
}

// needsAgent is false for what is never in the mesh: not a pod, or of an exempt namespace.
func needsAgent(c *netConf, r *Request) bool {
	return r.PodName != "" && r.PodNamespace != "" && !slices.Contains(c.ExcludeNamespaces, r.PodNamespace)
}

// verdict turns the agent's answer into what the runtime shows in the pod's event.
func verdict(req *Request, reply *Reply, err error) error {
	switch {
	case errors.Is(err, errUnreachable):
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf(
			"%s: %v; the pod is retried; check DaemonSet istio-cni-node on this node", Type, err), "")
	case err != nil:
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("%s: pod %q: %v", Type, req.PodNamespace+"/"+req.PodName, err), "")
	case reply.Error != "":
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("%s: %s", Type, reply.Error), "")
	}
	return nil
}

// parse reads the request. A configuration that is not a chained one is refused: without a result before us
// there is no interface and nothing to capture.
func parse(a *skel.CmdArgs) (*netConf, *Request, error) {
	var c netConf
	if err := json.Unmarshal(a.StdinData, &c); err != nil {
		return nil, nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("%s: read configuration: %v", Type, err), "")
	}
	if len(c.PrevResult) == 0 {
		return nil, nil, types.NewError(types.ErrInvalidNetworkConfig, Type+": no prevResult: it must come after the plugin that makes the pod's interface", "")
	}
	if c.AgentSocket == "" {
		return nil, nil, types.NewError(types.ErrInvalidNetworkConfig, Type+": agent_socket is missing", "")
	}
	var p podArgs
	p.IgnoreUnknown = true
	if err := types.LoadArgs(a.Args, &p); err != nil {
		return nil, nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("%s: read CNI_ARGS: %v", Type, err), "")
	}
	ips, err := addresses(c.CNIVersion, c.PrevResult)
	if err != nil {
		return nil, nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("%s: read prevResult: %v", Type, err), "")
	}
	return &c, &Request{
		PodName: string(p.K8S_POD_NAME), PodNamespace: string(p.K8S_POD_NAMESPACE), PodUID: string(p.K8S_POD_UID),
		ContainerID: a.ContainerID, NetNS: a.Netns, IPs: ips,
	}, nil
}

// addresses reads the pod's addresses from a result of any version of the CNI specification.
func addresses(cniVersion string, raw []byte) ([]netip.Addr, error) {
	r, err := create.Create(cniVersion, raw)
	if err != nil {
		return nil, err
	}
	res, err := current.NewResultFromResult(r)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, ip := range res.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return nil, fmt.Errorf("address %q is not an IP address", ip.Address.IP)
		}
		out = append(out, a.Unmap())
	}
	return out, nil
}

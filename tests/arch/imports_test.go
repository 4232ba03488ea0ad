package arch

import (
	"path"
	"slices"
	"strings"
	"testing"
)

// A rule forbids packages that match from to import, directly or through others, what matches one of never.
type rule struct {
	from   string
	never  []string
	except []string // pairs "importer → imported" that are allowed, patterns on both sides
	why    string
}

// Patterns are paths inside the module or import paths; a trailing /... matches the path and everything below.
var directRules = []rule{
	{
		from:  "api/...",
		never: []string{"cmd/...", "internal/...", "ztunnel/...", "istiod/...", "waypoint/...", "cni-plugin/...", "bpf/...", "charts/...", "tests/..."},
		why:   "api is what crosses a process boundary: both sides import it, so it can import neither",
	},
	{
		from:  "internal/...",
		never: []string{"cmd/...", "ztunnel/...", "istiod/...", "waypoint/...", "cni-plugin/...", "bpf/...", "charts/...", "tests/..."},
		why:   "internal is shared by the parts; one that imported a part would tie the others to it",
	},
	{
		from:  "internal/hbone/...",
		never: []string{module + "/..."},
		except: []string{
			"internal/hbone/... → internal/hbone/...",
		},
		why: "the tunnel is a protocol of its own: it must be testable, fuzzable and replaceable without the mesh around it",
	},
	{
		from: "ztunnel/...", never: []string{"istiod/...", "waypoint/...", "cni-plugin/...", "bpf/...", "charts/...", "cmd/...", "tests/..."},
		why: "parts talk over the wire, not through Go: one can then be upgraded, or exchanged for Istio's, alone",
	},
	{
		from: "istiod/...", never: []string{"ztunnel/...", "waypoint/...", "cni-plugin/...", "bpf/...", "charts/...", "cmd/...", "tests/..."},
		except: []string{"istiod → waypoint/config", "istiod → waypoint/deploy"},
		why:    "parts talk over the wire; only istiod's wiring may compile waypoints in",
	},
	{
		from: "waypoint/...", never: []string{"ztunnel/...", "istiod/...", "cni-plugin/...", "bpf/...", "charts/...", "cmd/...", "tests/..."},
		except: []string{"waypoint/config/... → istiod/model/...", "waypoint/deploy/... → istiod/model/..."},
		why:    "what istiod compiles in, the translation to Envoy and the deployer, reads the model, and nothing else of istiod",
	},
	{
		from: "cni-plugin/...", never: []string{"ztunnel/...", "istiod/...", "waypoint/...", "charts/...", "cmd/...", "tests/..."},
		why: "parts talk over the wire",
	},
	{
		from: "cni-plugin/plugin/...", never: []string{"cni-plugin/...", "bpf/..."},
		except: []string{"cni-plugin/plugin/... → cni-plugin/plugin/..."},
		why:    "the plugin does nothing by itself: it asks the agent",
	},
	{
		from: "bpf/...", never: []string{module + "/..."},
		except: []string{"bpf/... → bpf/...", "bpf/... → api/ports"},
		why:    "programs and typed loaders only; policy about them is the agent's",
	},
	{
		from: "charts/...", never: []string{module + "/..."},
		except: []string{"charts/... → charts/..."},
		why:    "the charts are data; tools other than ours load them too",
	},
}

// transitiveRules hold for everything that a package pulls in.
var transitiveRules = []rule{
	{
		from:  "...",
		never: []string{"istio.io/istio/..."},
		why:   "it drags in 191 modules, and its copy of package istio.workload clashes with ours when protobuf types register",
	},
	{
		from:  "ztunnel/...",
		never: []string{"k8s.io/...", "istio.io/...", "sigs.k8s.io/...", "helm.sh/..."},
		why:   "every node pays for it: a ztunnel-like binary took 14.5 MB of memory at start, one with client-go 36 MB",
	},
	{
		from:  "cmd/ztunnel/...",
		never: []string{"k8s.io/...", "istio.io/...", "sigs.k8s.io/...", "helm.sh/..."},
		why:   "see ztunnel",
	},
	{
		from:  "cni-plugin/plugin/...",
		never: []string{"google.golang.org/grpc/...", "k8s.io/...", "github.com/prometheus/..."},
		why:   "it is started for every pod of the node: 4.7 MB and milliseconds matter there",
	},
	{
		from:  "cmd/ambit-cni/...",
		never: []string{"google.golang.org/grpc/...", "k8s.io/...", "github.com/prometheus/..."},
		why:   "see cni-plugin/plugin",
	},
	{
		from:  "internal/hbone/...",
		never: []string{"google.golang.org/grpc/...", "k8s.io/...", "istio.io/...", "github.com/prometheus/...", "net/http"},
		why:   "the tunnel is framing on sockets; net/http's own HTTP/2 is what it replaces",
	},
	{
		from:  "cmd/istiod/...",
		never: []string{"helm.sh/..."},
		why:   "Helm is for the command-line tool",
	},
	{
		from:  "cmd/node-agent/...",
		never: []string{"helm.sh/..."},
		why:   "Helm is for the command-line tool",
	},
}

func TestImportDirections(t *testing.T) {
	for _, p := range ours(t) {
		for _, r := range directRules {
			if !matches(r.from, p.path()) {
				continue
			}
			for _, imported := range p.Imports {
				local := strings.TrimPrefix(imported, module+"/")
				if (matchesAny(r.never, local) || matchesAny(r.never, imported)) && imported != local && !excepted(r, p.path(), local) {
					t.Errorf("%s imports %s, but %s never does: %s", p.path(), local, r.from, r.why)
				}
			}
		}
	}
}

func TestDependencies(t *testing.T) {
	for _, p := range ours(t) {
		for _, r := range transitiveRules {
			if !matches(r.from, p.path()) {
				continue
			}
			for _, dep := range p.Deps {
				if matchesAny(r.never, dep) {
					t.Errorf("%s depends on %s, but %s never does: %s", p.path(), dep, r.from, r.why)
				}
			}
		}
	}
}

// makers are functions that only some packages may call.
var makers = []struct {
	callee string // a path.Match pattern
	only   []string
	why    string
}{
	{"k8s.io/client-go/kubernetes.NewForConfig*", []string{"internal/kube/..."}, "one place decides about transports, rates and encodings of Kubernetes clients"},
	{"k8s.io/client-go/dynamic.NewForConfig*", []string{"internal/kube/..."}, "see kubernetes"},
	{"k8s.io/client-go/metadata.NewForConfig*", []string{"internal/kube/..."}, "see kubernetes"},
	{"os.Exit", []string{"cmd/...", "tests/...", "charts/internal/..."}, "only a main ends the process: everything else returns, so that its owner can clean up"},
	{"log.Fatal*", []string{"cmd/...", "tests/...", "charts/internal/..."}, "see os.Exit"},
}

func TestMakers(t *testing.T) {
	for _, f := range files(t) {
		if f.test {
			continue
		}
		f.calls(func(callee string, line int) {
			for _, m := range makers {
				if ok, _ := path.Match(strings.ReplaceAll(m.callee, "/", "|"), strings.ReplaceAll(callee, "/", "|")); ok && !matchesAny(m.only, f.pkg.path()) {
					t.Errorf("%s:%d calls %s, which is for %s: %s", f.name, line, callee, strings.Join(m.only, ", "), m.why)
				}
			}
		})
	}
}

// TestRulesMatchSomething: a rule about a folder that was renamed would hold for ever.
func TestRulesMatchSomething(t *testing.T) {
	future := []string{"waypoint/...", "bpf/..."} // come with later work
	all := ours(t)
	for _, r := range slices.Concat(directRules, transitiveRules) {
		found := slices.ContainsFunc(all, func(p pkg) bool { return matches(r.from, p.path()) })
		if !found && !slices.Contains(future, r.from) {
			t.Errorf("rule for %s matches no package", r.from)
		}
	}
}

func matches(pattern, path string) bool {
	if pattern == "..." {
		return true
	}
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == base || strings.HasPrefix(path, base+"/")
	}
	return path == pattern
}

func matchesAny(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, path) })
}

func excepted(r rule, from, to string) bool {
	return slices.ContainsFunc(r.except, func(e string) bool {
		a, b, _ := strings.Cut(e, " → ")
		return matches(a, from) && matches(b, to)
	})
}

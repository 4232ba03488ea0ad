package charts

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"helm.sh/helm/v4/pkg/engine"
	"helm.sh/helm/v4/pkg/strvals"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// renderCases are the configurations whose output is committed under testdata: the defaults, and one that sets what
// the defaults leave out.
var renderCases = []struct {
	name, chart string
	set         []string
}{
	{name: "istiod-default", chart: "istiod"},
	{name: "istiod-large", chart: "istiod", set: []string{
		"autoscaleEnabled=true", "autoscaleMin=2", "plaintextXDS=true", "global.logAsJson=true",
		"meshConfig.trustDomain=example.org", "meshConfig.rootNamespace=policy", "trustedZtunnelNamespace=node",
		"global.imagePullSecrets={regcred}", "global.priorityClassName=system-cluster-critical",
		"env.GODEBUG=fips140=on", "nodeSelector.pool=infra", "extraContainerArgs={--config-dir=/config}",
	}},
	{name: "istiod-two-replicas", chart: "istiod", set: []string{"replicaCount=2"}},
	{name: "istiod-waypoints", chart: "istiod", set: []string{
		"global.waypoint.image=registry.example.org/w:1", "global.waypoint.resources.requests.cpu=500m", "global.waypoint.resources.limits=null",
		"global.waypoint.nodeSelector.pool=mesh", "gatewayClasses.istio-waypoint.deployment.spec.replicas=2",
		"gatewayClasses.istio.service.spec.type=NodePort", "global.imagePullPolicy=Always", "global.imagePullSecrets={a,b}",
		"meshConfig.rootNamespace=policy",
	}},
	{name: "gateway-default", chart: "gateway"},
	{name: "gateway-large", chart: "gateway", set: []string{
		"name=istio-ingressgateway", "autoscaling.enabled=true", "autoscaling.minReplicas=2", "autoscaling.targetMemoryUtilizationPercentage=70",
		"service.externalTrafficPolicy=Local", "service.annotations.lb=internal", "service.loadBalancerIP=192.0.2.1",
		"service.allocateLoadBalancerNodePorts=false", "service.loadBalancerSourceRanges={192.0.2.0/24}", "annotations.team=edge",
		"labels.team=edge", "imagePullSecrets[0].name=own", "global.imagePullSecrets={regcred}", "env.PROXY_LOG_LEVEL=debug", "env.NETWORK=n2",
		"xdsAddress=mesh.example.org:15012", "global.logAsJson=true", "resources.limits=null", "priorityClassName=high",
		"podDisruptionBudget.maxUnavailable=1", "image=registry.example.org/w:1",
	}},
	{name: "gateway-egress", chart: "gateway", set: []string{
		"name=istio-egressgateway", "service.type=ClusterIP", "replicaCount=2", "labels.istio=egress", "serviceAccount.create=false",
	}},
	{name: "gateway-daemonset", chart: "gateway", set: []string{"kind=DaemonSet", "service.type=None"}},
	{name: "cni-default", chart: "cni"},
	{name: "cni-unprivileged", chart: "cni", set: []string{
		"privileged=false", "ambient.redirectMode=nft", "cniConfFileName=10-calico.conflist", "cniBinDir=/home/kubernetes/bin",
		"excludeNamespaces={kube-system,storage}", "seLinuxOptions.type=spc_t", "logging.level=debug",
	}},
	{name: "ztunnel-default", chart: "ztunnel"},
	{name: "ztunnel-elsewhere", chart: "ztunnel", set: []string{
		"resourceName=node-proxy", "xdsAddress=mesh.example.org:15012", "caAddress=https://ca.example.org:443", "logLevel=debug",
		"meshConfig.defaultConfig.proxyMetadata.GOMEMLIMIT=200MiB", "image=registry.example.org/z:1", "env.A=1",
		"global.network=n1", "global.multiCluster.clusterName=c1", "terminationGracePeriodSeconds=300", "dnsPolicy=Default",
	}},
}

func TestRender(t *testing.T) {
	for _, tc := range renderCases {
		t.Run(tc.name, func(t *testing.T) {
			got := render(t, tc.chart, "istio-system", tc.set...)
			path := filepath.Join("testdata", tc.name+".golden.yaml")
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("render chart %q (-golden +got; go test ./charts -update accepts it):\n%s", tc.chart, diff)
			}
			decodeStrictly(t, got)
		})
	}
}

// TestEveryObjectIsLabelled: tools find what belongs to the mesh, and to which part, by the recommended labels.
func TestEveryObjectIsLabelled(t *testing.T) {
	want := []string{"name", "instance", "version", "component", "part-of", "managed-by"}
	for _, part := range append(Parts(), Gateway) {
		for _, doc := range documents(render(t, part, "istio-system")) {
			var object struct {
				Kind     string
				Metadata struct {
					Name   string
					Labels map[string]string
				}
			}
			if err := yaml.Unmarshal(doc, &object); err != nil {
				t.Fatal(err)
			}
			for _, key := range want {
				if object.Metadata.Labels["app.kubernetes.io/"+key] == "" {
					t.Errorf("chart %s: %s %s lacks label app.kubernetes.io/%s", part, object.Kind, object.Metadata.Name, key)
				}
			}
		}
	}
}

// TestBaseInstallsDefinitions: the definitions parse, keep users' objects on uninstall, and can be left out.
func TestBaseInstallsDefinitions(t *testing.T) {
	out := render(t, "base", "istio-system")
	decodeStrictly(t, out)
	var kinds []string
	for _, doc := range documents(out) {
		var crd apiextensions.CustomResourceDefinition
		if err := yaml.Unmarshal(doc, &crd); err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, crd.Spec.Names.Kind)
		if got := crd.Annotations["helm.sh/resource-policy"]; got != "keep" {
			t.Errorf("definition %q: helm.sh/resource-policy is %q, want keep", crd.Name, got)
		}
	}
	slices.Sort(kinds)
	want := []string{"AuthorizationPolicy", "DestinationRule", "Gateway", "PeerAuthentication", "RateLimit", "RequestAuthentication",
		"ServiceEntry", "Sidecar", "Telemetry", "VirtualService", "WorkloadEntry", "WorkloadGroup"}
	if diff := cmp.Diff(want, kinds); diff != "" {
		t.Errorf("kinds (-want +got):\n%s", diff)
	}
	some := render(t, "base", "istio-system", "base.excludedCRDs={telemetries.telemetry.istio.io}")
	if n := len(documents(some)); n != len(want)-1 {
		t.Errorf("with one excluded: %d definitions, want %d", n, len(want)-1)
	}
	if none := render(t, "base", "istio-system", "base.enableCRDTemplates=false"); len(documents(none)) != 0 {
		t.Errorf("with enableCRDTemplates=false: got %d documents, want none", len(documents(none)))
	}
}

// TestUmbrellaEqualsItsParts: one release of the umbrella holds the same objects as the four releases.
func TestUmbrellaEqualsItsParts(t *testing.T) {
	const setHub, setReplicas = "global.hub=example.org/x", "replicaCount=2"
	var apart []string
	for _, part := range Parts() {
		set := []string{setHub}
		if part == "istiod" {
			set = append(set, setReplicas)
		}
		apart = append(apart, identities(t, render(t, part, "istio-system", set...))...)
	}
	umbrella := render(t, Umbrella, "istio-system", setHub, "istiod."+setReplicas)
	together := identities(t, umbrella)
	slices.Sort(apart)
	slices.Sort(together)
	if diff := cmp.Diff(apart, together); diff != "" {
		t.Errorf("objects (-parts +umbrella):\n%s", diff)
	}
	if n := bytes.Count(umbrella, []byte("image: \"example.org/x/")); n != 3 {
		t.Errorf("images under the global hub: %d, want 3", n)
	}
}

// TestBadValues: a wrong value is refused before anything is sent, and the message names the value.
func TestBadValues(t *testing.T) {
	for _, tc := range []struct{ chart, set, want string }{
		{"istiod", "replicaCounts=2", "replicaCounts"},
		{"istiod", "replicaCount=two", "/replicaCount"},
		{"istiod", "global.logging.level=loud", "/global/logging/level"},
		{"istiod", "workloadCertTTL=1 day", "/workloadCertTTL"},
		{"istiod", "meshConfig.trustDomain=Example.org", "/meshConfig/trustDomain"},
		{"istiod", "global.tag=a b", "/global/tag"},
		{"istiod", "env.A-B=1", "A-B"},
		{"cni", "ambient.redirectMode=iptables", "/ambient/redirectMode"},
		{"cni", "cniBinDir=opt/cni/bin", "/cniBinDir"},
		{"cni", "cniConfFileName=../x", "/cniConfFileName"},
		{"ztunnel", "terminationGracePeriodSeconds=1", "/terminationGracePeriodSeconds"},
		{"ztunnel", "xdsAddress=http://istiod:15010", "/xdsAddress"},
		{"ztunnel", "updateStrategy.rollingUpdate.maxSurges=1", "maxSurges"},
		{"istiod", "gatewayClasses.istio.Deployment.spec=x", "Deployment"},
		{"istiod", "global.waypoint.images=x", "images"},
		{"gateway", "service.type=ExternalName", "/service/type"},
		{"gateway", "service.ports[0].port=http", "/service/ports/0"},
		{"gateway", "replicas=2", "replicas"},
		{"gateway", "kind=StatefulSet", "/kind"},
		{"gateway", "name=a.b", "/name"},
		{"base", "base.excludedCRDs={Telemetry}", "/base/excludedCRDs/0"},
		{"base", "global.hubs=x", "hubs"},
	} {
		t.Run(tc.chart+" "+tc.set, func(t *testing.T) {
			_, _, err := values(t, tc.chart, "istio-system", tc.set)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got error %v, want one that names %q", err, tc.want)
			}
		})
	}
}

// TestOneVersionOneGlobal: the charts are one product: one version, and the same global values everywhere, since
// Helm hands the umbrella's to every part.
func TestOneVersionOneGlobal(t *testing.T) {
	first, err := Load(Umbrella)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range append(Parts(), Gateway) {
		c, err := Load(part)
		if err != nil {
			t.Fatal(err)
		}
		if c.Metadata.Version != first.Metadata.Version || c.Metadata.AppVersion != first.Metadata.AppVersion {
			t.Errorf("chart %s is %s/%s, want %s/%s", part, c.Metadata.Version, c.Metadata.AppVersion, first.Metadata.Version, first.Metadata.AppVersion)
		}
		if diff := cmp.Diff(globalSchema(t, first), globalSchema(t, c)); diff != "" {
			t.Errorf("schema of global differs between %s and %s:\n%s", first.Name(), part, diff)
		}
	}
	for _, dep := range first.Metadata.Dependencies {
		if dep.Version != first.Metadata.Version {
			t.Errorf("umbrella wants %s %s, want %s", dep.Name, dep.Version, first.Metadata.Version)
		}
	}
}

func globalSchema(t *testing.T, c *chart.Chart) any {
	t.Helper()
	var schema struct{ Properties map[string]any }
	if err := json.Unmarshal(c.Schema, &schema); err != nil {
		t.Fatalf("parse schema of %s: %v", c.Name(), err)
	}
	return schema.Properties["global"]
}

// values loads a chart, merges its defaults with the settings, as Helm does, and checks them against the schema.
func values(t *testing.T, name, namespace string, set ...string) (*chart.Chart, common.Values, error) {
	t.Helper()
	c, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	given := map[string]any{}
	for _, s := range set {
		if err := strvals.ParseInto(s, given); err != nil {
			t.Fatal(err)
		}
	}
	if err := chartutil.ProcessDependencies(c, given); err != nil {
		t.Fatal(err)
	}
	release := common.ReleaseOptions{Name: name, Namespace: namespace, Revision: 1, IsInstall: true}
	merged, err := util.ToRenderValues(c, given, release, common.DefaultCapabilities)
	return c, merged, err
}

// render returns the chart's objects, one document each, in the order of the template files' names.
func render(t *testing.T, name, namespace string, set ...string) []byte {
	t.Helper()
	c, merged, err := values(t, name, namespace, set...)
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := engine.Render(c, merged)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for path, text := range rendered {
		if strings.HasSuffix(path, ".yaml") && strings.TrimSpace(text) != "" {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	var out bytes.Buffer
	for _, path := range paths {
		out.WriteString("---\n# " + path + "\n" + strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(rendered[path]), "---")) + "\n")
	}
	return out.Bytes()
}

func documents(out []byte) [][]byte {
	var docs [][]byte
	for _, doc := range bytes.Split(append([]byte("\n"), out...), []byte("\n---\n")) {
		if len(bytes.TrimSpace(doc)) > 0 {
			docs = append(docs, doc)
		}
	}
	return docs
}

// decodeStrictly fails on a field that the object's type does not have, which Kubernetes would drop in silence.
func decodeStrictly(t *testing.T, out []byte) []runtime.Object {
	t.Helper()
	all := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, apiextensions.AddToScheme} {
		if err := add(all); err != nil {
			t.Fatal(err)
		}
	}
	strict := kjson.NewSerializerWithOptions(kjson.DefaultMetaFactory, all, all, kjson.SerializerOptions{Yaml: true, Strict: true})
	var objects []runtime.Object
	for _, doc := range documents(out) {
		object, _, err := strict.Decode(doc, nil, nil)
		if err != nil {
			t.Errorf("decode object: %v\n%s", err, doc)
			continue
		}
		objects = append(objects, object)
	}
	return objects
}

func identities(t *testing.T, out []byte) []string {
	t.Helper()
	var ids []string
	for _, doc := range documents(out) {
		var object struct {
			Kind     string
			Metadata struct{ Name, Namespace string }
		}
		if err := yaml.Unmarshal(doc, &object); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, object.Kind+" "+object.Metadata.Namespace+"/"+object.Metadata.Name)
	}
	return ids
}

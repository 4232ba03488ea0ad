package stage

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"strings"
	"text/template"
)

//go:embed shop.yaml
var shopTemplate string

// Names in the demo.
const (
	// Namespace is the shop's, which gets the label.
	Namespace = "shop"
	// Outside is a namespace that never joins the mesh.
	Outside = "outside"
	// Load is the load generators' Deployment in both namespaces.
	Load = "load"
	// StreamsPerLoad and LoadReplicas make 20 long-lived streams inside the shop's namespace.
	StreamsPerLoad = 10
	LoadReplicas   = 2
	// OutsideStreams is the same per load generator outside.
	OutsideStreams = 2

	servicePort = 8080
	echoPort    = 9000
	reportPort  = 9090
	// Rates in requests per second and pod; a request to web makes three more between services.
	insideRate  = 100
	outsideRate = 25
)

// deployment is what the manifest needs to know about one.
type deployment struct {
	Name, Namespace, Image, Args, Probe, Protocol string
	Replicas, Port, ServicePort                   int
}

// shopManifest renders the shop for images of the hub and tag.
func shopManifest(hub, tag string) (string, error) {
	shop, tools := hub+"/shop:"+tag, hub+"/tools:"+tag
	var list []deployment
	for _, name := range []string{"web", "catalog", "cart", "checkout", "payments", "store"} {
		replicas := 2
		if name == "store" {
			replicas = 1 // it keeps its values in memory
		}
		list = append(list, deployment{Name: name, Namespace: Namespace, Image: shop, Replicas: replicas,
			Args: flow(name), Probe: "{httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}",
			Protocol: "http", Port: servicePort, ServicePort: 80})
	}
	list = append(list, deployment{Name: "echo", Namespace: Namespace, Image: tools, Replicas: 2,
		Args: flow("echo"), Probe: "{tcpSocket: {port: 9000}, periodSeconds: 1}", Protocol: "tcp", Port: echoPort, ServicePort: echoPort})
	list = append(list, loadDeployment(Namespace, tools, insideRate, StreamsPerLoad), loadDeployment(Outside, tools, outsideRate, OutsideStreams))

	t, err := template.New("shop").Option("missingkey=error").Parse(shopTemplate)
	if err != nil {
		return "", fmt.Errorf("parse the shop's manifest: %w", err)
	}
	var b strings.Builder
	err = t.Execute(&b, map[string]any{"Namespaces": []string{Namespace, Outside}, "Deployments": list})
	if err != nil {
		return "", fmt.Errorf("render the shop's manifest: %w", err)
	}
	return b.String(), nil
}

func loadDeployment(namespace, image string, rate, streams int) deployment {
	host := func(service string) string { return service + "." + Namespace }
	args := []string{"load", fmt.Sprintf("--rate=%d", rate), "--workers=8",
		"--target=http://" + host("web") + "/", "--target=POST http://" + host("web") + "/buy",
		"--target=http://" + host("catalog") + "/products", "--target=http://" + host("web") + "/",
		fmt.Sprintf("--streams=%d", streams), fmt.Sprintf("--stream-target=%s:%d", host("echo"), echoPort)}
	return deployment{Name: Load, Namespace: namespace, Image: image, Replicas: LoadReplicas, Args: flow(args...),
		Probe: "{tcpSocket: {port: 9090}, periodSeconds: 1}", Port: reportPort}
}

// flow is a YAML sequence on one line; JSON is YAML.
func flow(args ...string) string {
	b, err := json.Marshal(args)
	if err != nil {
		return "[]" // strings always encode
	}
	return string(b)
}

package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/cni-plugin/plugin"
)

// buildPlugin builds the real CNI plugin once; the directory goes with the test process's TMPDIR at the latest.
var buildPlugin = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "ambit-t-cni-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, plugin.Type)
	out, err := exec.Command("go", "build", "-o", bin, "github.com/ambit-mesh/ambit/cmd/ambit-cni").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build plugin: %w\n%s", err, out)
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := buildPlugin(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

const prevResult = `{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/var/run/netns/x"}],` +
	` "ips": [{"address": "%s/24", "gateway": "10.244.1.1", "interface": 0}], "dns": {}, "x-unknown": 1.0}`

// call is one run of the plugin, as a runtime does it.
type call struct {
	command, namespace, pod, uid, netns string
	cniVersion, prev                    string
	conf                                plugin.Config
}

type cniError struct {
	Code int
	Msg  string
}

func (c call) run(t *testing.T) (stdout string, failed *cniError) {
	t.Helper()
	dir, err := buildPlugin()
	if err != nil {
		t.Fatal(err)
	}
	conf := map[string]any{"name": "net", "cniVersion": c.cniVersion}
	b, err := json.Marshal(c.conf)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &conf); err != nil {
		t.Fatal(err)
	}
	conf["type"] = plugin.Type
	if c.prev != "" {
		conf["prevResult"] = json.RawMessage(c.prev)
	}
	stdin := &bytes.Buffer{}
	e := json.NewEncoder(stdin)
	e.SetEscapeHTML(false)
	if err := e.Encode(conf); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, plugin.Type))
	cmd.Stdin = stdin
	cmd.Env = []string{
		"CNI_COMMAND=" + c.command, "CNI_CONTAINERID=ctr", "CNI_NETNS=" + c.netns, "CNI_IFNAME=eth0", "CNI_PATH=" + dir,
		"CNI_NETNS_OVERRIDE=1",
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=" + c.namespace + ";K8S_POD_NAME=" + c.pod +
			";K8S_POD_INFRA_CONTAINER_ID=ctr;K8S_POD_UID=" + c.uid,
	}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		failed = &cniError{}
		if err := json.Unmarshal(out.Bytes(), failed); err != nil {
			t.Fatalf("failed without an error in JSON: %q, %q", out.String(), errOut.String())
		}
		return "", failed
	}
	return out.String(), nil
}

// add is a call of ADD for a pod of w.
func (w *world) add(pod string, p *testPod) call {
	return call{
		command: "ADD", namespace: "shop", pod: pod, uid: p.uid, netns: p.path, cniVersion: "1.0.0",
		prev: fmt.Sprintf(prevResult, p.ip),
		conf: plugin.Config{AgentSocket: w.plugin, ExcludeNamespaces: []string{"kube-system"}, LogFile: filepath.Join(w.dir, "plugin.log")},
	}
}

// compact is how the runtime's configuration passes a result: its white space is the encoder's.
func compact(t *testing.T, s string) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, []byte(s)); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func (c call) mustPass(t *testing.T) {
	t.Helper()
	out, failed := c.run(t)
	if failed != nil {
		t.Fatalf("%s: %+v", c.command, failed)
	}
	if want := compact(t, c.prev); out != want {
		t.Errorf("result changed:\n%s\n%s", want, out)
	}
}

// mustFail wants "try again later" with all texts in the message.
func (c call) mustFail(t *testing.T, texts ...string) {
	t.Helper()
	_, failed := c.run(t)
	if failed == nil {
		t.Fatalf("%s of %s/%s passed", c.command, c.namespace, c.pod)
	}
	if failed.Code != 11 {
		t.Errorf("code %d, want 11", failed.Code)
	}
	for _, s := range texts {
		if !strings.Contains(failed.Msg, s) {
			t.Errorf("message lacks %q: %s", s, failed.Msg)
		}
	}
}

// startingPod is a pod that has a network namespace and no process yet.
func startingPod(t *testing.T, dir, ip string) *testPod {
	t.Helper()
	p := &testPod{uid: newUID(t), ip: netip.MustParseAddr(ip)}
	name, n := newNetNS(t, dir, p.ip)
	p.path, p.netns = "/var/run/netns/"+name, n
	return p
}

func TestNewPodStartsInTheMesh(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("shop", "ambient")
	p := startingPod(t, w.dir, "10.244.1.20")
	w.start()
	z := w.proxy()
	w.pod("web", p.uid, "")
	add := w.add("web", p)
	add.mustPass(t)
	if !w.capture.has(p.uid) || !z.has(p.uid) {
		t.Fatal("the plugin returned before the pod was captured and served")
	}
	if log, err := os.ReadFile(filepath.Join(w.dir, "plugin.log")); err != nil || !strings.Contains(string(log), "pod=shop/web") {
		t.Errorf("log: %q, %v", log, err)
	}
	// The kubelet reports the address; nothing is opened anew.
	pod, err := w.kube.CoreV1().Pods("shop").Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: p.ip.String(), PodIPs: []corev1.PodIP{{IP: p.ip.String()}}}
	if _, err := w.kube.CoreV1().Pods("shop").Update(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.waitAnnotation("web", "enabled")
	if n := strings.Count(strings.Join(w.j.list(), " "), "open"); n != 1 {
		t.Errorf("listeners opened %d times", n)
	}
	check := add
	check.command = "CHECK"
	if _, failed := check.run(t); failed != nil {
		t.Errorf("CHECK: %+v", failed)
	}
	w.capture.mu.Lock()
	w.capture.broken[p.uid] = errors.New("link is missing")
	w.capture.mu.Unlock()
	check.mustFail(t, "link is missing")
}

func TestPodsOutsideTheMeshPass(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("shop", "ambient")
	w.start()
	p := startingPod(t, w.dir, "10.244.1.21")
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "out", UID: "u", Labels: map[string]string{ports.LabelDataplaneMode: "none"}}}
	pod.Spec.NodeName = testNode
	if _, err := w.kube.CoreV1().Pods("shop").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p.uid = "u"
	w.add("out", p).mustPass(t)
	if len(w.j.list()) > 0 {
		t.Errorf("something was done: %v", w.j.list())
	}
}

func TestWithoutAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := startingPod(t, w.dir, "10.244.1.22")
	add := w.add("web", p)

	exempt := add
	exempt.namespace = "kube-system"
	exempt.mustPass(t)
	noPod := add
	noPod.namespace, noPod.pod, noPod.uid = "", "", ""
	noPod.mustPass(t)
	del := add
	del.command, del.prev, del.netns = "DEL", "", ""
	if _, failed := del.run(t); failed != nil {
		t.Errorf("DEL: %+v", failed)
	}
	status := del
	status.command, status.cniVersion = "STATUS", "1.1.0"
	if _, failed := status.run(t); failed != nil {
		t.Errorf("STATUS: %+v", failed)
	}
	version := del
	version.command = "VERSION"
	if out, failed := version.run(t); failed != nil || !strings.Contains(out, `"1.1.0"`) || !strings.Contains(out, `"0.3.1"`) {
		t.Errorf("VERSION: %s %+v", out, failed)
	}

	begin := time.Now()
	add.mustFail(t, "ambit-cni: node agent is not reachable at "+w.plugin, "the pod is retried", "check DaemonSet istio-cni-node on this node")
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
}

// TestAnAgentThatIsBackSoonIsWaitedFor: the agent is replaced while a pod starts.
func TestAnAgentThatIsBackSoonIsWaitedFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := startingPod(t, w.dir, "10.244.1.23")
	w.pod("web", p.uid, "")
	if _, err := buildPlugin(); err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	var ended atomic.Bool
	done.Go(func() {
		defer ended.Store(true)
		w.add("web", p).mustPass(t)
	})
	never(t, "the plugin gave up at once", 500*time.Millisecond, ended.Load)
	w.start()
	done.Wait()
}

func TestRefusedPodDoesNotStartAndLeavesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("shop", "ambient")
	w.ackTimeout = 300 * time.Millisecond
	a, _ := w.start()
	p := startingPod(t, w.dir, "10.244.1.24")
	w.pod("web", p.uid, "")
	add := w.add("web", p)

	add.mustFail(t, `pod "shop/web": ztunnel on node "node-1" did not take the pod within 300ms: no ztunnel is connected; check DaemonSet ztunnel`)
	z := &fakeProxy{t: t, j: w.j, refuse: func(string) error { return errors.New("certificate authority says no") }}
	z.connect(w.zds)
	defer z.stop()
	add.mustFail(t, `pod "shop/web"`, "certificate authority says no", "check DaemonSet ztunnel")
	if w.capture.has(p.uid) || a.get(p.uid) != nil {
		t.Error("something stays")
	}
	z.setRefuse(nil)
	add.mustPass(t)
}

func TestPodThatTheAPIServerShowsLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("shop", "ambient")
	w.start()
	z := w.proxy()
	p := startingPod(t, w.dir, "10.244.1.25")
	var done sync.WaitGroup
	done.Go(func() { w.add("web", p).mustPass(t) })
	waitFor(t, "the agent to ask for the pod", func() bool {
		for _, act := range w.kube.Actions() {
			if act.Matches("get", "pods") {
				return true
			}
		}
		return false
	})
	w.pod("web", p.uid, "")
	done.Wait()
	if !z.has(p.uid) {
		t.Error("not enrolled")
	}
}

func TestUnknownPodIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start()
	p := startingPod(t, w.dir, "10.244.1.26")
	w.pod("web", "another-uid", "")
	w.add("nobody", p).mustFail(t, `pod "shop/nobody": whether it belongs in the mesh is not known`, "reaches the API server")
	w.add("web", p).mustFail(t, `the API server has UID "another-uid"`)
}

// TestSandboxMadeAnew: the pod keeps its UID and gets another network namespace.
func TestSandboxMadeAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("shop", "ambient")
	a, _ := w.start()
	z := w.proxy()
	p := startingPod(t, w.dir, "10.244.1.27")
	w.pod("web", p.uid, "")
	w.add("web", p).mustPass(t)
	q := startingPod(t, w.dir, "10.244.1.28")
	q.uid = p.uid
	w.add("web", q).mustPass(t)
	if got := a.get(p.uid).netns.Inode(); got != q.netns.Inode() {
		t.Error("the old network namespace is still tracked")
	}
	if !z.has(p.uid) || !slices.Equal(w.capture.ips(p.uid), []netip.Addr{q.ip}) {
		t.Error("not captured anew")
	}
}

func TestHostNetworkNamespaceIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("shop", "ambient")
	w.start()
	w.proxy()
	p := startingPod(t, w.dir, "10.244.1.29")
	w.pod("web", p.uid, "")
	p.path = fmt.Sprintf("/proc/%d/ns/net", os.Getpid())
	w.add("web", p).mustFail(t, "node's own network namespace")
}

func TestResultsOfAllVersions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("shop", "ambient")
	w.start()
	w.proxy()
	for i, c := range []struct{ version, prev string }{
		{"0.2.0", `{"cniVersion":"0.2.0","ip4":{"ip":"%s/24"},"dns":{}}`},
		{"0.3.1", `{"cniVersion":"0.3.1","ips":[{"version":"4","address":"%s/24"}],"dns":{}}`},
		{"0.4.0", `{"cniVersion":"0.4.0","ips":[{"version":"4","address":"%s/24"}],"dns":{}}`},
		{"1.0.0", `{"cniVersion":"1.0.0","ips":[{"address":"%s/24"}],"dns":{}}`},
		{"1.1.0", `{"cniVersion":"1.1.0","ips":[{"address":"%s/24"}],"dns":{}}`},
	} {
		t.Run(c.version, func(t *testing.T) {
			p := startingPod(t, w.dir, fmt.Sprintf("10.244.1.%d", 40+i))
			name := fmt.Sprintf("web-%d", i)
			w.pod(name, p.uid, "")
			add := w.add(name, p)
			add.cniVersion, add.prev = c.version, fmt.Sprintf(c.prev, p.ip)
			add.mustPass(t)
			if !w.capture.has(p.uid) {
				t.Error("not captured")
			}
		})
	}
}

func TestBadConfigurationIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := startingPod(t, w.dir, "10.244.1.30")
	for name, change := range map[string]func(*call){
		"no prevResult":      func(c *call) { c.prev = "" },
		"no agent socket":    func(c *call) { c.conf.AgentSocket = "" },
		"prevResult garbage": func(c *call) { c.prev = `{"ips": 5}` },
		"bad address":        func(c *call) { c.prev = `{"cniVersion":"1.0.0","ips":[{"address":"x"}]}` },
	} {
		c := w.add("web", p)
		change(&c)
		if _, failed := c.run(t); failed == nil || !strings.Contains(failed.Msg, "ambit-cni") {
			t.Errorf("%s: %+v", name, failed)
		}
	}
}

package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/charts"
	"github.com/ambit-mesh/ambit/cmd/ambit/internal/release"
	"github.com/ambit-mesh/ambit/internal/kube"
)

type uninstall struct {
	cluster
	purgeCRDs, force, adopt bool
	timeout                 time.Duration
}

func newUninstall() *cobra.Command {
	o := &uninstall{}
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove the mesh",
		Long: "uninstall removes the four releases in the reverse order of install. The custom resource definitions stay, and\n" +
			"with them all policies, unless --purge-crds is given; so does the namespace, with the signing key.\n" +
			"It refuses while a namespace or pod is labelled for the mesh, because their traffic would be plaintext from then on,\n" +
			"and on a node whose agent does not run they would stay captured: remove the labels first, which breaks no connection.",
		Example: "  kubectl label namespace shop istio.io/dataplane-mode-\n" +
			"  ambit uninstall",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.register(cmd)
	f := cmd.Flags()
	f.BoolVar(&o.purgeCRDs, "purge-crds", false, "also delete the custom resource definitions, with every object of these kinds")
	f.BoolVar(&o.force, "force", false, "go on although namespaces or pods are labelled for the mesh")
	f.BoolVar(&o.adopt, "adopt", false, "remove releases of these names also when they were made from another project's charts")
	f.DurationVar(&o.timeout, "timeout", defaultTimeout, "how long to wait for each release's objects to go")
	return cmd
}

func (o *uninstall) run(ctx context.Context, out, errOut io.Writer) error {
	releases, err := o.releases(errOut)
	if err != nil {
		return err
	}
	clients, err := kube.New(kube.Config{Kubeconfig: o.kubeconfig, Context: o.context, UserAgent: "ambit"})
	if err != nil {
		return err
	}
	labelled, err := enrolled(ctx, clients.Kube)
	if err != nil {
		return err
	}
	if len(labelled) > 0 && !o.force {
		return fmt.Errorf("uninstall: still labelled %s=%s: %s (hint: kubectl label … %s-, or --force)",
			ports.LabelDataplaneMode, ports.DataplaneModeAmbient, strings.Join(labelled, ", "), ports.LabelDataplaneMode)
	}
	p := newProgress(errOut)
	parts := charts.Parts()
	slices.Reverse(parts)
	for _, part := range parts {
		if err := ctx.Err(); err != nil {
			return err
		}
		p.step("%s: removing", release.Name(part))
		found, err := releases.Remove(part, o.timeout, o.adopt)
		if err != nil {
			return err
		}
		if found {
			p.step("%s: removed", release.Name(part))
		} else {
			p.step("%s: was not installed", release.Name(part))
		}
	}
	kept := "The custom resource definitions and the namespace " + o.namespace + " were kept."
	if o.purgeCRDs {
		if err := o.purge(ctx, clients, releases, p); err != nil {
			return err
		}
		kept = "The namespace " + o.namespace + " was kept."
	}
	_, err = fmt.Fprintf(out, "The mesh is removed. %s\n", kept)
	return err
}

// enrolled names the namespaces and pods that ask for the mesh.
func enrolled(ctx context.Context, client kubernetes.Interface) ([]string, error) {
	selector := metav1.ListOptions{LabelSelector: ports.LabelDataplaneMode + "=" + ports.DataplaneModeAmbient}
	namespaces, err := client.CoreV1().Namespaces().List(ctx, selector)
	if err != nil {
		return nil, fmt.Errorf("list namespaces of the mesh: %w", err)
	}
	pods, err := client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, selector)
	if err != nil {
		return nil, fmt.Errorf("list pods of the mesh: %w", err)
	}
	var names []string
	for _, ns := range namespaces.Items {
		names = append(names, "namespace "+ns.Name)
	}
	for _, pod := range pods.Items {
		names = append(names, "pod "+pod.Namespace+"/"+pod.Name)
	}
	return names, nil
}

// purge deletes the definitions that chart base holds.
func (o *uninstall) purge(ctx context.Context, clients *kube.Clients, releases *release.Client, p *progress) error {
	base, err := releases.Render(ctx, "base", release.Values{}.For("base", o.namespace))
	if err != nil {
		return err
	}
	crds := clients.Dynamic.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	objects, err := decode[object](base.Manifest)
	if err != nil {
		return err
	}
	for _, o := range objects {
		err := crds.Delete(ctx, o.Metadata.Name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete definition %q: %w", o.Metadata.Name, err)
		}
	}
	p.step("%d custom resource definitions: deleted", len(objects))
	return nil
}

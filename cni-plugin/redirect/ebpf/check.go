package ebpf

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
)

// Check implements redirect.Redirector. It reads the kernel, not what this
// process remembers.
func (r *Redirector) Check(_ context.Context, pod redirect.Pod) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.probes.Ensure()
	if err := r.syncSources(); err != nil {
		return fmt.Errorf("check pod %q: %w", pod.UID, err)
	}
	t, err := r.inspect(pod)
	if err != nil {
		return fmt.Errorf("check pod %q: %w", pod.UID, err)
	}
	missing := []error{r.checkConnect(), r.checkMaps(t), r.checkState(t), t.setup().Check(pod.NetNS)}
	if err := checkSteer(filepath.Join(t.dir, steerPin), pod.NetNS); err != nil {
		missing = append(missing, fmt.Errorf("lookup program: %w", err))
	}
	for _, l := range t.Found.Links {
		if err := checkGuard(t.guardPin(l), l.Index); err != nil {
			missing = append(missing, fmt.Errorf("guard of interface %q: %w", l.Name, err))
		}
	}
	if err := errors.Join(missing...); err != nil {
		return fmt.Errorf("capture of pod %q is incomplete: %w", pod.UID, err)
	}
	return nil
}

func (r *Redirector) checkMaps(t *target) error {
	var missing []error
	var one uint32
	if err := r.objects.Enrolled.Lookup(t.Cookie, &one); err != nil {
		missing = append(missing, fmt.Errorf("entry in the map of enrolled pods: %w", err))
	}
	missing = append(missing, r.probes.CheckPod(t.Cookie, t.Unique))
	have := listeningIn(t.dir)
	for role := range bpf.SteerRoleROLES {
		if !slices.Contains(have, role) {
			missing = append(missing, fmt.Errorf("%s listener is closed", roleName(role)))
		}
	}
	return errors.Join(missing...)
}

func (r *Redirector) checkState(t *target) error {
	s, err := readState(t.dir)
	if err != nil {
		return err
	}
	if s.NetnsCookie != t.Cookie || s.Mode != bpf.SteerModeCAPTURING {
		return errors.New("the lookup program is set for another netns, or drains")
	}
	if int(s.AddrsLen) != len(t.Own) {
		return errors.New("the lookup program knows other addresses")
	}
	for _, a := range s.Addrs[:s.AddrsLen] {
		if !slices.Contains(t.Own, a.Address()) {
			return errors.New("the lookup program knows other addresses")
		}
	}
	return nil
}

package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/api/ports"
)

// Reasons of the Events that the agent writes on pods.
const (
	// EventNotCaptured: the pod belongs in the mesh but is not captured, or nobody serves it.
	EventNotCaptured = "MeshEnrolmentFailed"
	// EventRepaired: capture was incomplete in the kernel and has been put back.
	EventRepaired = "MeshCaptureRepaired"
	// EventNotReleased: the pod left the mesh but capture could not be taken away.
	EventNotReleased = "MeshReleaseFailed"
)

// patchTimeout bounds one write to the API server.
const patchTimeout = 10 * time.Second

// annotate sets the pod's redirection annotation; empty removes it. The status subresource is enough for it and
// gives the agent less power than the pod itself would. A pod that is gone, or has been replaced under the same
// name (the UID in the patch says which one is meant), needs none.
func (a *Agent) annotate(ctx context.Context, pod *corev1.Pod, value string) error {
	if pod.Annotations[ports.AnnotationRedirection] == value {
		return nil
	}
	v := &value
	if value == "" {
		v = nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid":         pod.UID,
		"annotations": map[string]*string{ports.AnnotationRedirection: v},
	}})
	if err != nil {
		return fmt.Errorf("encode annotation: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, patchTimeout)
	defer cancel()
	_, err = a.kube.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("annotate pod %q: %w", pod.Namespace+"/"+pod.Name, err)
	}
	return nil
}

// warn writes an Event on the pod, once per cause.
func (a *Agent) warn(pod *corev1.Pod, reason, message string) {
	a.mu.Lock()
	same := a.warned[string(pod.UID)] == reason+message
	a.warned[string(pod.UID)] = reason + message
	a.mu.Unlock()
	if !same {
		a.events.Event(pod, corev1.EventTypeWarning, reason, message)
	}
}

// unwarn lets the same cause be told again.
func (a *Agent) unwarn(uid string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.warned, uid)
}

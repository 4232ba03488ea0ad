package ca

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/ambit-mesh/ambit/api/ports"
)

// Keys of the Secrets, which are also the file names in a directory.
const (
	keyCert  = "ca-cert.pem"
	keyKey   = "ca-key.pem"
	keyChain = "cert-chain.pem"
	keyRoots = "root-cert.pem"
	// secretType is Istio's for the Secret that istiod makes.
	secretType corev1.SecretType = "istio.io/ca-root"
	// storeTimeout bounds one attempt to read or make a Secret.
	storeTimeout = 15 * time.Second
	// storeRetry is the pause between attempts while the API server cannot be reached.
	storeRetry = 2 * time.Second
)

// ErrUnusable is wrapped by every error about an authority that exists and cannot be used.
var ErrUnusable = errors.New("unusable authority")

// AwaitSecrets is FromSecrets, repeated while the API server does not answer.
func AwaitSecrets(ctx context.Context, c kubernetes.Interface, namespace, trustDomain string, log *slog.Logger) (*Bundle, error) {
	t := time.NewTicker(storeRetry)
	defer t.Stop()
	for {
		b, err := FromSecrets(ctx, c, namespace, trustDomain, log)
		if err == nil || errors.Is(err, ErrUnusable) {
			return b, err
		}
		log.Error("authority not available yet", "error", err)
		select {
		case <-ctx.Done():
			return nil, err
		case <-t.C:
		}
	}
}

// FromSecrets reads the signer: the one plugged in as Secret cacerts, else the
// generated one, which the first of all replicas makes and the others read.
func FromSecrets(ctx context.Context, c kubernetes.Interface, namespace, trustDomain string, log *slog.Logger) (*Bundle, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	secrets := c.CoreV1().Secrets(namespace)
	s, err := secrets.Get(ctx, ports.CASecret, metav1.GetOptions{})
	if err == nil {
		b, err := fromSecret(s)
		if err == nil {
			log.Info("signing with the plugged-in authority", "secret", s.Name, "expires", b.NotAfter())
		}
		return b, err
	}
	if !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("read secret %q: %w", ports.CASecret, err)
	}
	s, err = secrets.Get(ctx, ports.GeneratedCASecret, metav1.GetOptions{})
	if err == nil {
		return fromSecret(s)
	}
	if !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("read secret %q: %w", ports.GeneratedCASecret, err)
	}
	cert, key, err := NewRoot(trustDomain, time.Now())
	if err != nil {
		return nil, err
	}
	made := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: ports.GeneratedCASecret, Namespace: namespace},
		Type:       secretType,
		Data:       map[string][]byte{keyCert: cert, keyKey: key},
	}
	s, err = secrets.Create(ctx, made, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		// Another replica was first; its root is the mesh's.
		s, err = secrets.Get(ctx, ports.GeneratedCASecret, metav1.GetOptions{})
	} else if err == nil {
		log.Info("made a root authority", "secret", s.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("make secret %q: %w", ports.GeneratedCASecret, err)
	}
	return fromSecret(s)
}

func fromSecret(s *corev1.Secret) (*Bundle, error) {
	b, err := NewBundle(s.Data[keyCert], s.Data[keyKey], s.Data[keyChain], s.Data[keyRoots], time.Now())
	if err != nil {
		return nil, fmt.Errorf("use secret %q: %w: %w", s.Name, ErrUnusable, err)
	}
	return b, nil
}

// FromDirectory reads the signer from files of the same names, and makes it there
// if there is none. An empty path keeps it in memory.
func FromDirectory(dir, trustDomain string) (*Bundle, error) {
	if dir == "" {
		cert, key, err := NewRoot(trustDomain, time.Now())
		if err != nil {
			return nil, err
		}
		return NewBundle(cert, key, nil, nil, time.Now())
	}
	data := map[string][]byte{}
	for _, name := range []string{keyCert, keyKey, keyChain, keyRoots} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read authority in %q: %w", dir, err)
		}
		data[name] = b
	}
	if data[keyCert] == nil && data[keyKey] == nil {
		if err := writeRoot(dir, trustDomain, data); err != nil {
			return nil, err
		}
	}
	b, err := NewBundle(data[keyCert], data[keyKey], data[keyChain], data[keyRoots], time.Now())
	if err != nil {
		return nil, fmt.Errorf("use authority in %q: %w", dir, err)
	}
	return b, nil
}

// writeRoot makes a root in dir. The key is written first: a certificate without key would stop the next start.
func writeRoot(dir, trustDomain string, data map[string][]byte) error {
	cert, key, err := NewRoot(trustDomain, time.Now())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make authority in %q: %w", dir, err)
	}
	data[keyCert], data[keyKey], data[keyRoots] = cert, key, cert
	for _, f := range []struct {
		name string
		mode fs.FileMode
	}{{keyKey, 0o600}, {keyCert, 0o644}, {keyRoots, 0o644}} {
		if err := os.WriteFile(filepath.Join(dir, f.name), data[f.name], f.mode); err != nil {
			return fmt.Errorf("make authority in %q: %w", dir, err)
		}
	}
	return nil
}

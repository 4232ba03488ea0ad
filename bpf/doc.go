// Package bpf holds the programs that capture pods' traffic in the kernel, and
// their generated loaders: one C file per hook, compiled by bpf2go, its output
// committed so that building needs only Go.
//
// cni-plugin/redirect calls it. The C sources depend on no header but their own
// (include/), and everything is for little-endian machines, which are all that
// Kubernetes runs Go on today, s390x apart.
//
// The programs decide nothing about the mesh: which pods, listeners and probe
// sources there are is in maps that the caller fills.
package bpf

//go:generate go tool bpf2go -target bpfel -cflags "-O2 -g -Wall -Werror -Iinclude" -type pod -type mode -type role Steer steer.c
//go:generate go tool bpf2go -target bpfel -cflags "-O2 -g -Wall -Werror -Iinclude" Connect connect.c
//go:generate go tool bpf2go -target bpfel -cflags "-O2 -g -Wall -Werror -Iinclude" Guard guard.c
//go:generate go tool bpf2go -target bpfel -cflags "-O2 -g -Wall -Werror -Iinclude" Kubelet kubelet.c

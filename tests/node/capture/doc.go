// Package capture holds both kinds of pod traffic capture (ebpf and nft below
// cni-plugin/redirect) to the same behaviour, on real network namespaces: a
// node with pods behind veth pairs, apps, and a small transparent proxy in
// ztunnel's place. It has only tests; they need root, and touch no namespace,
// cgroup or mount but their own.
package capture

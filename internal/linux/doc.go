// Package linux is where Ambit touches the kernel's sockets and network
// namespaces: entering a pod's namespace, opening and dialling sockets in it
// without being in it, reading the original destination of a redirected
// connection, and passing file descriptors over a unix socket.
//
// ztunnel, the node agent and the capture packages call it. It is the only
// package that uses raw system calls on sockets.
//
// What always holds: a goroutine is never left on a thread that is in another
// namespace (such a thread ends); every file descriptor has one owner, is
// close-on-exec and, for sockets, non-blocking; nothing here waits in a system
// call, so a call costs no thread while it waits.
//
// os.File.Fd switches a file to blocking mode for everyone who shares it, also
// in other processes. Callers use WithFD instead.
//
// It knows nothing of pods, meshes or capture; marks and addresses come from
// the caller.
package linux

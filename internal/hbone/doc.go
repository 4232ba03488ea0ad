// Package hbone is the tunnel of the mesh: HTTP/2 CONNECT over TLS 1.3.
package hbone

// Header is one field of a request or a response; names are lower case.
type Header struct{ Name, Value string }

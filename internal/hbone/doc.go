// Package hbone is the tunnel of the mesh: HTTP/2 CONNECT over mutually authenticated TLS 1.3, as Istio's ztunnel and
// Envoy speak it. ztunnel opens streams through a [Pool] and serves them with a [Server]; both give it a [Stream], which
// it splices to an application's TCP connection.
//
// # On the wire
//
//	application bytes   |            DATA payload            |   at most 16,375 bytes, so that one frame fills one record
//	HTTP/2 frame        | len 24 | type 8 | flags 8 | id 32  | payload          RFC 9113 section 4.1
//	TLS record          | 23 | 3.3 | len 16 | frame, 23, tag  |                  RFC 8446 section 5.2
//	TCP port 15008
//
//	client                                            server
//	PRI * HTTP/2.0…, SETTINGS, WINDOW_UPDATE 0  ───▶
//	                                            ◀───  SETTINGS, WINDOW_UPDATE 0
//	HEADERS 1 :method CONNECT                   ───▶
//	          :authority 10.1.2.3:8080
//	          baggage, forwarded, traceparent           (connects to the application, then)
//	                                            ◀───  HEADERS 1 :status 200, baggage
//	DATA 1 …                                    ───▶
//	                                            ◀───  DATA 1 …
//	DATA 1 END_STREAM (the application's FIN)   ───▶
//	                                            ◀───  DATA 1 END_STREAM
//
// An application's reset is RST_STREAM(CONNECT_ERROR), and a stream's reset is the application's; RST_STREAM with
// NO_ERROR or CANCEL reads as a FIN. A status other than 2xx comes with END_STREAM and is a [StatusError].
//
// # What always holds
//
//   - One pass: bytes go from the decrypted record to the application's socket, and from the application's socket to the
//     record, without a queue between as long as both sockets take them.
//   - The reader of a tunnel never waits for a write, so one stream cannot stall another. Connection credit is returned
//     on receipt, stream credit when the application has taken the bytes.
//   - Memory is bounded: what may wait for a tunnel's socket by Limits.SendQueue, what may wait for applications by the
//     streams' windows and [Memory]'s cap, header blocks, answers to control frames, and streams per tunnel by constants.
//   - A tunnel that ends, other than in good order, resets its applications: a cut never looks like an end.
//   - No state lives in a goroutine's stack alone: a tunnel can be frozen at safe points and resumed from its fields.
//
// # What it does not do
//
// It knows no policy, and no identity but the names in [Target]: the caller's tls.Config verifies peers. It does not
// dial applications, does not speak HTTP/2 other than CONNECT, and keeps no metrics beyond [ConnInfo] and [Stream.Bytes].
package hbone

// Header is one field of a request or a response; names are lower case.
type Header struct{ Name, Value string }

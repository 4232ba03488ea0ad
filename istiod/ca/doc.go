// Package ca is the mesh's certificate authority: it serves
// IstioCertificateService and signs the identities of workloads. app.go makes one
// Authority, one Authenticator and one Server.
//
// Issuing is split into steps that each refuse for themselves: authenticate the
// caller (token.go), decide which identity it may have (authorize.go), check the
// request (csr.go), build the certificate (template.go), sign it (authority.go).
//
// What always holds:
//   - Of a request only its public key is used; who the caller is comes from the
//     API server's verdict on its token.
//   - A node proxy gets only identities of pods of the mesh on its own node.
//   - A caller learns that it was refused, the log learns why.
//   - No certificate outlives its signer.
//
// It does not keep the keys of anyone but itself, and does not distribute the
// roots (package status does).
package ca

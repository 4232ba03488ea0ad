// Package jwks keeps the JSON Web Key Sets of token issuers: it fetches them by
// their URI, or finds the URI by OpenID Connect discovery, and fetches them again
// and again, since issuers rotate keys. Package layer7 asks it for the keys of each
// rule of a RequestAuthentication; proxies get keys inline and fetch nothing.
//
// What always holds: Get never waits. Keys that were once fetched stay until newer
// ones are there, whatever fails. Where there are none, Get gives a set that no token
// satisfies, so that tokens are refused (401) and not overlooked. Only http and https
// are spoken, and a redirect never leads from https to http. The number of sets, of
// fetches at a time, of redirects, the size and the time of a fetch are bounded.
//
// Addresses are not filtered: issuers inside the cluster have private addresses, so a
// URI may name any host that istiod can reach. Who may write a RequestAuthentication
// can thus make istiod send GET requests there; the answer is used only if it is a key
// set, and its text is never shown. A NetworkPolicy on istiod limits it where that matters.
//
// It verifies no token and knows no policy.
package jwks

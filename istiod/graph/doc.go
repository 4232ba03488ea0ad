// Package graph knows which outputs an input touches. app.go gives it to a
// watch.Source as the handler of events; it translates each object, finds by its
// indexes what depends on the change, recomputes only that, and hands on only
// what came out different. The CA asks it which pods run where, the debug pages
// what it holds.
//
// What always holds: after Handle returns, the outputs are those that all inputs
// so far give, whatever their order was; an object that cannot be translated
// leaves the outputs of its last good form in place and is listed by Problems
// until it is good or gone; before Synced nothing is computed.
//
// It does not read objects' fields (translate does) and does not know who
// receives the outputs (push does).
package graph

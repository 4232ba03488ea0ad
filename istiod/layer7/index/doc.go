// Package index holds what layer 7 reads, filed by what may ask for it, and notes
// who asked. Package layer7 puts objects in and computes its outputs from a
// Reader; package resolve gets everything it knows through one.
//
// What always holds: each answer of a Reader is recorded as a Dep; whatever
// changes that answer later is reported with the same Dep by Put or Touched, so
// that an output is recomputed exactly when something it looked at changed,
// something that was not there included. Lists are in Gateway API's order of
// precedence: oldest first, then by namespace and name.
//
// It does not translate objects, and it is not safe for use by several goroutines:
// layer7 holds a lock around it.
package index

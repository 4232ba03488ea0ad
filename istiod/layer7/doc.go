// Package layer7 computes what waypoints and gateways are told, and what authors
// of routes and policies are told. app.go gives it the events of layer 7's kinds
// after package graph has had its own; it translates each object, finds by the
// notes that every computation left (package index) what the change touches,
// recomputes that with pure functions (package resolve), has what came out
// different rendered as Envoy's configuration, and hands it to the proxy's cache.
//
// What always holds: between two calls of flush outputs are those that all
// inputs give, whatever their order was; an object that cannot be read leaves its
// last good form in force, and its status and Problems say why; a part that
// cannot be rendered leaves the last one with the proxy; nothing is served before
// Synced, and a change of one service touches that service's parts only.
//
// It does not know Envoy (waypoint/config renders), writes nothing into the
// cluster (istiod/status and waypoint/deploy do) and looks into no API object.
package layer7

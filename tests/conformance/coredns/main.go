// Command coredns is CoreDNS with the plugins that the Gateway API conformance
// suite's base manifests configure. The suite's set-up waits for its pod, also
// when no test asks it anything. It is a module of its own, so that CoreDNS's pins
// do not bind the suite's.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/whoami"
)

func main() {
	dnsserver.Directives = []string{"errors", "log", "whoami", "forward"}
	coremain.Run()
}

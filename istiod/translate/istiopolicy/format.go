package istiopolicy

import (
	"fmt"
	"strings"
)

// checkFormat reads a format string of access logs as Envoy does (its documentation, "Access log format strings"): literal
// text, %% and commands of the form %NAME%, %NAME(arguments)% and %NAME(arguments):length%. It knows no names: Envoy
// gains some with every version. A broken string would be refused by a proxy together with everything sent along.
func checkFormat(format string) error {
	s := format
	for at := strings.IndexByte(s, '%'); at >= 0; at = strings.IndexByte(s, '%') {
		s = s[at+1:]
		if strings.HasPrefix(s, "%") {
			s = s[1:]
			continue
		}
		rest, ok := command(s)
		if !ok {
			return fmt.Errorf("parse format %q: no command begins at byte %d; a percent sign itself is written twice", cut(format), len(format)-len(s)-1)
		}
		s = rest
	}
	return nil
}

// command takes what follows a percent sign up to the closing one.
func command(s string) (rest string, ok bool) {
	n := 0
	for n < len(s) && (s[n] >= 'A' && s[n] <= 'Z' || s[n] >= '0' && s[n] <= '9' || s[n] == '_') {
		n++
	}
	if n == 0 {
		return "", false
	}
	s = s[n:]
	if strings.HasPrefix(s, "(") {
		end := strings.IndexByte(s, ')')
		// An argument may hold parentheses, as in %CEL(f(x))%: the last one before a percent sign or length counts.
		for end >= 0 && end+1 < len(s) && s[end+1] != '%' && s[end+1] != ':' {
			next := strings.IndexByte(s[end+1:], ')')
			if next < 0 {
				return "", false
			}
			end += 1 + next
		}
		if end < 0 {
			return "", false
		}
		s = s[end+1:]
	}
	if strings.HasPrefix(s, ":") {
		s = s[1:]
		n = 0
		for n < len(s) && s[n] >= '0' && s[n] <= '9' {
			n++
		}
		if n == 0 {
			return "", false
		}
		s = s[n:]
	}
	return strings.CutPrefix(s, "%")
}

// quoteLimit bounds what of a bad expression is repeated in a message, in bytes.
const quoteLimit = 60

func cut(s string) string {
	if len(s) > quoteLimit {
		return strings.ToValidUTF8(s[:quoteLimit], "") + "…"
	}
	return s
}

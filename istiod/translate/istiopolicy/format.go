package istiopolicy

import (
	"fmt"
	"strings"
)

// maxFormatDigits of a length.
const maxFormatDigits = 6

// CheckFormat reads a format string of access logs as Envoy does (its documentation, "Access log format strings"): literal
// text, %% and commands of the form %NAME%, %NAME(arguments)% and %NAME(arguments):length%. A string that Envoy does not
// understand would be refused by a proxy together with everything sent along.
func CheckFormat(format string) error {
	s := format
	for at := strings.IndexByte(s, '%'); at >= 0; at = strings.IndexByte(s, '%') {
		s = s[at+1:]
		if strings.HasPrefix(s, "%") {
			s = s[1:]
			continue
		}
		rest, cause := command(s)
		if cause != "" {
			return fmt.Errorf("parse format %q: the command at byte %d %s", cut(format), len(format)-len(s)-1, cause)
		}
		s = rest
	}
	return nil
}

// command takes what follows a percent sign up to the closing one. cause says what is wrong with it.
func command(s string) (rest, cause string) {
	const broken = "has no end; a percent sign itself is written twice"
	n := 0
	for n < len(s) && (s[n] >= 'A' && s[n] <= 'Z' || s[n] >= '0' && s[n] <= '9' || s[n] == '_') {
		n++
	}
	name, args, open, length := s[:n], "", false, false
	s = s[n:]
	if strings.HasPrefix(s, "(") {
		end := strings.IndexByte(s, ')')
		// An argument may hold parentheses, as in %CEL(f(x))%: the first before a percent sign or length counts.
		for end >= 0 && end+1 < len(s) && s[end+1] != '%' && s[end+1] != ':' {
			next := strings.IndexByte(s[end+1:], ')')
			if next < 0 {
				return "", broken
			}
			end += 1 + next
		}
		if end < 0 {
			return "", broken
		}
		args, open = s[1:end], true
		s = s[end+1:]
	}
	if strings.HasPrefix(s, ":") {
		s = s[1:]
		n = 0
		for n < len(s) && s[n] >= '0' && s[n] <= '9' {
			n++
		}
		if n == 0 || n > maxFormatDigits {
			return "", "has a length that is not a number"
		}
		length = true
		s = s[n:]
	}
	rest, ended := strings.CutPrefix(s, "%")
	if name == "" || !ended {
		return "", broken
	}
	if cause := badCommand(name, args, open, length); cause != "" {
		return "", cut(name) + " " + cause
	}
	return rest, ""
}

// quoteLimit bounds what of a bad expression is repeated in a message, in bytes.
const quoteLimit = 60

func cut(s string) string {
	if len(s) > quoteLimit {
		return strings.ToValidUTF8(s[:quoteLimit], "") + "…"
	}
	return s
}

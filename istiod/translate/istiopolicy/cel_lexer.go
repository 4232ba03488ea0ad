package istiopolicy

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// next reads the next token.
func (c *celParser) next() error {
	c.skip()
	c.start = c.at
	rest := c.in[c.at:]
	n := 0
	switch {
	case rest == "":
		c.kind, c.token = celEnd, ""
		return nil
	case celStringAt(rest) >= 0:
		c.kind = celString
		var err error
		if n, err = celQuoted(rest); err != nil {
			return fmt.Errorf("%w at byte %d", err, c.start)
		}
	case celLetter(rest[0]):
		c.kind = celName
		for n < len(rest) && (celLetter(rest[n]) || celDigit(rest[n])) {
			n++
		}
	case celDigit(rest[0]), len(rest) > 1 && rest[0] == '.' && celDigit(rest[1]):
		c.kind = celNumber
		n = celNumberAt(rest)
		if n < len(rest) && (celLetter(rest[n]) || celDigit(rest[n])) || !celNumberFits(rest[:n]) {
			return fmt.Errorf("bad number at byte %d", c.start)
		}
	default:
		c.kind = celOperator
		n = 1
		if len(rest) > 1 {
			switch rest[:2] {
			case "||", "&&", "<=", ">=", "==", "!=":
				n = 2
			}
		}
		if n == 1 && !strings.Contains("?:<>+-*/%!.,()[]{}", rest[:1]) {
			_, size := utf8.DecodeRuneInString(rest)
			return fmt.Errorf("unexpected %q at byte %d", rest[:size], c.start)
		}
	}
	c.token = rest[:n]
	c.at += n
	return nil
}

// skip passes white space and comments.
func (c *celParser) skip() {
	for c.at < len(c.in) {
		switch {
		case strings.IndexByte(" \t\r\n\f", c.in[c.at]) >= 0:
			c.at++
		case strings.HasPrefix(c.in[c.at:], "//"):
			end := strings.IndexByte(c.in[c.at:], '\n')
			if end < 0 {
				end = len(c.in) - c.at
			}
			c.at += end
		default:
			return
		}
	}
}

func celLetter(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b == '_'
}

func celDigit(b byte) bool { return b >= '0' && b <= '9' }

// celNumberAt is the length of the number that s begins with.
func celNumberAt(s string) int {
	digits := func(n int, ok func(byte) bool) int {
		for n < len(s) && ok(s[n]) {
			n++
		}
		return n
	}
	unsigned := func(n int) int {
		if n < len(s) && (s[n] == 'u' || s[n] == 'U') {
			n++
		}
		return n
	}
	if len(s) > 2 && s[0] == '0' && s[1] == 'x' { // Envoy knows no 0X
		return unsigned(digits(2, func(b byte) bool { return celDigit(b) || b >= 'a' && b <= 'f' || b >= 'A' && b <= 'F' }))
	}
	n := digits(0, celDigit)
	whole := true
	if n+1 < len(s) && s[n] == '.' && celDigit(s[n+1]) {
		n, whole = digits(n+1, celDigit), false
	}
	if n < len(s) && (s[n] == 'e' || s[n] == 'E') {
		exp := n + 1
		if exp < len(s) && (s[exp] == '+' || s[exp] == '-') {
			exp++
		}
		if end := digits(exp, celDigit); end > exp {
			return end
		}
	}
	if whole {
		n = unsigned(n)
	}
	return n
}

// celNumberFits tells whether a literal is one of int64, uint64 or a finite double.
func celNumberFits(s string) bool {
	if digits, ok := strings.CutSuffix(strings.ToLower(s), "u"); ok {
		_, err := strconv.ParseUint(celBase(digits))
		return err == nil
	}
	if strings.HasPrefix(s, "0x") || !strings.ContainsAny(s, ".eE") {
		_, err := strconv.ParseInt(celBase(s))
		return err == nil
	}
	_, err := strconv.ParseFloat(s, 64)
	return err == nil
}

// celBase are the arguments for reading digits: 16 is the only base that is not ten.
func celBase(s string) (digits string, base, bits int) {
	if hex, ok := strings.CutPrefix(s, "0x"); ok {
		return hex, 16, 64
	}
	return s, 10, 64
}

// celStringAt is where the quote of a literal is: behind b, r or br. -1 if s begins with no literal.
func celStringAt(s string) int {
	n := 0
	if n < len(s) && (s[n] == 'b' || s[n] == 'B') {
		n++
	}
	if n < len(s) && (s[n] == 'r' || s[n] == 'R') {
		n++
	}
	if n < len(s) && (s[n] == '"' || s[n] == '\'') {
		return n
	}
	return -1
}

// celQuoted is the length of the literal that s begins with.
func celQuoted(s string) (int, error) {
	at := celStringAt(s)
	raw, bytes := strings.ContainsAny(s[:at], "rR"), strings.ContainsAny(s[:at], "bB")
	quote := s[at : at+1]
	if long := strings.Repeat(quote, 3); strings.HasPrefix(s[at:], long) {
		quote = long
	}
	n := at + len(quote)
	for n < len(s) {
		switch {
		case strings.HasPrefix(s[n:], quote):
			if raw && s[n-1] == '\\' {
				return 0, errors.New("backslash at the end of a string") // which the language allows and Envoy does not
			}
			return n + len(quote), nil
		case s[n] == '\\' && !raw:
			size := celEscape(s[n+1:], bytes)
			if size == 0 {
				return 0, errors.New("bad escape in a string")
			}
			n += 1 + size
		case (s[n] == '\n' || s[n] == '\r') && len(quote) == 1:
			return 0, errors.New("line break in a string")
		default:
			n++
		}
	}
	return 0, errors.New("string without end")
}

// celEscape is the length of the escape that s begins with, behind its backslash; 0 if it is none.
func celEscape(s string, bytes bool) int {
	if s == "" {
		return 0
	}
	size := 0
	switch s[0] {
	case 'x', 'X':
		size = 2
	case 'u':
		size = 4
	case 'U':
		size = 8
	case '0', '1', '2', '3':
		if len(s) < 3 {
			return 0
		}
		if _, err := strconv.ParseUint(s[:3], 8, 8); err != nil {
			return 0
		}
		return 3
	default:
		if strings.IndexByte("abfnrtv?\"'`\\", s[0]) < 0 {
			return 0
		}
		return 1
	}
	if len(s) < 1+size || bytes && size > 2 {
		return 0
	}
	n, err := strconv.ParseUint(s[1:1+size], 16, 32)
	if err != nil || size > 2 && !utf8.ValidRune(rune(n)) {
		return 0
	}
	return 1 + size
}

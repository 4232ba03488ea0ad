package istiopolicy

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	// maxCELBytes bounds an expression. Filters that people write have hundreds of bytes.
	maxCELBytes = 4096
	// maxCELDepth bounds nesting: each level is a call of ours, and of Envoy's parser (which stops at 250 on its own).
	maxCELDepth = 100
)

// CheckCEL tells whether an expression follows the grammar of the Common Expression Language (cel-spec, langdef.md,
// "Syntax"). Types, names and functions are not checked. Envoy parses expressions when it takes a configuration over and
// refuses the whole of it for one mistake; the mistake belongs into the status of the object that holds it.
func CheckCEL(expr string) error {
	if len(expr) > maxCELBytes {
		return fmt.Errorf("parse expression %q: longer than %d bytes", cut(expr), maxCELBytes)
	}
	c := &celParser{in: expr}
	err := c.next()
	if err == nil {
		err = c.expression()
	}
	if err == nil && c.token != "" {
		err = c.unexpected()
	}
	if err != nil {
		return fmt.Errorf("parse expression %q: %w", cut(expr), err)
	}
	return nil
}

// celKind of a token; operators are their own text.
type celKind uint8

const (
	celEnd celKind = iota
	celName
	celNumber
	celString
	celOperator
)

// celParser is a recursive descent with one token of look-ahead.
type celParser struct {
	in    string
	at    int // behind the token
	start int
	token string
	kind  celKind
	depth int
}

func (c *celParser) unexpected() error {
	if c.kind == celEnd {
		return errors.New("ends too early")
	}
	return fmt.Errorf("unexpected %q at byte %d", c.token, c.start)
}

// accept takes an operator or keyword if it is next.
func (c *celParser) accept(s string) (bool, error) {
	if c.token != s || c.kind != celOperator && c.kind != celName {
		return false, nil
	}
	return true, c.next()
}

func (c *celParser) expect(s string) error {
	ok, err := c.accept(s)
	if err == nil && !ok {
		err = c.unexpected()
	}
	return err
}

// expression is Expr: conditional or, or.
func (c *celParser) expression() error {
	if c.depth++; c.depth > maxCELDepth {
		return fmt.Errorf("nested deeper than %d", maxCELDepth)
	}
	defer func() { c.depth-- }()
	if err := c.binary(0); err != nil {
		return err
	}
	if ok, err := c.accept("?"); !ok || err != nil {
		return err
	}
	if err := c.binary(0); err != nil {
		return err
	}
	if err := c.expect(":"); err != nil {
		return err
	}
	return c.expression()
}

// celLevel gives the binary operators from the loosest to the tightest; any order is right for a check of the syntax.
func celLevel(n int) []string {
	switch n {
	case 0:
		return []string{"||"}
	case 1:
		return []string{"&&"}
	case 2:
		return []string{"<", "<=", ">", ">=", "==", "!=", "in"}
	case 3:
		return []string{"+", "-"}
	case 4:
		return []string{"*", "/", "%"}
	}
	return nil
}

func (c *celParser) binary(level int) error {
	ops := celLevel(level)
	if ops == nil {
		return c.unary()
	}
	for {
		if err := c.binary(level + 1); err != nil {
			return err
		}
		found := false
		for _, op := range ops {
			ok, err := c.accept(op)
			if err != nil {
				return err
			}
			if found = ok; ok {
				break
			}
		}
		if !found {
			return nil
		}
	}
}

func (c *celParser) unary() error {
	for c.kind == celOperator && (c.token == "!" || c.token == "-") {
		if err := c.next(); err != nil {
			return err
		}
	}
	if err := c.primary(); err != nil {
		return err
	}
	return c.members()
}

// members are .name, .name(arguments), [index] and {fields} after a primary.
func (c *celParser) members() error {
	for c.kind == celOperator {
		switch c.token {
		case ".":
			if err := c.next(); err != nil {
				return err
			}
			if c.kind != celName {
				return c.unexpected()
			}
			if err := c.next(); err != nil {
				return err
			}
			if err := c.call(); err != nil {
				return err
			}
		case "[":
			if err := c.enclosed("[", c.expression, "]"); err != nil {
				return err
			}
		case "{":
			if err := c.enclosed("{", func() error { return c.list("}", c.field) }, "}"); err != nil {
				return err
			}
		default:
			return nil
		}
	}
	return nil
}

func (c *celParser) enclosed(open string, inner func() error, end string) error {
	if err := c.expect(open); err != nil {
		return err
	}
	if err := inner(); err != nil {
		return err
	}
	return c.expect(end)
}

// call is (arguments), if there are any.
func (c *celParser) call() error {
	if c.kind != celOperator || c.token != "(" {
		return nil
	}
	if err := c.next(); err != nil {
		return err
	}
	if ok, err := c.accept(")"); ok || err != nil {
		return err
	}
	for {
		if err := c.expression(); err != nil {
			return err
		}
		if ok, err := c.accept(","); err != nil {
			return err
		} else if !ok {
			return c.expect(")")
		}
	}
}

// list is any number of items, with a comma behind each but possibly the last.
func (c *celParser) list(end string, item func() error) error {
	for c.kind != celOperator || c.token != end {
		if err := item(); err != nil {
			return err
		}
		if ok, err := c.accept(","); err != nil {
			return err
		} else if !ok {
			return nil
		}
	}
	return nil
}

func (c *celParser) field() error { return c.pairOf(c.name) }
func (c *celParser) entry() error { return c.pairOf(c.expression) }

func (c *celParser) pairOf(key func() error) error {
	if err := key(); err != nil {
		return err
	}
	if err := c.expect(":"); err != nil {
		return err
	}
	return c.expression()
}

func (c *celParser) name() error {
	if c.kind != celName {
		return c.unexpected()
	}
	return c.next()
}

func (c *celParser) primary() error {
	switch {
	case c.kind == celNumber || c.kind == celString:
		return c.next()
	case c.kind == celName:
		if c.token == "in" || celReserved(c.token) {
			return c.unexpected()
		}
		if err := c.next(); err != nil {
			return err
		}
		return c.call()
	case c.kind == celOperator && c.token == "(":
		return c.enclosed("(", c.expression, ")")
	case c.kind == celOperator && c.token == "[":
		return c.enclosed("[", func() error { return c.list("]", c.expression) }, "]")
	case c.kind == celOperator && c.token == "{":
		return c.enclosed("{", func() error { return c.list("}", c.entry) }, "}")
	case c.kind == celOperator && c.token == ".":
		if err := c.next(); err != nil {
			return err
		}
		if err := c.name(); err != nil {
			return err
		}
		return c.call()
	}
	return c.unexpected()
}

func celReserved(s string) bool {
	switch s {
	case "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package",
		"namespace", "return", "var", "void", "while":
		return true
	}
	return false
}

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
		if n < len(rest) && (celLetter(rest[n]) || celDigit(rest[n])) {
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
	if len(s) > 2 && s[0] == '0' && (s[1] == 'x' || s[1] == 'X') {
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

// celStringAt is where the quote of a literal is: behind at most one r and one b. -1 if s begins with no literal.
func celStringAt(s string) int {
	for i := 0; i < len(s) && i < 3; i++ {
		switch s[i] {
		case '"', '\'':
			return i
		case 'r', 'R', 'b', 'B':
		default:
			return -1
		}
	}
	return -1
}

// celQuoted is the length of the literal that s begins with.
func celQuoted(s string) (int, error) {
	at := celStringAt(s)
	raw := strings.ContainsAny(s[:at], "rR")
	quote := s[at : at+1]
	long := strings.Repeat(quote, 3)
	if strings.HasPrefix(s[at:], long) {
		quote = long
	}
	n := at + len(quote)
	for n < len(s) {
		switch {
		case strings.HasPrefix(s[n:], quote):
			return n + len(quote), nil
		case s[n] == '\\' && !raw:
			if n+1 >= len(s) || !strings.ContainsRune("abfnrtv?\"'`\\xXuU01234567", rune(s[n+1])) {
				return 0, errors.New("bad escape in a string")
			}
			n += 2
		case (s[n] == '\n' || s[n] == '\r') && len(quote) == 1:
			return 0, errors.New("line break in a string")
		default:
			n++
		}
	}
	return 0, errors.New("string without end")
}

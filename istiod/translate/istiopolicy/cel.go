package istiopolicy

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// maxCELBytes bounds an expression. Filters that people write have hundreds of bytes.
	maxCELBytes = 4096
	// maxCELDepth bounds nesting: each level is a call of ours, and of Envoy's parser (which stops at 250 on its own).
	maxCELDepth = 100
)

// CheckCEL tells whether Envoy takes an expression of the Common Expression Language: whether it follows the grammar
// (cel-spec, langdef.md, "Syntax"), calls only functions that Envoy 1.40 has, with as many arguments as they take, and
// neither loops (all, exists, map …) nor makes messages, which Envoy does not. Types and names of attributes are not
// checked, as Envoy does not either. Envoy reads expressions when it takes a configuration over and refuses the whole of
// it for one mistake; the mistake belongs into the status of the object that holds it.
func CheckCEL(expr string) error {
	if len(expr) > maxCELBytes {
		return fmt.Errorf("parse expression %q: longer than %d bytes", cut(expr), maxCELBytes)
	}
	if !utf8.ValidString(expr) {
		return fmt.Errorf("parse expression %q: not UTF-8", cut(expr))
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
	if op := c.token; op == "!" || op == "-" { // a row of either, and no mixture
		for c.kind == celOperator && c.token == op {
			if err := c.next(); err != nil {
				return err
			}
		}
	}
	_, err := c.chain()
	return err
}

// chain is a primary with the members behind it. It reports whether it ended with the choice of a field.
func (c *celParser) chain() (chosen bool, err error) {
	receiver := ""
	if c.kind == celName {
		receiver = c.token
	}
	start := c.start
	if err := c.primary(); err != nil {
		return false, err
	}
	if strings.TrimSpace(c.in[start:c.start]) != receiver {
		receiver = "" // it was a call
	}
	for c.kind == celOperator {
		switch c.token {
		case ".":
			chosen, err = c.member(receiver)
		case "[":
			chosen, err = false, c.enclosed("[", c.expression, "]")
		case "{":
			err = fmt.Errorf("makes a message at byte %d, which a proxy does not", c.start)
		default:
			return chosen, nil
		}
		if err != nil {
			return false, err
		}
		receiver = ""
	}
	return chosen, nil
}

// member is .name or .name(arguments); receiver is the name before it, if there is nothing else.
func (c *celParser) member(receiver string) (chosen bool, err error) {
	if err := c.next(); err != nil {
		return false, err
	}
	name := c.token
	if c.kind != celName || celLiteral(name) {
		return false, c.unexpected()
	}
	if err := c.next(); err != nil {
		return false, err
	}
	if c.kind != celOperator || c.token != "(" {
		return true, nil
	}
	if receiver == "re" {
		return false, c.call("re."+name, false)
	}
	return false, c.call(name, true)
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

// call is (arguments) of a function or, behind a receiver, of a method.
func (c *celParser) call(name string, method bool) error {
	at := c.start
	if err := c.next(); err != nil {
		return err
	}
	if name == "has" && !method {
		chosen, err := c.chain()
		if err == nil && !chosen {
			err = fmt.Errorf("has, at byte %d, wants a field", at)
		}
		if err != nil {
			return err
		}
		return c.expect(")")
	}
	var args []string
	for c.kind != celOperator || c.token != ")" || len(args) > 0 {
		start := c.start
		if err := c.expression(); err != nil {
			return err
		}
		args = append(args, strings.TrimSpace(c.in[start:c.start]))
		if more, err := c.accept(","); err != nil {
			return err
		} else if !more {
			break
		}
	}
	if method {
		args = append([]string{""}, args...)
	}
	if err := celFunction(name, method, args); err != nil {
		return fmt.Errorf("%w at byte %d", err, at)
	}
	return c.expect(")")
}

// celFunction checks a call. args begin with the receiver of a method.
func celFunction(name string, method bool, args []string) error {
	least, most, methods, functions := 0, 0, false, false
	switch name {
	case "size", "bool", "bytes", "double", "duration", "dyn", "int", "timestamp", "type", "uint":
		least, most, methods, functions = 1, 1, name == "size", true
	case "contains", "matches":
		least, most, methods, functions = 2, 2, true, true
	case "startsWith", "endsWith":
		least, most, methods = 2, 2, true
	case "getFullYear", "getMonth", "getDayOfYear", "getDayOfMonth", "getDate", "getDayOfWeek", "getHours", "getMinutes",
		"getSeconds", "getMilliseconds":
		least, most, methods = 1, 2, true
	case "re.capture", "re.captureN":
		least, most, functions = 2, 2, true
	case "re.extract":
		least, most, functions = 3, 3, true
	}
	if len(args) < least || len(args) > most || most == 0 || method && !methods || !method && !functions {
		return fmt.Errorf("a proxy has no function %q of this form", name)
	}
	if name != "matches" && !strings.HasPrefix(name, "re.") {
		return nil
	}
	// What is no literal is compiled with each request, and a mistake in it is that request's.
	if pattern, err := strconv.Unquote(celToGo(args[1])); err == nil {
		if _, err := regexp.Compile(pattern); err != nil {
			return fmt.Errorf("bad regular expression: %w", err)
		}
	}
	return nil
}

// celToGo gives a simple literal the form of one of Go.
func celToGo(s string) string {
	raw := strings.HasPrefix(s, "r") || strings.HasPrefix(s, "R")
	s = strings.TrimLeft(s, "rR")
	if len(s) < 2 || s[0] != s[len(s)-1] || s[0] != '"' && s[0] != '\'' || strings.ContainsRune(s[1:len(s)-1], rune(s[0])) {
		return ""
	}
	if raw {
		return strconv.Quote(s[1 : len(s)-1])
	}
	return `"` + strings.ReplaceAll(s[1:len(s)-1], `"`, `\"`) + `"`
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

// entry is a key and a value of a map.
func (c *celParser) entry() error {
	if err := c.expression(); err != nil {
		return err
	}
	if err := c.expect(":"); err != nil {
		return err
	}
	return c.expression()
}

func (c *celParser) primary() error {
	switch {
	case c.kind == celNumber || c.kind == celString:
		return c.next()
	case c.kind == celName:
		return c.named()
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
		if c.kind != celName || celLiteral(c.token) {
			return c.unexpected()
		}
		return c.named()
	}
	return c.unexpected()
}

// named is a name, or a call of the function of that name.
func (c *celParser) named() error {
	name := c.token
	if name == "in" || celReserved(name) {
		return c.unexpected()
	}
	if err := c.next(); err != nil {
		return err
	}
	if c.kind == celOperator && c.token == "(" {
		return c.call(name, false)
	}
	return nil
}

// celLiteral tells whether a word is a token of its own and no name.
func celLiteral(s string) bool { return s == "in" || s == "true" || s == "false" || s == "null" }

func celReserved(s string) bool {
	switch s {
	case "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package",
		"namespace", "return", "var", "void", "while":
		return true
	}
	return false
}

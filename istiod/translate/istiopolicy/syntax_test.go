package istiopolicy

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

func goodCEL() []string {
	return []string{
		`true`, `response.code >= 400`, `!has(request.useragent) || !(request.useragent.startsWith("Amazon-Route53"))`,
		`connection.mtls && request.url_path.contains('v1beta3')`, `request.headers['x-a'] in ["a", 'b',]`, `-1 + 2u * 0x1F % 3.5e-2`,
		`a ? b : c ? d : e`, `{"a": 1, 'b': [1, 2]}.a == 1`, `.absolute.name`, `"""long " string""" == r'raw\d'`,
		`b"bytes" + br'x'`, `size([]) == 0 // comment`, "a\n&&\tb", `!!a`, `--1`, `1 - -1`, `.5 < 1.0`, `'\u00e9\x41\101\?'`,
		`(((((a)))))`, `"é"`, `in_band`, `null`, `a.size() + size(b)`, `a.matches("^x.*$")`, `matches(a, r'\d+')`, `a.getHours("UTC") < 8`,
		`re.extract(a, "(.*)", r"\1")`, `re.capture(a["b"], 'x(.)')`, `int(a) == 1`, `has(a.b["c"].d)`, `type(a)`, `18446744073709551615u`, `a.if`, `a.matches(b)`,
	}
}

func TestCheckCEL(t *testing.T) {
	for _, good := range goodCEL() {
		if err := CheckCEL(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for bad, want := range map[string]string{
		``: "ends too early", `a &&`: "ends too early", `a b`: `unexpected "b" at byte 2`, `a &`: `unexpected "&" at byte 2`, `(a`: "ends too early", `a)`: `unexpected ")"`,
		`a = b`: `unexpected "="`, `"open`: "string without end at byte 0", `'a\qb'`: "bad escape", "'a\nb'": "line break", `1x`: "bad number", `0X1`: "bad number", `a.1`: "unexpected",
		`a ? b`: "ends too early", `[1,,2]`: "unexpected", `f(a,)`: "unexpected", `{1}`: "unexpected", `if`: "unexpected", `in`: "unexpected", `a.b.`: "ends too early",
		`x{a: 2}`: "makes a message", `google.type.Expr{}`: "makes a message", `foo(1)`: `no function "foo"`, `a.nope()`: `no function "nope"`, `string(a)`: `no function "string"`,
		`xs.all(x, x > 0)`: `no function "all"`, `size()`: `no function "size"`, `size(a, b)`: `no function "size"`, `a.contains("b", "c")`: `no function "contains"`, `startsWith(a, b)`: `no function`,
		`a.int()`: `no function`, `re.find(a, b)`: `no function "re.find"`, `has(a)`: "wants a field", `has(a.size())`: "wants a field", `has(a.b || c.d)`: "unexpected", `has(!a.b)`: "unexpected", `has(a.b[0])`: "wants a field",
		`a.matches("(")`: "bad regular expression", `matches(a, r'[')`: "bad regular expression", `re.capture(a, "*")`: "bad regular expression", `rb'x'`: "unexpected",
		`99999999999999999999`: "bad number", `1e999`: "bad number", `18446744073709551616u`: "bad number", `0x`: "bad number", `'\x4'`: "bad escape", `'\ud800'`: "bad escape", `'\400'`: "bad escape", `b'\u0041'`: "bad escape",
		`a.true`: "unexpected", `a.in`: "unexpected", `.in`: "unexpected", `true()`: "no function", "a\xff": "not UTF-8", `!-a`: "unexpected", `r'raw\'`: "backslash at the end", `é`: `unexpected "é"`, `a # b`: `unexpected "#"`, `''''`: "string without end", `'\`: "bad escape", `f(`: "ends too early", `a |`: "unexpected",
		strings.Repeat("(", maxCELDepth+1): "nested deeper", strings.Repeat("a", maxCELBytes+1): "longer than", strings.Repeat("a[", 3000/2): "nested deeper",
	} {
		if err := CheckCEL(bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", cut(bad), err, want)
		}
	}
}

func goodFormats() []string {
	return []string{
		"", "text", "100%%", "%START_TIME%", "%START_TIME(%s.%3f)%", "%START_TIME(%Y-%m-%dT%H:%M:%SZ)%", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH):20%", "a%PROTOCOL%b%%c%DURATION%",
		"%DYNAMIC_METADATA(a:b:c):10%", "%CEL(request.headers['a'].size())%", "%FILTER_STATE(mesh.peer_principal:PLAIN)%", "%FILTER_STATE(a)%", "%UPSTREAM_FILTER_STATE(a:FIELD:b):3%",
		"%RESP(a)%%TRAILER(a?b):2%", "%METADATA(ROUTE:a:b)%", "%METADATA(LISTENER:a)%", "%METADATA(DYNAMIC:a)%", "%CLUSTER_METADATA(a:b)%%UPSTREAM_METADATA(a:b)%", "%GRPC_STATUS%%GRPC_STATUS(NUMBER)%%GRPC_STATUS(SNAKE_STRING)%",
		"%PATH%%PATH(WQ)%%PATH(NQ:ORIG)%%PATH(WQ:ORIG_OR_PATH):9%", "%QUERY_PARAMS%%QUERY_PARAMS(ORIG):5%%QUERY_PARAM(a):5%", "%COMMON_DURATION(DS_RX_BEG:US_TX_END:us)%",
		"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(16)%", "%RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)%", "%ENVIRONMENT(HOSTNAME):3%", "%BYTES_SENT%%BYTES_RECEIVED%%ACCESS_LOG_TYPE%",
	}
}

func TestCheckFormat(t *testing.T) {
	for _, good := range goodFormats() {
		if err := CheckFormat(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for bad, want := range map[string]string{
		"%": "byte 0 has no end", "50%": "byte 2 has no end", "%REQ(": "byte 0 has no end", "%REQ(a)": "byte 0 has no end", "ab %lower%": "byte 3", "%REQ(a):%": "a length", "%REQ(a):x%": "a length",
		"%REQ(a):99999999999999999999%": "a length", "%%%": "byte 2", "%PROTOCOL%DURATION%": "byte 18", "%A b%": "byte 0",
		"%NOTHING%": "NOTHING is not known", "%REQ_WITHOUT_QUERY(a)%": "is not known", "%PROTOCOL:5%": "neither arguments", "%PROTOCOL(a)%": "neither arguments", "%START_TIME(a):5%": "takes no length",
		"%REQ%": "not written", "%REQ()%": "not written", "%REQ(a?b?c)%": "not written", "%REQ(a b)%": "not written", "%FILTER_STATE(a:BAD)%": "not written", "%FILTER_STATE(a:FIELD:)%": "not written", "%DYNAMIC_METADATA%": "not written",
		"%METADATA(FOO:a)%": "not written", "%METADATA(ROUTE)%": "not written", "%CLUSTER_METADATA(a):5%": "not written", "%COMMON_DURATION(a)%": "not written", "%COMMON_DURATION(a:b:x)%": "not written",
		"%GRPC_STATUS(x)%": "not written", "%QUERY_PARAMS(x)%": "not written", "%PATH(a)%": "not written", "%CEL(a +)%": "ends too early", "%CEL%": "ends too early",
	} {
		if err := CheckFormat(bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", bad, err, want)
		}
	}
}

// TestEveryCommand: what is known here is what the binary knows.
func TestEveryCommand(t *testing.T) {
	src, err := os.ReadFile("format_commands.go")
	if err != nil {
		t.Fatal(err)
	}
	var logs []any
	for _, name := range regexp.MustCompile(`"([A-Z][A-Z0-9_]+)"`).FindAllStringSubmatch(string(src), -1) {
		if f := "%" + name[1] + "%"; plainCommand(name[1]) || looseCommand(name[1]) {
			logs = append(logs, logOf(f, ""))
		}
	}
	if len(logs) < 100 {
		t.Fatalf("%d commands found", len(logs))
	}
	if out, err := envoyTakes(t, logs); err != nil {
		t.Errorf("Envoy refuses one: %v\n%s", err, out)
	}
}

// What passes must have balanced brackets outside of strings: a sign that nothing was skipped.
func FuzzCEL(f *testing.F) {
	for _, s := range []string{`a && b || c`, `{"a": [1, "x"]}.a(1)[0]`, `'''a''' + r"\"`, `1.5e3u ? .a : b{c: d}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if CheckCEL(s) != nil || strings.ContainsAny(s, `"'/`) {
			return
		}
		for _, pair := range []string{"()", "[]", "{}"} {
			if strings.Count(s, pair[:1]) != strings.Count(s, pair[1:]) {
				t.Errorf("%q passes", s)
			}
		}
		if CheckCEL("("+s+"\n)") != nil && len(s) < maxCELBytes-4 && strings.Count(s, "(")+strings.Count(s, "[")+strings.Count(s, "{")+strings.Count(s, "?") < maxCELDepth/2 {
			t.Errorf("%q passes, but not in parentheses", s)
		}
	})
}

func FuzzFormat(f *testing.F) {
	for _, s := range []string{"%REQ(a):3% %%", "%START_TIME(%s)%", "%%%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if CheckFormat(s) == nil && CheckFormat(s+"%PROTOCOL%") != nil {
			t.Errorf("%q passes, but not with a command behind it", s)
		}
	})
}

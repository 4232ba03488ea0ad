package identity

import (
	"errors"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want Identity
	}{
		{"spiffe://cluster.local/ns/shop/sa/web", Identity{"cluster.local", "shop", "web"}},
		{"spiffe://td/ns/a-b/sa/x.y-z_1", Identity{"td", "a-b", "x.y-z_1"}},
		{"spiffe://1.2_3-4/ns/0/sa/9", Identity{"1.2_3-4", "0", "9"}},
	} {
		got, err := Parse(tc.in)
		if err != nil || got != tc.want {
			t.Errorf("Parse(%q) = %+v, %v; want %+v", tc.in, got, err, tc.want)
		}
		if got.String() != tc.in {
			t.Errorf("Parse(%q) prints as %q", tc.in, got)
		}
		if err := got.Validate(); err != nil {
			t.Errorf("Validate of %q: %v", tc.in, err)
		}
	}
}

// refusals are ids that must never be accepted. The CA's facts list them for
// requests; a peer's certificate and a configured SAN are held to the same.
func refusals() map[string]string {
	long := "spiffe://td/ns/a/sa/"
	return map[string]string{
		"empty":                      "",
		"no scheme":                  "td/ns/a/sa/b",
		"other scheme":               "https://td/ns/a/sa/b",
		"scheme in upper case":       "SPIFFE://td/ns/a/sa/b",
		"empty trust domain":         "spiffe:///ns/a/sa/b",
		"comma in trust domain":      "spiffe://t,d/ns/a/sa/b",
		"space in trust domain":      "spiffe://t d/ns/a/sa/b",
		"percent in trust domain":    "spiffe://t%64/ns/a/sa/b",
		"upper case trust domain":    "spiffe://TD/ns/a/sa/b",
		"comma in namespace":         "spiffe://td/ns/a,c/sa/b",
		"space in namespace":         "spiffe://td/ns/a c/sa/b",
		"percent in namespace":       "spiffe://td/ns/a%63/sa/b",
		"upper case namespace":       "spiffe://td/ns/A/sa/b",
		"comma in account":           "spiffe://td/ns/a/sa/b,c",
		"space in account":           "spiffe://td/ns/a/sa/b ",
		"percent in account":         "spiffe://td/ns/a/sa/b%2fc",
		"upper case account":         "spiffe://td/ns/a/sa/B",
		"upper case ns":              "spiffe://td/NS/a/sa/b",
		"no path":                    "spiffe://td",
		"root path":                  "spiffe://td/",
		"namespace only":             "spiffe://td/ns/a",
		"no account":                 "spiffe://td/ns/a/sa",
		"empty account":              "spiffe://td/ns/a/sa/",
		"empty namespace":            "spiffe://td/ns//sa/b",
		"one segment more":           "spiffe://td/ns/a/sa/b/c",
		"trailing slash":             "spiffe://td/ns/a/sa/b/",
		"leading slash":              "spiffe://td//ns/a/sa/b",
		"other segments":             "spiffe://td/namespace/a/sa/b",
		"dot segment":                "spiffe://td/ns/./sa/b",
		"dot dot segment":            "spiffe://td/ns/../sa/b",
		"query":                      "spiffe://td/ns/a/sa/b?x=1",
		"empty query":                "spiffe://td/ns/a/sa/b?",
		"fragment":                   "spiffe://td/ns/a/sa/b#x",
		"user information":           "spiffe://u@td/ns/a/sa/b",
		"user and password":          "spiffe://u:p@td/ns/a/sa/b",
		"port":                       "spiffe://td:80/ns/a/sa/b",
		"empty port":                 "spiffe://td:/ns/a/sa/b",
		"not UTF-8":                  "spiffe://td/ns/a/sa/\xff",
		"not ASCII":                  "spiffe://td/ns/ä/sa/b",
		"NUL":                        "spiffe://td/ns/a/sa/b\x00",
		"line break":                 "spiffe://td/ns/a/sa/b\n",
		"longer than 2048 bytes":     long + strings.Repeat("b", MaxURIBytes-len(long)+1),
		"longer than 2048, bad also": strings.Repeat("\xff", MaxURIBytes+1),
	}
}

func TestParseRefuses(t *testing.T) {
	for name, in := range refusals() {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(in)
			if !errors.Is(err, ErrInvalid) || !got.IsZero() {
				t.Errorf("Parse(%q) = %+v, %v; want ErrInvalid and no identity", in, got, err)
			}
		})
	}
	long := "spiffe://td/ns/a/sa/"
	if _, err := Parse(long + strings.Repeat("b", MaxURIBytes-len(long))); err != nil {
		t.Errorf("an id of exactly %d bytes is refused: %v", MaxURIBytes, err)
	}
}

// TestValidate: an Identity put together from fields cannot smuggle a separator in.
func TestValidate(t *testing.T) {
	for _, i := range []Identity{
		{}, {"td", "a", ""}, {"", "a", "b"}, {"td", "a/sa/b", "c"}, {"td/ns/a/sa/b", "c", "d"}, {"td", "a", "b?c"}, {"td", "A", "b"},
	} {
		if err := i.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("Validate of %+v: %v, want ErrInvalid", i, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/shop/sa/web")
	for _, s := range refusals() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		i, err := Parse(s)
		if err != nil {
			if !i.IsZero() {
				t.Fatalf("refused with %v but returned %+v", err, i)
			}
			return
		}
		if i.String() != s {
			t.Fatalf("%q parses to %+v, which prints as %q", s, i, i)
		}
		for _, part := range []string{i.TrustDomain, i.Namespace, i.ServiceAccount} {
			if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "/%?#@:, \\") || part != strings.ToLower(part) {
				t.Fatalf("%q parses to %+v", s, i)
			}
		}
	})
}

package hbone

import (
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"
)

// HPACK indices of the static table, RFC 7541 appendix A.
const (
	hpackAuthority = 1
	hpackMethodGET = 2 // the name ":method"
	hpackStatus200 = 8
)

// HPACK patterns, RFC 7541 section 6.
const (
	hpackIndexed      = 0x80
	hpackLiteral      = 0x00 // without indexing
	hpackResizeToZero = 0x20
)

// headerEncoder writes header blocks with no dynamic table, so that it has no state that a later block depends on.
type headerEncoder struct {
	// resized: the first block says that our table has size 0. RFC 7541 section 4.2 wants it after a peer lowered the
	// limit, and peers that did (Ambit announces 0 too) may insist on it.
	resized bool
}

func (e *headerEncoder) begin(b []byte) []byte {
	if e.resized {
		return b
	}
	e.resized = true
	return append(b, hpackResizeToZero)
}

func (e *headerEncoder) request(b []byte, authority string, fields []Header) []byte {
	b = e.begin(b)
	b = appendIndexedName(b, hpackMethodGET, "CONNECT")
	b = appendIndexedName(b, hpackAuthority, authority)
	return appendFields(b, fields)
}

func (e *headerEncoder) response(b []byte, status int, fields []Header) []byte {
	b = e.begin(b)
	if status == 200 {
		b = append(b, hpackIndexed|hpackStatus200)
	} else {
		b = appendIndexedName(b, hpackStatus200, strconv.Itoa(status))
	}
	return appendFields(b, fields)
}

func appendFields(b []byte, fields []Header) []byte {
	for _, f := range fields {
		b = append(b, hpackLiteral)
		b = appendHPACKString(b, f.Name)
		b = appendHPACKString(b, f.Value)
	}
	return b
}

func appendIndexedName(b []byte, index byte, value string) []byte {
	return appendHPACKString(append(b, hpackLiteral|index), value)
}

// appendHPACKString appends a string without Huffman coding: the length as an integer with a 7-bit prefix, RFC 7541
// sections 5.1 and 5.2.
func appendHPACKString(b []byte, s string) []byte {
	const prefix = 1<<7 - 1
	n := len(s)
	if n < prefix {
		return append(append(b, byte(n)), s...)
	}
	b = append(b, prefix)
	n -= prefix
	for ; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(append(b, byte(n)), s...)
}

// checkFields refuses what must not go into a header block.
func checkFields(fields []Header) error {
	for _, f := range fields {
		if !validName(f.Name) || !httpguts.ValidHeaderFieldValue(f.Value) {
			return streamErrorf(CodeInternal, "header %q is not valid", f.Name)
		}
	}
	return nil
}

// fieldList is a decoded header block.
type fieldList struct {
	method, authority, scheme, path, protocol, status string

	fields   []Header
	tooLarge bool
	bad      string // why the message is malformed, RFC 9113 section 8.1.1
}

// headerDecoder decodes header blocks. It has a dynamic table only until the peer has acknowledged our SETTINGS.
type headerDecoder struct {
	dec     *hpack.Decoder
	maxList int

	list    fieldList
	size    int
	regular bool // a regular field was seen: pseudo-header fields may not follow
}

func newHeaderDecoder(maxList int) *headerDecoder {
	d := &headerDecoder{maxList: maxList}
	d.dec = hpack.NewDecoder(defaultHeaderTable, d.emit)
	d.dec.SetMaxStringLength(2*maxList + headerBlockSlack)
	return d
}

// dropTable is called when the peer has acknowledged SETTINGS_HEADER_TABLE_SIZE 0. Blocks decode without context from
// then on.
func (d *headerDecoder) dropTable() {
	d.dec.SetAllowedMaxDynamicTableSize(0)
	d.dec.SetMaxDynamicTableSize(0)
}

// decode decodes a complete block. An error is a connection error: the two ends no longer agree on HPACK's state.
func (d *headerDecoder) decode(block []byte) (fieldList, error) {
	d.list, d.size, d.regular = fieldList{}, 0, false
	if _, err := d.dec.Write(block); err != nil {
		return fieldList{}, connErrorf(CodeCompression, "decode header block: %v", err)
	}
	if err := d.dec.Close(); err != nil {
		return fieldList{}, connErrorf(CodeCompression, "decode header block: %v", err)
	}
	l := d.list
	d.list = fieldList{}
	return l, nil
}

// fieldOverhead is what RFC 9113 section 6.5.2 counts for each field beside its bytes.
const fieldOverhead = 32

func (d *headerDecoder) emit(f hpack.HeaderField) {
	l := &d.list
	d.size += len(f.Name) + len(f.Value) + fieldOverhead
	if d.size > d.maxList {
		l.tooLarge = true
		return
	}
	if !httpguts.ValidHeaderFieldValue(f.Value) {
		l.bad = "invalid value of " + strconv.Quote(f.Name)
		return
	}
	if !strings.HasPrefix(f.Name, ":") {
		d.regular = true
		if !validName(f.Name) {
			l.bad = "invalid field name " + strconv.Quote(f.Name)
			return
		}
		l.fields = append(l.fields, Header{Name: f.Name, Value: f.Value})
		return
	}
	p := l.pseudo(f.Name)
	switch {
	case p == nil:
		l.bad = "unknown pseudo-header field " + strconv.Quote(f.Name)
	case d.regular:
		l.bad = "pseudo-header field after a regular one"
	case *p != "" || f.Value == "":
		l.bad = "repeated or empty pseudo-header field " + strconv.Quote(f.Name)
	default:
		*p = f.Value
	}
}

func (l *fieldList) pseudo(name string) *string {
	switch name {
	case ":method":
		return &l.method
	case ":authority":
		return &l.authority
	case ":scheme":
		return &l.scheme
	case ":path":
		return &l.path
	case ":protocol":
		return &l.protocol
	case ":status":
		return &l.status
	}
	return nil
}

// validName accepts lower-case field names that HTTP/2 allows, RFC 9113 sections 8.2.1 and 8.2.2.
func validName(n string) bool {
	switch n {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return false
	}
	return httpguts.ValidHeaderFieldName(n) && strings.ToLower(n) == n
}

// checkRequest reports why l is not a well-formed request, or "".
func (l *fieldList) checkRequest() string {
	switch {
	case l.bad != "":
		return l.bad
	case l.method == "":
		return "request without :method"
	case l.status != "":
		return "request with :status"
	case l.protocol != "":
		// RFC 8441 section 3: only after SETTINGS_ENABLE_CONNECT_PROTOCOL, which we do not send.
		return "request with :protocol"
	case l.method == "CONNECT" && (l.scheme != "" || l.path != ""):
		return "CONNECT with :scheme or :path" // RFC 9113 section 8.5
	case l.method == "CONNECT" && l.authority == "":
		return "CONNECT without :authority"
	case l.method != "CONNECT" && (l.scheme == "" || l.path == ""):
		return "request without :scheme or :path" // RFC 9113 section 8.3.1
	}
	return ""
}

// checkResponse returns the status of a well-formed response, or why it is not one.
func (l *fieldList) checkResponse() (status int, bad string) {
	if l.bad != "" {
		return 0, l.bad
	}
	if l.method != "" || l.authority != "" || l.scheme != "" || l.path != "" || l.protocol != "" {
		return 0, "response with a request's pseudo-header field"
	}
	n, err := strconv.Atoi(l.status)
	if err != nil || len(l.status) != 3 || n < 100 {
		return 0, "response without a valid :status"
	}
	return n, ""
}

package hbone

import (
	"bytes"
	"crypto/fips140"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestRecordKeysFollowRFC8448 derives the keys of section 3 of RFC 8448, whose secrets are published.
func TestRecordKeysFollowRFC8448(t *testing.T) {
	for _, c := range []struct{ who, secret, iv string }{
		{"client", "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5", "5b78923dee08579033e523d9"},
		{"server", "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643", "cf782b88dd83549aadf1e984"},
	} {
		secret, _ := hex.DecodeString(c.secret)
		k, err := newRecordKey(tls.TLS_AES_128_GCM_SHA256, secret)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(k.iv[:]); got != c.iv {
			t.Errorf("%s iv %s, want %s", c.who, got, c.iv)
		}
	}
}

// recordPair returns two record layers that talk to each other, as after a handshake.
func recordPair(t testing.TB, suite uint16) (a, b *tls13Records, aConn, bConn *net.TCPConn) {
	t.Helper()
	h, _ := suiteSizes(suite)
	one, two := make([]byte, h().Size()), make([]byte, h().Size())
	rand.Read(one)
	rand.Read(two)
	aConn, bConn = tcpPair(t)
	mem := NewMemory(0, 0)
	layer := func(c *net.TCPConn, client bool) *tls13Records {
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(testDeadline))
		s := &trafficSecrets{client: bytes.Clone(one), server: bytes.Clone(two)}
		r := newTLS13Records(raw, mem, &tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: suite}, s, client)
		if r == nil {
			t.Fatal("no record layer")
		}
		return r
	}
	return layer(aConn, true), layer(bConn, false), aConn, bConn
}

// readRecord waits for the next record's plaintext.
func readRecord(r recordLayer, c *net.TCPConn) ([]byte, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var got []byte
	var openErr error
	err = raw.Read(func(fd uintptr) bool {
		var p []byte
		p, openErr = r.open(fd)
		got = bytes.Clone(p)
		r.release()
		return openErr != errWouldBlock
	})
	if err != nil {
		return nil, err
	}
	return got, openErr
}

func writeRecords(t testing.TB, r *tls13Records, p []byte) {
	t.Helper()
	for len(p) > 0 {
		b := r.mem.getSend(classRecord)
		b.plain = copy(b.record(0), p)
		p = p[b.plain:]
		for {
			all, err := r.seal(b)
			if err != nil {
				t.Fatal(err)
			}
			if all {
				break
			}
			if err := r.flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := r.flush(); err != nil {
		t.Fatal(err)
	}
}

func TestKeyUpdateIsObeyedAndAnswered(t *testing.T) {
	for _, suite := range []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384} {
		a, b, aConn, bConn := recordPair(t, suite)
		before := bytes.Clone(a.wr.secret)
		b.sealSmall([]byte{typeKeyUpdate, 0, 0, 1, 1}, contentHandshake)
		if err := b.wr.update(); err != nil {
			t.Fatal(err)
		}
		writeRecords(t, b, []byte("under the next key"))
		if got, err := readRecord(a, aConn); err != nil || string(got) != "under the next key" {
			t.Fatalf("read %q, %v", got, err)
		}
		if !a.pending() {
			t.Error("the request for a KeyUpdate is not pending")
		}
		writeRecords(t, a, []byte("answered"))
		if got, err := readRecord(b, bConn); err != nil || string(got) != "answered" {
			t.Fatalf("read %q, %v", got, err)
		}
		if bytes.Equal(before, a.wr.secret) || a.pending() {
			t.Error("the KeyUpdate was not answered")
		}
	}
}

// TestCryptoTLSReadsOurRecords: crypto/tls at the other end takes our records, with an update of keys every few of them,
// and we take its.
func TestCryptoTLSReadsOurRecords(t *testing.T) {
	ca := newTestCA(t)
	near, far := tcpPair(t)
	raw, err := near.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	peer := tls.Client(far, ca.clientTLS(t, serverID))
	shaken := make(chan error, 1)
	go func() { shaken <- peer.Handshake() }()
	rec, _, err := startTLS(t.Context(), near, raw, ca.serverTLS(t), false, NewMemory(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	r := rec.(*tls13Records)
	r.rekeyAt = 3
	want := make([]byte, 1<<20)
	rand.Read(want)
	got := make(chan []byte, 1)
	go func() {
		b := make([]byte, len(want))
		io.ReadFull(peer, b)
		peer.Write(b[:100_000])
		got <- b
	}()
	writeRecords(t, r, want)
	if !bytes.Equal(<-got, want) {
		t.Error("crypto/tls read other bytes")
	}
	var back []byte
	for len(back) < 100_000 {
		p, err := readRecord(r, near)
		if err != nil {
			t.Fatal(err)
		}
		back = append(back, p...)
	}
	if !bytes.Equal(back, want[:100_000]) {
		t.Error("we read other bytes")
	}
}

func TestTunnelsUpdateTheirKeysWhileBytesFlow(t *testing.T) {
	w := newWorld(t, worldOptions{})
	w.dial().roundTrip(t, "x")
	until(t, "the tunnel is there", func() bool { return len(w.server.list()) == 1 && len(w.pool.Stats()) == 1 })
	ends := []*conn{w.pool.groups[w.target.key()].conns[0].c, w.server.list()[0]}
	secret := make([][]byte, 2)
	for i, c := range ends {
		if !c.freeze() {
			t.Fatal("the tunnel did not freeze")
		}
		r := c.rec.(*tls13Records)
		secret[i], r.rekeyAt = bytes.Clone(r.wr.secret), 5
		c.resume()
	}
	if err := w.transferOnce(7, 4<<20); err != nil {
		t.Fatal(err)
	}
	for i, c := range ends {
		if !c.freeze() {
			t.Fatal("the tunnel did not freeze")
		}
		if bytes.Equal(secret[i], c.rec.(*tls13Records).wr.secret) {
			t.Errorf("end %d still has its first key", i)
		}
		c.resume()
	}
}

// sealContent makes a record of any content and type.
func sealContent(k *recordKey, content []byte, typ byte) []byte {
	b := make([]byte, recordHead+len(content)+recordTail)
	copy(b[recordHead:], content)
	return b[:k.seal(b, len(content), typ)]
}

func TestHostileRecords(t *testing.T) {
	ticket := append([]byte{typeNewSessionTicket, 0, 0, 200}, make([]byte, 200)...)
	for _, c := range []struct {
		name string
		make func(k *recordKey) []byte
		want error // nil: the data behind it is read
	}{
		{"nothing", func(*recordKey) []byte { return nil }, nil},
		{"ticket", func(k *recordKey) []byte { return sealContent(k, ticket, contentHandshake) }, nil},
		{"ticket in two records", func(k *recordKey) []byte {
			return append(sealContent(k, ticket[:50], contentHandshake), sealContent(k, ticket[50:], contentHandshake)...)
		}, nil},
		{"user canceled", func(k *recordKey) []byte { return sealContent(k, []byte{1, 90}, contentAlert) }, nil},
		{"empty data", func(k *recordKey) []byte { return sealContent(k, nil, contentApplication) }, nil},
		{"padding", func(k *recordKey) []byte { return sealContent(k, []byte{'p', contentApplication, 0, 0}, 0) }, nil},
		{"close_notify", func(k *recordKey) []byte { return sealContent(k, []byte{1, 0}, contentAlert) }, io.EOF},
		{"fatal alert", func(k *recordKey) []byte { return sealContent(k, []byte{2, 42}, contentAlert) }, tls.AlertError(42)},
		{"long alert", func(k *recordKey) []byte { return sealContent(k, []byte{2, 42, 0}, contentAlert) }, errRecordType},
		{"only padding", func(k *recordKey) []byte { return sealContent(k, make([]byte, 10), 0) }, errRecordType},
		{"unknown type", func(k *recordKey) []byte { return sealContent(k, []byte("x"), 99) }, errRecordType},
		{"data amid a handshake message", func(k *recordKey) []byte {
			return append(sealContent(k, ticket[:50], contentHandshake), sealContent(k, []byte("x"), contentApplication)...)
		}, errRecordType},
		{"in plain text", func(*recordKey) []byte { return []byte{contentAlert, 3, 3, 0, 2, 2, 42} }, errRecordType},
		{"too long", func(*recordKey) []byte { return []byte{contentApplication, 3, 3, 0xff, 0xff} }, errRecordOverflow},
		{"too much plain text", func(k *recordKey) []byte {
			return sealContent(k, bytes.Repeat([]byte{1}, recordPlain+1), contentApplication)
		}, errRecordOverflow},
		{"too short to authenticate", func(*recordKey) []byte { return []byte{contentApplication, 3, 3, 0, 1, 7} }, errBadRecord},
		{"tampered", func(k *recordKey) []byte {
			b := sealContent(k, []byte("x"), contentApplication)
			b[len(b)-1] ^= 1
			return b
		}, errBadRecord},
		{"replayed", func(k *recordKey) []byte {
			b := sealContent(k, nil, contentApplication)
			return append(b, b...)
		}, errBadRecord},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b, aConn, bConn := recordPair(t, tls.TLS_AES_128_GCM_SHA256)
			bConn.Write(c.make(b.wr))
			bConn.Write(sealContent(b.wr, []byte("data"), contentApplication))
			got, err := readRecord(a, aConn)
			if c.name == "padding" && string(got) == "p" {
				got, err = readRecord(a, aConn)
			}
			if !errors.Is(err, c.want) || c.want == nil && string(got) != "data" {
				t.Errorf("read %q, %v; want %v", got, err, c.want)
			}
		})
	}
}

func TestHostileHandshakeMessages(t *testing.T) {
	for name, content := range map[string][]byte{
		"KeyUpdate not last":   {typeKeyUpdate, 0, 0, 1, 0, typeNewSessionTicket, 0, 0, 0},
		"KeyUpdate too long":   {typeKeyUpdate, 0, 0, 2, 0, 0},
		"KeyUpdate of 2":       {typeKeyUpdate, 0, 0, 1, 2},
		"CertificateRequest":   {13, 0, 0, 1, 0},
		"endless":              {typeNewSessionTicket, 0xff, 0xff, 0xff},
		"empty":                {},
		"ClientHello, renewed": {1, 0, 0, 0},
	} {
		a, b, aConn, bConn := recordPair(t, tls.TLS_AES_256_GCM_SHA384)
		bConn.Write(sealContent(b.wr, content, contentHandshake))
		if got, err := readRecord(a, aConn); err == nil {
			t.Errorf("%s: read %q, want an error", name, got)
		}
	}
}

func TestRecordsWithoutDataAreBounded(t *testing.T) {
	a, b, aConn, bConn := recordPair(t, tls.TLS_AES_128_GCM_SHA256)
	for range maxUseless + 1 {
		bConn.Write(sealContent(b.wr, nil, contentApplication))
	}
	if got, err := readRecord(a, aConn); err == nil || err == io.EOF {
		t.Errorf("read %q, %v; want an error", got, err)
	}
}

func TestATruncatedRecordIsNotAnEnd(t *testing.T) {
	a, b, aConn, bConn := recordPair(t, tls.TLS_AES_128_GCM_SHA256)
	record := sealContent(b.wr, []byte("data"), contentApplication)
	bConn.Write(record[:len(record)-1])
	bConn.CloseWrite()
	if _, err := readRecord(a, aConn); err != io.ErrUnexpectedEOF {
		t.Errorf("read: %v, want %v", err, io.ErrUnexpectedEOF)
	}
}

// TestWhoCarriesTheRecords: ours, unless the process is in FIPS mode.
func TestWhoCarriesTheRecords(t *testing.T) {
	w := newWorld(t, worldOptions{})
	w.dial().roundTrip(t, "x")
	until(t, "the tunnel is there", func() bool { return len(w.server.list()) == 1 && len(w.pool.Stats()) == 1 })
	for _, c := range []*conn{w.pool.groups[w.target.key()].conns[0].c, w.server.list()[0]} {
		_, ours := c.rec.(*tls13Records)
		if ours == fips140.Enabled() {
			t.Errorf("FIPS mode %v, and records are carried by %T", fips140.Enabled(), c.rec)
		}
	}
}

// TestFIPSModeLeavesRecordsToCryptoTLS runs tests that move bytes again, in FIPS mode.
func TestFIPSModeLeavesRecordsToCryptoTLS(t *testing.T) {
	if fips140.Enabled() {
		return // this is that run
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^(TestWhoCarriesTheRecords|TestTunnelsAreReused|TestFrozenTunnelsResumeWithoutLosingAByte)$", "-test.v")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=on")
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestWhoCarriesTheRecords")) {
		t.Errorf("in FIPS mode: %v\n%s", err, out)
	}
}

// FuzzRecords feeds decrypted records of any type and content, in sequence: each input byte pair begins one.
func FuzzRecords(f *testing.F) {
	f.Add([]byte{contentHandshake, 5, typeKeyUpdate, 0, 0, 1, 1, contentAlert, 2, 1, 0})
	f.Add([]byte{contentHandshake, 3, typeNewSessionTicket, 0, 0, contentHandshake, 2, 1, 9})
	f.Add([]byte{contentApplication, 0, contentApplication, 1, 'x'})
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := newRecordKey(tls.TLS_AES_128_GCM_SHA256, make([]byte, 32))
		if err != nil {
			t.Fatal(err)
		}
		r := &tls13Records{rd: k}
		for len(b) >= 2 {
			typ, n := b[0], min(int(b[1]), len(b)-2)
			content := b[2 : 2+n]
			b = b[2+n:]
			if r.other(content, typ) != nil {
				return
			}
			if len(r.partial) > maxPartial {
				t.Fatalf("%d bytes of a handshake message are kept", len(r.partial))
			}
		}
		if n, err := recordLen(b); err == nil && n > recordHead+maxCiphertext {
			t.Fatalf("a record of %d bytes", n)
		}
	})
}

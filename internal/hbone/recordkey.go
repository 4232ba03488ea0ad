package hbone

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
)

// Content types of TLS records, RFC 8446 section 5.1.
const (
	contentAlert       = 21
	contentHandshake   = 22
	contentApplication = 23
)

const (
	// maxCiphertext is the largest body of a protected record, RFC 8446 section 5.2.
	maxCiphertext = recordPlain + 256
	// rekeyAfter is how many records one key seals: AES-GCM allows 2^24.5 full ones, RFC 8446 section 5.5.
	rekeyAfter = 1 << 23
	nonceLen   = 12
)

// recordKey protects the records of one direction, RFC 8446 section 5. The secret and the sequence number are all that a
// successor needs to go on; the rest follows from them.
type recordKey struct {
	suite  uint16
	secret []byte // the current application traffic secret
	seq    uint64 // of the next record

	aead  cipher.AEAD
	iv    [nonceLen]byte
	nonce [nonceLen]byte
}

// suiteSizes returns the hash of a cipher suite and the length of its key in bytes; nil for suites that we leave to
// crypto/tls.
func suiteSizes(suite uint16) (h func() hash.Hash, keyLen int) {
	switch suite {
	case tls.TLS_AES_128_GCM_SHA256:
		return sha256.New, 16
	case tls.TLS_AES_256_GCM_SHA384:
		return sha512.New384, 32
	}
	return nil, 0
}

func newRecordKey(suite uint16, secret []byte) (*recordKey, error) {
	if h, _ := suiteSizes(suite); h == nil || len(secret) != h().Size() {
		return nil, fmt.Errorf("derive record key: suite %#x with a secret of %d bytes", suite, len(secret))
	}
	k := &recordKey{suite: suite, secret: secret}
	return k, k.derive()
}

// expandLabel is HKDF-Expand-Label of RFC 8446 section 7.1 with an empty context.
func expandLabel(h func() hash.Hash, secret []byte, label string, n int) ([]byte, error) {
	label = "tls13 " + label
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(len(label)))
	info = append(info, label...)
	info = append(info, 0)
	return hkdf.Expand(h, secret, string(info), n)
}

// derive makes key and iv of the secret, RFC 8446 section 7.3.
func (k *recordKey) derive() error {
	h, n := suiteSizes(k.suite)
	key, err := expandLabel(h, k.secret, "key", n)
	if err != nil {
		return fmt.Errorf("derive record key: %w", err)
	}
	defer clear(key)
	iv, err := expandLabel(h, k.secret, "iv", nonceLen)
	if err != nil {
		return fmt.Errorf("derive record iv: %w", err)
	}
	copy(k.iv[:], iv)
	block, err := aes.NewCipher(key)
	if err != nil {
		return fmt.Errorf("derive record key: %w", err)
	}
	k.aead, err = cipher.NewGCM(block)
	return err
}

// update goes on to the next secret, RFC 8446 section 7.2, and wipes this one.
func (k *recordKey) update() error {
	h, _ := suiteSizes(k.suite)
	next, err := expandLabel(h, k.secret, "traffic upd", len(k.secret))
	if err != nil {
		return fmt.Errorf("update record key: %w", err)
	}
	clear(k.secret)
	k.secret, k.seq = next, 0
	return k.derive()
}

// next returns the nonce of the next record: the iv with the sequence number, RFC 8446 section 5.3.
func (k *recordKey) next() []byte {
	k.nonce = k.iv
	binary.BigEndian.PutUint64(k.nonce[4:], binary.BigEndian.Uint64(k.iv[4:])^k.seq)
	k.seq++
	return k.nonce[:]
}

// seal makes a record of the n bytes at b[recordHead:], in place, and returns its length. b has recordTail bytes of room
// behind them.
//
//	TLSCiphertext: type 23 | version 3,3 | length(2) | AEAD{ content | real type } and its tag
func (k *recordKey) seal(b []byte, n int, typ byte) int {
	b[0], b[1], b[2] = contentApplication, 3, 3
	binary.BigEndian.PutUint16(b[3:], uint16(n+recordTail))
	b[recordHead+n] = typ
	k.aead.Seal(b[recordHead:recordHead], k.next(), b[recordHead:recordHead+n+1], b[:recordHead])
	return recordHead + n + recordTail
}

var (
	errRecordType     = errors.New("record of an unexpected type")
	errRecordOverflow = errors.New("record too large")
	errBadRecord      = errors.New("record does not authenticate")
)

// recordLen returns the length of the record that b begins with, header included; 0 if b is too short to tell.
func recordLen(b []byte) (int, error) {
	if len(b) < recordHead {
		return 0, nil
	}
	n := int(binary.BigEndian.Uint16(b[3:]))
	if b[0] != contentApplication {
		return 0, errRecordType // nothing goes unprotected after the handshake
	}
	if n > maxCiphertext {
		return 0, errRecordOverflow
	}
	return recordHead + n, nil
}

// open decrypts a whole record in place and returns its content and real type.
func (k *recordKey) open(record []byte) (content []byte, typ byte, err error) {
	p, err := k.aead.Open(record[recordHead:recordHead], k.next(), record[recordHead:], record[:recordHead])
	if err != nil {
		return nil, 0, errBadRecord
	}
	i := len(p) - 1
	for i >= 0 && p[i] == 0 { // padding, RFC 8446 section 5.4
		i--
	}
	switch {
	case i < 0:
		return nil, 0, errRecordType
	case i > recordPlain:
		return nil, 0, errRecordOverflow
	}
	return p[:i:i], p[i], nil
}

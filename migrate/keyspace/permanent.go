package keyspace

import "encoding/hex"

// Permanent gives the digest of the records without a lease, in hexadecimal.
func (f *Fingerprint) Permanent() string { return hex.EncodeToString(f.permanent.append(nil)) }

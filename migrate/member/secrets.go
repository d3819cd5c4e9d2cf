package member

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Where the child finds its files: exec.Cmd's ExtraFiles come after standard input, output and error. Etcd opens these
// paths at its start and some minors again at every handshake. Each open begins at the first byte.
const (
	certPath = "/proc/self/fd/3"
	keyPath  = "/proc/self/fd/4"
	caPath   = "/proc/self/fd/5"
)

// The certificates outlive any step of a migration, and the clock may be set back by an hour meanwhile.
const (
	validBefore = time.Hour
	validAfter  = 24 * time.Hour
)

// rootUser is the one user that always exists and may do everything once etcd's auth is enabled: etcd takes a client
// certificate's common name for the user name.
const rootUser = "root"

// secrets are the certificates and keys of one private etcd: a CA whose key is forgotten as soon as it has signed two
// certificates, one for the etcd and one for us. They are on no disk: the etcd gets its part as anonymous files.
type secrets struct {
	client        *tls.Config
	cert, key, ca *os.File
}

// newSecrets makes the certificates. The files belong to owner, if it is not nil. An etcd that has a gateway between
// HTTP and gRPC is a client of its own listener, and shows its own certificate there, so that must be good for clients.
func newSecrets(owner *syscall.Credential, gateway bool) (_ *secrets, err error) {
	ca, err := newIssuer()
	if err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if gateway {
		usage = append(usage, x509.ExtKeyUsageClientAuth)
	}
	server, err := ca.issue("private etcd", usage...)
	if err != nil {
		return nil, fmt.Errorf("make server certificate: %w", err)
	}
	client, err := ca.issue(rootUser, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, fmt.Errorf("make client certificate: %w", err)
	}
	key, err := x509.MarshalECPrivateKey(server.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		return nil, fmt.Errorf("encode server key: %w", err)
	}

	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	s := &secrets{client: &tls.Config{
		Certificates: []tls.Certificate{client},
		RootCAs:      pool,
		ServerName:   "127.0.0.1",
		MinVersion:   tls.VersionTLS12,
	}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	// "EC PRIVATE KEY" and not PKCS #8, because the oldest etcds are not asked to know more than they must.
	if s.cert, err = memoryFile("cert", pemBlock("CERTIFICATE", server.Certificate[0]), owner); err != nil {
		return nil, err
	}
	if s.key, err = memoryFile("key", pemBlock("EC PRIVATE KEY", key), owner); err != nil {
		return nil, err
	}
	if s.ca, err = memoryFile("ca", pemBlock("CERTIFICATE", ca.cert.Raw), owner); err != nil {
		return nil, err
	}
	return s, nil
}

// files are for exec.Cmd's ExtraFiles, in the order of certPath, keyPath and caPath.
func (s *secrets) files() []*os.File { return []*os.File{s.cert, s.key, s.ca} }

func (s *secrets) close() {
	for _, f := range s.files() {
		if f != nil {
			f.Close()
		}
	}
}

type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newIssuer() (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template, err := certificate("one-time authority of a private etcd")
	if err != nil {
		return nil, err
	}
	template.IsCA = true
	template.MaxPathLenZero = true
	template.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &issuer{cert, key}, err
}

// issue makes a key and a certificate that says 127.0.0.1 and the given name.
func (i *issuer) issue(name string, usage ...x509.ExtKeyUsage) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template, err := certificate(name)
	if err != nil {
		return tls.Certificate{}, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = usage
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, key.Public(), i.key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func certificate(name string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	now := time.Now()
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-validBefore),
		NotAfter:              now.Add(validAfter),
		BasicConstraintsValid: true,
	}, err
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// memoryFile makes a file that has no name and is gone with the last process that has it open.
func memoryFile(name string, content []byte, owner *syscall.Credential) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // Linux before 6.3 does not know MFD_NOEXEC_SEAL, newer ones may insist on it
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err = f.Write(content); err == nil {
		err = f.Chmod(0o400)
	}
	if err == nil && owner != nil {
		err = f.Chown(int(owner.Uid), int(owner.Gid))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	return f, nil
}

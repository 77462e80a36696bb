"""Private keys and certificate requests, on NIST P-256: OpenSSL, GnuTLS and QEMU all support it for TLS 1.3."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def make_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the key in PEM, unencrypted: the file's mode guards it, and a service starts without a passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Load a private key from PEM. Raises ValueError for a key that is not an elliptic curve key."""
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("it is not an elliptic curve key")
    return key


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def make_request(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    """Return a certificate request, in PEM: proof that its sender has the key. The authority ignores the name in it."""
    request = x509.CertificateSigningRequestBuilder().subject_name(named(name)).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)

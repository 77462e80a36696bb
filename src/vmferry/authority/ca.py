"""Signs certificates of managers and agents, and the list of revoked ones."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from vmferry.authority.keys import key_pem, load_key, make_key, named
from vmferry.authority.peers import Role, tls_name, urn
from vmferry.durable import sync_folder, write
from vmferry.errors import StateUnusable, UsageError
from vmferry.errors.system import in_words

LIFE = timedelta(days=90)
CA_LIFE = timedelta(days=3650)
SKEW = timedelta(hours=1)
"""Clocks of hosts differ: what was signed now is good since then."""
_CERT, _KEY = "ca-cert.pem", "ca-key.pem"
_USAGES = {
    # An agent serves its host, and reads from other agents. A manager only asks.
    Role.AGENT: [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
    Role.MANAGER: [ExtendedKeyUsageOID.CLIENT_AUTH],
}


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was just signed: PEM, serial number and time of expiry."""

    pem: bytes
    serial: int
    expires: datetime


class Authority:
    """A certificate authority: key and certificate in one folder, readable by its user only, made on first use."""

    def __init__(self, folder: Path) -> None:
        """Load the key and certificate from `folder`, or create them. Raises StateUnusable."""
        try:
            if not folder.exists():
                _make(folder)
            self.certificate_pem = (folder / _CERT).read_bytes()
            self._certificate = x509.load_pem_x509_certificate(self.certificate_pem)
            self._key = load_key((folder / _KEY).read_bytes())
        except (OSError, ValueError) as error:
            raise StateUnusable(state=folder, reason=in_words(error)) from error

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate, in hexadecimal."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    def issue(
        self, request: bytes, role: Role, name: str, addresses: Iterable[str] = (), life: timedelta = LIFE
    ) -> Issued:
        """Sign a certificate for the key of a request. Role, name and addresses are the caller's, not the request's.

        `addresses`: the names and addresses by which QEMU's NBD clients reach the host. Raises UsageError if the
        request is no certificate request.
        """
        public = _public_key(request)
        now = datetime.now(UTC)
        serial = x509.random_serial_number()
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(urn(role, name))]
        names.append(x509.DNSName(tls_name(role, name)))
        names += [_general_name(address) for address in dict.fromkeys(addresses)]
        builder = _builder(now - SKEW, now + life, serial)
        builder = builder.subject_name(named(name)).issuer_name(self._certificate.subject).public_key(public)
        for extension, critical in _extensions(public, self._key.public_key(), role, names):
            builder = builder.add_extension(extension, critical=critical)
        pem = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        return Issued(pem, serial, now + life)

    def revocations(self, revoked: Mapping[int, datetime], number: int) -> bytes:
        """Return the revocation list (CRL), in PEM, of these serials and the times when they were revoked.

        It does not run out, but is pushed when it grows: GnuTLS refuses every certificate of a list that has run out.
        """
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._certificate.subject)
        builder = builder.last_update(now - SKEW).next_update(now + CA_LIFE)
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        for serial, when in sorted(revoked.items()):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _make(folder: Path) -> None:
    """Create the authority's folder with key and certificate, in one rename: a crash leaves no half an authority."""
    key = make_key()
    now = datetime.now(UTC)
    name = named("vmferry authority")
    builder = _builder(now - SKEW, now + CA_LIFE, x509.random_serial_number())
    builder = builder.subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}.new")
    fresh.mkdir(mode=0o700, parents=True)
    write(fresh / _CERT, pem)
    write(fresh / _KEY, key_pem(key))
    fresh.rename(folder)
    sync_folder(folder.parent)


def _public_key(request: bytes) -> ec.EllipticCurvePublicKey:
    try:
        asked = x509.load_pem_x509_csr(request)
        public = asked.public_key()
        proved = asked.is_signature_valid
    except ValueError as error:
        raise UsageError(reason=f"that is no request for a certificate: {error}") from error
    if not proved or not isinstance(public, ec.EllipticCurvePublicKey):
        raise UsageError(reason="the request for a certificate does not prove an elliptic curve key")
    return public


def _builder(since: datetime, until: datetime, serial: int) -> x509.CertificateBuilder:
    return x509.CertificateBuilder().not_valid_before(since).not_valid_after(until).serial_number(serial)


def _extensions(
    public: ec.EllipticCurvePublicKey, issuer: ec.EllipticCurvePublicKey, role: Role, names: list[x509.GeneralName]
) -> list[tuple[x509.ExtensionType, bool]]:
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(signs_certificates=False), True),
        (x509.ExtendedKeyUsage(_USAGES[role]), False),
        (x509.SubjectKeyIdentifier.from_public_key(public), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), False),
        (x509.SubjectAlternativeName(names), False),
    ]


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)

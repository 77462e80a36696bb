"""Certificate, key and trust anchors of one side, in files that QEMU, libnbd and GnuTLS find by their names.

`tls` is a link to a folder that never changes, except for its revocation list: so key and certificate always
belong together for a process that opens them meanwhile. The layout is that of QEMU's tls-creds-x509.
"""

from __future__ import annotations

import shutil
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from vmferry.authority.dh import DH_PARAMS, FFDHE2048
from vmferry.authority.keys import key_pem
from vmferry.durable import write

CA, CRL = "ca-cert.pem", "ca-crl.pem"
PAIRS = (("server-cert.pem", "server-key.pem"), ("client-cert.pem", "client-key.pem"))
AGENT_DOMAIN = ".agent.vmferry"
"""Ends the name by which TLS tells one agent from another; nobody resolves it."""
RENEW_PART = 1 / 3
"""With less of its life left than that, a certificate is due."""


class TlsFolder:
    """The folder STATE/tls, with the certificate and key in use."""

    def __init__(self, state: Path) -> None:
        self.path = state / "tls"
        self._sets = state / "tls.d"

    @property
    def there(self) -> bool:
        return (self.path / PAIRS[0][0]).exists()

    @property
    def version(self) -> str:
        """A text that differs after each installation of a certificate."""
        return str(self.path.readlink())

    def install(self, key: ec.EllipticCurvePrivateKey, certificate: bytes, ca: bytes, crl: bytes) -> None:
        """Use this key and certificate from now on. Raises ValueError if these and the CA do not belong together."""
        mine = x509.load_pem_x509_certificate(certificate)
        try:
            mine.verify_directly_issued_by(x509.load_pem_x509_certificate(ca))
        except (InvalidSignature, TypeError) as error:
            raise ValueError("the certificate is not signed by that authority") from error
        _crl(crl, ca)
        if mine.public_key() != key.public_key():
            raise ValueError("the certificate is of another key")
        folder = self._sets / f"{mine.serial_number:x}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        for cert_name, key_name in PAIRS:
            write(folder / cert_name, certificate)
            write(folder / key_name, key_pem(key))
        write(folder / CA, ca)
        write(folder / CRL, crl)
        write(folder / DH_PARAMS, FFDHE2048)
        self._point_to(folder)

    def _point_to(self, folder: Path) -> None:
        link = self.path.with_name("tls.new")
        link.unlink(missing_ok=True)
        link.symlink_to(folder.relative_to(self.path.parent))
        link.replace(self.path)
        for old in self._sets.iterdir():
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)

    def set_revocations(self, crl: bytes) -> None:
        """Replace the revocation list. Raises ValueError if it is not the authority's, or older than the one here."""
        revoked = _crl(crl, (self.path / CA).read_bytes())
        if number_of(revoked) < self.revocations_number():
            raise ValueError("it is older than the list that is here")
        write(self.path / CRL, crl)

    def revocations_number(self) -> int:
        return number_of(self._revocations())

    def revoked(self) -> frozenset[int]:
        """Return the serial numbers of the revoked certificates."""
        return frozenset(entry.serial_number for entry in self._revocations())

    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.path / PAIRS[0][0]).read_bytes())

    @property
    def name(self) -> str:
        """The name of the host or manager that the certificate belongs to."""
        alternatives = self.certificate().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return alternatives.get_values_for_type(x509.UniformResourceIdentifier)[0].rpartition(":")[2]

    @property
    def address(self) -> str:
        """The certificate's first address by which other hosts reach this one. Raises ValueError if there is none."""
        alternatives = self.certificate().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        for kind in (x509.IPAddress, x509.DNSName):
            for found in alternatives.get_values_for_type(kind):
                if not str(found).endswith(AGENT_DOMAIN):
                    return str(found)
        raise ValueError(f"the certificate of {self.name} has no address")

    def due_at(self) -> datetime:
        """Return the time from which on the certificate should be renewed."""
        mine = self.certificate()
        return mine.not_valid_after_utc - (mine.not_valid_after_utc - mine.not_valid_before_utc) * RENEW_PART

    def due(self, now: datetime | None = None) -> bool:
        """Should the certificate be renewed by `now`, or by the present time?"""
        return (now or datetime.now(UTC)) > self.due_at()

    def remove(self) -> None:
        with suppress(FileNotFoundError):
            self.path.unlink()
        shutil.rmtree(self._sets, ignore_errors=True)

    def _revocations(self) -> x509.CertificateRevocationList:
        return _crl((self.path / CRL).read_bytes(), (self.path / CA).read_bytes())


def number_of(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def _crl(pem: bytes, ca: bytes) -> x509.CertificateRevocationList:
    crl = x509.load_pem_x509_crl(pem)
    key = x509.load_pem_x509_certificate(ca).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not crl.is_signature_valid(key):
        raise ValueError("the list of revocations is not signed by the authority")
    return crl


def server_context(folder: Path) -> ssl.SSLContext:
    """Return a TLS 1.3 context; a client must show a certificate of the authority before a byte is read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # a resumed session would outlive the certificate that it began with
    return _loaded(context, folder)


def client_context(folder: Path) -> ssl.SSLContext:
    """Return a TLS 1.3 context; the server's certificate must be the authority's, with the name asked for."""
    return _loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), folder)


def _loaded(context: ssl.SSLContext, folder: Path) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cafile=folder / CA)
    cert, key = PAIRS[0]
    context.load_cert_chain(folder / cert, folder / key)
    return context

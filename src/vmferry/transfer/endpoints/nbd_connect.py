"""NBD URLs: how libnbd connects to one, with TLS where the URL asks for it."""

from __future__ import annotations

from pathlib import Path

import nbd

from vmferry.errors import BadPlace
from vmferry.qemu.places import Place
from vmferry.transfer.endpoints.nbd_connection import Connect

_X509 = ("ca-cert.pem", "client-cert.pem", "client-key.pem")
_PSK = "keys.psk"


def connecting(place: Place) -> Connect:
    """Return the function that lets a libnbd handle connect to the place's URL.

    Raises BadPlace if keys for TLS are given and the URL does not use TLS, or if their folder has no keys.
    """
    if place.tls and not place.encrypted:
        raise BadPlace(place=place.shown, reason="keys for TLS are given but it does not use TLS: write nbds://")
    psk = _psk(place) if place.encrypted else None

    def connect(handle: nbd.NBD) -> None:
        handle.set_uri_allow_tls(nbd.TLS_REQUIRE if place.encrypted else nbd.TLS_DISABLE)
        handle.set_uri_allow_transports(nbd.ALLOW_TRANSPORT_TCP | nbd.ALLOW_TRANSPORT_UNIX)
        if psk:
            handle.set_tls_psk_file(str(psk))
        elif place.tls:
            handle.set_tls_certificates(str(place.tls))
        handle.aio_connect_uri(place.at)

    return connect


def _psk(place: Place) -> Path | None:
    """Return the file of pre-shared keys; None to use the folder's certificates, or the system's without a folder.

    Raises BadPlace if the folder has neither.
    """
    if place.tls is None:
        return None
    if (place.tls / _PSK).is_file():
        return place.tls / _PSK
    missing = [name for name in _X509[:1] if not (place.tls / name).is_file()]
    if missing:
        raise BadPlace(
            place=place.shown, reason=f"{place.tls} has neither {_PSK} nor {missing[0]}: name another folder"
        )
    return None

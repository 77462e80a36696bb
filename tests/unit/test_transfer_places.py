"""The words for a place: what is understood, what is refused and with what advice."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmferry.errors import BadPlace, UsageError
from vmferry.qemu.places import FORMATS, Place, Scheme, place_of, shown

GOOD = [
    ("/srv/disk.img", Scheme.PATH),
    ("disk with spaces and : in it", Scheme.PATH),
    ("/dev/sdb", Scheme.PATH),
    ("nbd://host", Scheme.NBD),
    ("nbd://host:10810/export", Scheme.NBD),
    ("nbd://[::1]:10810/export", Scheme.NBD),
    ("nbd+unix:///export?socket=/run/s", Scheme.NBD),
    ("nbds://user@host/export", Scheme.NBD),
    ("iscsi://10.0.0.1:3260/iqn.2026-01.org.example:disk/1", Scheme.ISCSI),
    ("iscsi://user%secret@host/iqn.x:y/0", Scheme.ISCSI),
    ("nfs://host/export/file.qcow2", Scheme.NFS),
    ('json:{"driver": "null-co"}', Scheme.JSON),
]
BAD = [
    ("", "name a file"),
    ("http://host/disk", "no protocol known here"),
    ("nbd:host:10809", "write it as nbd://"),
    ("nbd:///export", "names no host"),
    ("nbd+unix:///export", "name its socket"),
    ("nbd://host:port/", "write it as"),
    ("nbd://host:99999/", "write it as"),
    ("iscsi://host/iqn.x:y", "LUN"),
    ("iscsi://host/iqn.x:y/one", "LUN"),
    ("nfs://host/", "names no file"),
    ("nbd://[::1/", "write it as"),
]


@pytest.mark.parametrize(("text", "scheme"), GOOD)
def test_what_qemu_img_takes_is_understood(text: str, scheme: Scheme) -> None:
    assert Place(text).scheme is scheme


@pytest.mark.parametrize(("text", "advice"), BAD)
def test_what_makes_no_sense_is_refused_with_advice(text: str, advice: str) -> None:
    with pytest.raises(BadPlace, match=advice):
        Place(text)


def test_an_unknown_format_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(BadPlace, match=r"raw, qcow2, vmdk, vhdx, vpc"):
        Place("/srv/disk", "qed")


def test_a_password_is_not_shown() -> None:
    place = Place("iscsi://joe%secret@host/iqn.x:y/0")
    assert place.shown == "iscsi://joe@host/iqn.x:y/0"
    with pytest.raises(BadPlace) as refused:
        Place("iscsi://joe%secret@host/")
    assert "secret" not in str(refused.value)


def test_a_bare_path_is_a_file_of_bytes() -> None:
    assert place_of(Path("/srv/a")) == Place("/srv/a", "raw")
    assert shown(Path("/srv/a")) == shown(Place("/srv/a")) == "/srv/a"


@settings(deadline=None)
@given(st.text(max_size=60), st.sampled_from([*FORMATS, "other"]))
def test_any_text_is_a_place_or_a_usage_error(text: str, format_: str) -> None:
    try:
        assert Place(text, format_).shown
    except UsageError as error:
        assert error.exit_code == 2


@settings(deadline=None)
@given(st.sampled_from(["nbd://", "nbds://", "nbd+unix://", "iscsi://", "nfs://", "NBD://"]), st.text(max_size=40))
def test_any_url_is_a_place_or_a_usage_error(scheme: str, rest: str) -> None:
    try:
        assert Place(scheme + rest).scheme is not Scheme.PATH
    except UsageError as error:
        assert error.exit_code == 2

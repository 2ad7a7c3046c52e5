"""A certificate that no client would take is refused before anybody is answered by it."""

from __future__ import annotations

import os
import ssl

import pytest
from pki import Authority

from ebjr.certificates import server_context, stamp_of


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("pki"))


def test_a_certificate_and_its_key_are_taken_from_two_files_or_one(ca):
    cert, key = ca.certificate("good")
    assert server_context(cert, key).verify_mode == ssl.CERT_NONE
    one = ca.folder / "both.pem"
    one.write_bytes(cert.read_bytes() + key.read_bytes())
    found = server_context(one, ca_certs=ca.file)
    assert found.verify_mode == ssl.CERT_REQUIRED
    assert found.minimum_version == ssl.TLSVersion.TLSv1_2


def test_what_is_wrong_is_one_sentence(ca, tmp_path):
    cert, key = ca.certificate("one")
    _, other = ca.certificate("two")
    expired = ca.certificate("old", days=-1)
    locked = ca.certificate("locked", password="sesame")
    text = tmp_path / "text.pem"
    text.write_text("hello")
    server_context(*locked, password="sesame")
    for files, how, words in (
        ((cert, other), {}, f"the key {other} does not belong to the certificate {cert}"),
        (expired, {}, "clients would refuse .*: certificate has expired"),
        (locked, {}, "needs a password"),
        (locked, {"password": "simsim"}, "has another password"),
        ((text, key), {}, "must be a certificate and its key in PEM"),
        ((cert, text), {}, "must be a certificate and its key in PEM"),
        ((cert, key), {"ca_certs": text}, "must hold certificates in PEM"),
    ):
        with pytest.raises(ValueError, match=words) as raised:
            server_context(*files, **how)
        assert "\n" not in str(raised.value)
        assert "simsim" not in str(raised.value)
    with pytest.raises(FileNotFoundError):
        server_context(tmp_path / "none.pem", key)


def test_a_stamp_tells_a_file_from_another_of_its_name(tmp_path):
    path, beside = tmp_path / "token", tmp_path / "beside"
    assert stamp_of([path]) == (None,)
    path.write_text("one")
    first = stamp_of([path])
    beside.write_text("two")
    seen = path.stat()
    os.utime(beside, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    beside.replace(path)
    assert stamp_of([path]) != first

"""Authorities and their certificates, in files, for tests of TLS."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="it is of the extra `dev`")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


class Authority:
    """Signs certificates; `file` has its own."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder, self.name = folder, named(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.file = folder / f"{name}.pem"
        self._write(self.file, self._signed(self.name, self._key.public_key(), DAY, ca=True))

    def certificate(
        self, name: str, days: float = 1, password: str | None = None
    ) -> tuple[Path, Path]:
        """A certificate for this machine and its key; `days` below 0 is one that has expired."""
        key, folder = ec.generate_private_key(ec.SECP256R1()), self.folder
        self._write(folder / f"{name}.crt", self._signed(named(name), key.public_key(), days * DAY))
        kind = serialization.NoEncryption()
        if password is not None:
            kind = serialization.BestAvailableEncryption(password.encode())
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        (folder / f"{name}.key").write_bytes(key.private_bytes(*form, kind))
        return folder / f"{name}.crt", folder / f"{name}.key"

    def _signed(self, name, public, lasts, *, ca=False):
        own, uses = self._key.public_key(), ("content_commitment", "key_encipherment")
        uses += ("data_encipherment", "key_agreement", "crl_sign", "encipher_only", "decipher_only")
        known = dict.fromkeys(uses, False) | {"digital_signature": True, "key_cert_sign": ca}
        places = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * DAY)
            .not_valid_after(now + lasts)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**known), critical=True)
            .add_extension(x509.SubjectAlternativeName(places), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @staticmethod
    def _write(path: Path, certificate) -> None:
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

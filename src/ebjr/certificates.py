"""Certificates and keys in files: put into contexts of TLS, and what is wrong with them said.

Their passwords, and tokens, come from the environment.
"""

import os
import ssl
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

File = str | os.PathLike[str]
Stamp = tuple[tuple[int, int, int] | None, ...]


def secret_in(variable: str) -> str | None:
    """A secret of the environment, None where it is not set; ValueError: it is set and empty."""
    if (secret := os.environ.get(variable)) == "":
        raise ValueError(
            f"{variable} is set and empty, as where a secret was not filled in: fill it in, or "
            "unset it"
        )
    return secret


def stamp_of(paths: Iterable[File]) -> Stamp:
    """What tells files from other ones under the same names, without reading them."""
    found: list[tuple[int, int, int] | None] = []
    for path in paths:
        about = None
        with suppress(OSError):  # it is missing just now
            seen = Path(path).stat()
            about = seen.st_mtime_ns, seen.st_size, seen.st_ino
        found.append(about)
    return tuple(found)


def server_context(
    certfile: File,
    keyfile: File | None = None,
    *,
    password: str | None = None,
    ca_certs: File | None = None,
) -> ssl.SSLContext:
    """What a server answers TLS 1.2 and later by; with `ca_certs` clients must have certificates.

    Raises
    ------
    OSError
        A file cannot be read.
    ValueError
        A file is no certificate or key, `keyfile` is not that of `certfile`, `password` is not that
        of `keyfile`, or a certificate has expired.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load_chain(context, certfile, keyfile, password)
    _check_dates(context, certfile)
    if ca_certs is not None:
        load_authorities(context, ca_certs)
        context.verify_mode = ssl.CERT_REQUIRED
        context.num_tickets = 0  # who resumes a session shows no certificate again
        context.options |= ssl.OP_NO_TICKET
    return context


def client_context(
    ca_file: File | None = None,
    certfile: File | None = None,
    keyfile: File | None = None,
    *,
    password: str | None = None,
) -> ssl.SSLContext:
    """What a client asks by: it trusts `ca_file`, or else the system's authorities.

    `certfile` is its own certificate, for servers that ask for one. OSError and ValueError are as
    of `server_context`.
    """
    context = ssl.create_default_context() if ca_file is None else _trusting(ca_file)
    if certfile is not None:
        load_chain(context, certfile, keyfile, password)
    elif keyfile is not None:
        raise ValueError(f"the key {keyfile} needs its certificate beside it: client_cert")
    return context


def _trusting(ca_file: File) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load_authorities(context, ca_file)
    return context


def load_chain(
    context: ssl.SSLContext, certfile: File, keyfile: File | None, password: str | None = None
) -> None:
    """Put a certificate and its key, which may stand in one file, into a context.

    OSError and ValueError as of `server_context`.
    """
    asked = []

    def given() -> str:
        asked.append(True)
        return password or ""

    key = certfile if keyfile is None else keyfile
    _check_readable(certfile, key)
    try:
        context.load_cert_chain(certfile, keyfile, given)  # without `given` OpenSSL asks a terminal
    except (ssl.SSLError, ValueError) as error:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            words = f"the certificate {certfile} does not belong to the key {key}: give its own"
        elif asked:
            what = "needs a password" if password is None else "has another password than the given"
            words = f"the key {key} {what}"
        else:
            words = f"{certfile} and {key} must be a certificate and its key in PEM, and are not"
        raise ValueError(words) from error


def load_authorities(context: ssl.SSLContext, ca_certs: File) -> None:
    """Put the certificates of authorities into a context; OSError and ValueError as above."""
    _check_readable(ca_certs)
    try:
        context.load_verify_locations(ca_certs)
    except ssl.SSLError as error:
        raise ValueError(f"{ca_certs} must hold certificates in PEM, and does not") from error


def _check_readable(*paths: File) -> None:
    for path in paths:
        with Path(path).open("rb"):  # which says what OpenSSL does not
            pass


def _check_dates(context: ssl.SSLContext, certfile: File) -> None:
    """Check that a client that trusts the certificate takes it today: by a handshake in memory."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trusted without its authority
    load_authorities(client, certfile)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(back, there), context.wrap_bio(there, back, server_side=True)
    try:
        for end in (*ends, ends[0]):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        words = f"clients would refuse the certificate {certfile}: {error.verify_message}"
        raise ValueError(words) from error
    except ssl.SSLError as error:
        raise ValueError(f"the certificate {certfile} cannot be used: {error.reason}") from error

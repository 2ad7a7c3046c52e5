"""TLS contexts from certificates and keys in files, with messages about what is wrong with them.

Passwords and tokens come from the environment.
"""

import os
import ssl
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

File = str | os.PathLike[str]
Stamp = tuple[tuple[int, int, int] | None, ...]


def secret_in(variable: str) -> str | None:
    """Return a secret in the environment, None if it is not set; a ValueError if it is empty."""
    if (secret := os.environ.get(variable)) == "":
        raise ValueError(f"{variable} is set but empty: set it to the secret, or unset it")
    return secret


def stamp_of(paths: Iterable[File]) -> Stamp:
    """Return time, size and inode of files, which change when a file is replaced."""
    found: list[tuple[int, int, int] | None] = []
    for path in paths:
        about = None
        with suppress(OSError):  # missing while it is being replaced
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
    """Make a server's context, TLS 1.2 or later; with `ca_certs` clients must show a certificate.

    Raises
    ------
    OSError
        A file cannot be read.
    ValueError
        A file is not a certificate or key, `keyfile` does not belong to `certfile`, `password` is
        wrong, or a certificate has expired.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load_chain(context, certfile, keyfile, password)
    expiry_of(context, certfile)
    if ca_certs is not None:
        load_authorities(context, ca_certs)
        context.verify_mode = ssl.CERT_REQUIRED
        context.num_tickets = 0  # a resumed session would skip the client's certificate
        context.options |= ssl.OP_NO_TICKET
    return context


def client_context(
    ca_file: File | None = None,
    certfile: File | None = None,
    keyfile: File | None = None,
    *,
    password: str | None = None,
) -> ssl.SSLContext:
    """Make a client's context, which trusts `ca_file`, or else the system's authorities.

    `certfile` is the client's own certificate, for servers that ask for one. Errors are those of
    `server_context`.
    """
    context = ssl.create_default_context() if ca_file is None else _trusting(ca_file)
    if certfile is not None:
        load_chain(context, certfile, keyfile, password)
    elif keyfile is not None:
        raise ValueError(f"the key {keyfile} needs its certificate: give client_cert")
    return context


def _trusting(ca_file: File) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load_authorities(context, ca_file)
    return context


def load_chain(
    context: ssl.SSLContext, certfile: File, keyfile: File | None, password: str | None = None
) -> None:
    """Load a certificate and its key, which may be in one file, into a context.

    Errors are those of `server_context`.
    """
    asked = []

    def given() -> str:
        asked.append(True)
        return password or ""

    key = certfile if keyfile is None else keyfile
    _check_readable(certfile, key)
    try:
        # without `given` OpenSSL prompts on the terminal, and hangs a server
        context.load_cert_chain(certfile, keyfile, given)
    except (ssl.SSLError, ValueError) as error:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            words = f"the key {key} does not belong to the certificate {certfile}: give its own key"
        elif asked:
            what = "needs a password" if password is None else "has another password"
            words = f"the key {key} {what}"
        else:
            words = f"{certfile} and {key} must be a certificate and its key in PEM, but are not"
        raise ValueError(words) from error


def load_authorities(context: ssl.SSLContext, ca_certs: File) -> None:
    """Load the certificates of authorities into a context; errors as for `server_context`."""
    _check_readable(ca_certs)
    try:
        context.load_verify_locations(ca_certs)
    except ssl.SSLError as error:
        raise ValueError(f"{ca_certs} must hold certificates in PEM, but does not") from error


def _check_readable(*paths: File) -> None:
    for path in paths:
        with Path(path).open("rb"):  # its error names the file, OpenSSL's does not
            pass


def expiry_of(context: ssl.SSLContext, certfile: File) -> float:
    """Return when a certificate expires, in seconds since 1970.

    ValueError if a client would not accept it today, by a handshake in memory.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trust it without its authority
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
    return ssl.cert_time_to_seconds(str((ends[0].getpeercert() or {})["notAfter"]))

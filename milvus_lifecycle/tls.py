"""TLS material: the PEM files of a connection, read and checked before gRPC sees them.

gRPC itself reports a missing or broken file as an endless UNAVAILABLE, or not at all.
"""

from __future__ import annotations

import functools
import os
import ssl
from dataclasses import dataclass, field
from typing import Any, Protocol

from milvus_lifecycle.errors import ConfigError

PATH_FIELDS = ("server_pem_path", "client_pem_path", "client_key_path", "ca_pem_path")
"""The fields of a config that name PEM files."""

_PEM_LIMIT = 4 * 1024 * 1024


@dataclass(frozen=True)
class TlsMaterial:
    """What `grpc.ssl_channel_credentials` takes; None means: the system's own.

    `server_name` overrides the name that the certificate must bear, "" does not.
    """

    root: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    chain: bytes | None = field(default=None, repr=False)
    server_name: str = ""


class Configured(Protocol):
    """A configuration: is it for TLS, and its options by pymilvus's names."""

    secure: bool

    def get_handler_kwargs(self) -> dict[str, Any]: ...


def load_tls(config: Configured) -> TlsMaterial | None:
    """Read the PEM files that pymilvus's handler would read; None without TLS. Does file I/O.

    As in pymilvus 3.0.2 `server_pem_path` wins over all others. `ca_pem_path` verifies the server,
    with a client's certificate and key or alone (pymilvus takes it only with both); without
    either, the system's root certificates do.

    Raises:
        ConfigError: names the field and the path of a file that is missing, unreadable or not
            what it should be. No content is shown.
    """
    if not config.secure:
        return None
    given = config.get_handler_kwargs()
    root, chain, key, authority = (given.get(name, "") for name in PATH_FIELDS)
    server_name = given.get("server_name", "")
    if root:
        return TlsMaterial(root=_read_roots("server_pem_path", root), server_name=server_name)
    if bool(chain) != bool(key):
        missing, alone = "client_key_path", "client_pem_path"
        if key:
            missing, alone = alone, missing
        raise ConfigError(f"{missing} is missing: {alone} is of no use without it", field=missing)
    material = TlsMaterial(
        root=_read_roots("ca_pem_path", authority) if authority else None,
        key=_read_file("client_key_path", key) if key else None,
        chain=_read_file("client_pem_path", chain) if chain else None,
        server_name=server_name,
    )
    if chain:
        _check_pair(chain, key)
    return material


def tls_files(config: Configured) -> list[str]:
    """The paths of the files that `load_tls` reads."""
    given = config.get_handler_kwargs() if config.secure else {}
    root, *others = (given.get(name) for name in PATH_FIELDS)
    return [path for path in ([root] if root else others) if path]


def fingerprint(config: Configured) -> list[tuple[int, int, int] | None]:
    """What differs once one of `tls_files` was replaced or written to. Reads none of them."""
    return [_status(path) for path in tls_files(config)]


def _status(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


@functools.lru_cache(maxsize=16)
def client_context(roots: bytes | None) -> ssl.SSLContext:
    """Return a verifying context for HTTPS; None: the system's roots and certifi's.

    Cached, for the system's roots take some 40 ms. As gRPC does, any certificate among the
    roots is an anchor, also one that is no CA: users name the server's own certificate there.

    Raises:
        ValueError: (also ssl.SSLError) `roots` are not PEM certificates.
        ImportError: certifi is not there; it comes with the extra `global`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if roots is None:
        import certifi

        context.load_default_certs()
        context.load_verify_locations(certifi.where())  # images without a store of their own
        return context
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=roots.decode("ascii", "ignore"))
    return context


def certificate_error(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """Return what OpenSSL said against a certificate, from wherever it hides below an error."""
    for _ in range(10):
        if error is None or isinstance(error, ssl.SSLCertVerificationError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _read_file(name: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_PEM_LIMIT + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(f"{name} {path!r} cannot be read: {reason}", field=name) from None
    if len(content) > _PEM_LIMIT:
        raise ConfigError(f"{name} {path!r} is larger than {_PEM_LIMIT:,} bytes", field=name)
    return content


def _read_roots(name: str, path: str) -> bytes:
    content = _read_file(name, path)
    try:
        # Only ASCII is taken as PEM; what stands between the certificates may be anything.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=content.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "no certificate found"
        raise ConfigError(
            f"{name} {path!r} does not hold PEM certificates: {reason}", field=name
        ) from None
    return content


def _check_pair(chain_path: str, key_path: str) -> None:
    """Check that certificate and key are a pair, which only OpenSSL can tell, from files."""
    for path in (chain_path, key_path):
        if os.path.exists(path) and not os.path.isfile(path):
            return  # a pipe can be read only once; gRPC will complain
    where = f"client_pem_path {chain_path!r} and client_key_path {key_path!r}"
    try:
        # A password, even an empty one, keeps OpenSSL from asking on the terminal.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(chain_path, key_path, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or "unreadable, or the key is encrypted"
        raise ConfigError(
            f"{where} are not a certificate and its unencrypted key in PEM form: {reason}",
            field="client_key_path",
        ) from None

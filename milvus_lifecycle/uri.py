"""Endpoints: URIs taken apart, without I/O, and shown without their credentials.

A URI is taken apart here by hand, not by `urllib.parse`: that drops control characters
silently, fails inside brackets, and reports nothing that one could show to a user without
showing the password too. One parser serves the first connect (`parse_uri`) and the addresses
of a failover (`parse_endpoint`).
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from urllib.parse import unquote

from milvus_lifecycle.errors import ConfigError

DEFAULT_PORT = 19530

_DEFAULT_PORTS = {"http": DEFAULT_PORT, "https": 443, "tcp": DEFAULT_PORT}
_ACCEPTED = (
    "accepted are http://host[:port][/database], https://..., tcp://..., "
    "unix:/path/to/socket, or a path that ends in .db"
)
#: pymilvus's words, and what to install.
LITE_MISSING = (
    "milvus-lite is required for local database connections (a path that ends in .db). "
    "Please install it with: pip install milvus-lite"
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_HOST = re.compile(r"(?=[^.-])[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?")
_ZONE = re.compile(r"[A-Za-z0-9._-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # and lone surrogates


@dataclass(repr=False)
class UriParts:
    """What a URI says. `address` is what gRPC dials; `host` is lower case, in brackets for IPv6.

    `uri` is the text without credentials, `token` the decoded credentials, and `scheme` and
    `host` are "" for sockets and files.
    """

    uri: str
    address: str
    scheme: str = ""
    host: str = ""
    token: str = ""
    db_name: str = ""
    is_local: bool = False


class _Refused(ValueError):
    """Why a URI is not accepted."""


def parse_uri(uri: object) -> UriParts:
    """Take the URI of a client apart. Of a `.db` path it looks only whether it can be served:
    whether its folder exists and Milvus Lite is installed.

    Raises:
        ConfigError: names the value, without credentials, and what is accepted.
    """
    return _take_apart("uri", uri, _parse_uri)


def parse_endpoint(endpoint: str, *, secure: bool = False) -> tuple[str, bool]:
    """Return (address, secure) of a bare endpoint such as a topology names.

    `https://host` is ("host:443", True), `host:19530` is ("host:19530", secure): an endpoint
    that names no scheme says nothing about TLS, so that the caller's setting stays.

    Raises:
        ConfigError: anything else; also credentials, which an endpoint must not carry.
    """
    parts = _take_apart("endpoint", endpoint, _parse_endpoint)
    if parts.scheme in ("http", "https"):
        secure = parts.scheme == "https"
    return parts.address, secure


def check_plain(text: str) -> bool:
    """Tell whether a text is Unicode without control characters."""
    return not _CONTROL.search(text)


def _take_apart(name: str, value: object, parse: Callable[[str], UriParts]) -> UriParts:
    if not isinstance(value, str):
        raise ConfigError(
            f"{name} must be a string, not {type(value).__name__}; {_ACCEPTED}", field=name
        )
    try:
        if not value or value != value.strip() or not check_plain(value):
            raise _Refused(f"empty, outer whitespace or control characters do not fit; {_ACCEPTED}")
        return parse(value)
    except _Refused as refused:
        # Not chained: what failed underneath may hold the value itself.
        # "is illegal" is how pymilvus says it.
        raise ConfigError(
            f"{name} {_without_credentials(value)!r} is illegal: {refused}", field=name
        ) from None


def _parse_uri(text: str) -> UriParts:
    if text.startswith("unix:"):
        return _parse_unix(text)
    if text.endswith(".db") and "://" not in text:
        return _parse_local(text)
    return _parse_network(text)


def _parse_endpoint(text: str) -> UriParts:
    if text.startswith("unix:"):
        return _parse_unix(text)
    parts = _parse_network(text if "://" in text else f"tcp://{text}")
    if parts.token:
        raise _Refused("credentials are not accepted here")
    return parts


def _parse_unix(text: str) -> UriParts:
    if not text.removeprefix("unix:").strip("/"):
        raise _Refused("the path of the socket is missing, as in unix:/run/milvus.sock")
    return UriParts(uri=text, address=text)


def _parse_local(text: str) -> UriParts:
    try:
        path = os.path.abspath(text)
    except OSError:
        raise _Refused("it has no absolute path, for the working directory is gone") from None
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        # A mistyped URI may have come this far, so that even a path is not shown as it is.
        shown = _without_credentials(folder)
        raise _Refused(f"the folder {shown!r} does not exist; create it first")
    if find_spec("milvus_lite") is None:  # not imported: that takes 0.3 s
        raise ConfigError(LITE_MISSING, field="uri")
    return UriParts(uri=text, address=path, is_local=True)


def _parse_network(text: str) -> UriParts:
    given, separator, rest = text.partition("://")
    scheme = given.lower()
    if not separator or scheme not in _DEFAULT_PORTS:
        raise _Refused(_ACCEPTED)
    if any(char.isspace() for char in text):
        raise _Refused("whitespace is not accepted; percent-encode it in credentials")
    end = next((at for at, char in enumerate(rest) if char in "/?#"), len(rest))
    authority, tail = rest[:end], rest[end:]
    if "@" in tail:
        raise _Refused("percent-encode '/', '?', '#' and '@' in credentials")
    if "?" in tail or "#" in tail:
        raise _Refused(f"'?' and '#' are not accepted; {_ACCEPTED}")
    userinfo, _, hostport = authority.rpartition("@")
    host, port = _parse_host_port(hostport)
    segment = next((part for part in tail.split("/") if part), "")
    return UriParts(
        uri=f"{given}{separator}{hostport}{tail}",
        address=f"{host}:{port or _DEFAULT_PORTS[scheme]}",
        scheme=scheme,
        host=host,
        token=_parse_credentials(userinfo),
        db_name=_decode(segment),
    )


def _parse_credentials(userinfo: str) -> str:
    user, _, password = userinfo.partition(":")
    if password and not user:
        raise _Refused("a password needs a user name before its colon")
    return f"{_decode(user)}:{_decode(password)}" if password else _decode(user)


def _parse_host_port(hostport: str) -> tuple[str, int]:
    """Return the host as gRPC wants it (IPv6 in brackets) and the port, 0 for none."""
    if hostport.startswith("["):
        literal, bracket, rest = hostport[1:].partition("]")
        if not bracket or rest[:1] not in ("", ":"):
            raise _Refused("an IPv6 address looks like http://[::1]:19530")
        host, port = _parse_ipv6(literal), rest[1:]
    else:
        host, _, port = hostport.partition(":")
        host = host.lower()
        if ":" in port:
            raise _Refused("write an IPv6 address in brackets: http://[::1]:19530")
        if not host:
            raise _Refused(f"the host is empty; {_ACCEPTED}")
        if len(host) > 253 or not _HOST.fullmatch(host):
            raise _Refused("the host may hold letters, digits, '-', '_' and single dots")
    if not port:
        return host, 0
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise _Refused("the port must be a number from 1 to 65535")
    return host, int(port)


def _parse_ipv6(literal: str) -> str:
    address, percent, zone = literal.partition("%")
    zone = zone.removeprefix("25")  # RFC 6874: "%25eth0" in a URI; many write "%eth0"
    try:
        address = ipaddress.IPv6Address(address).compressed
    except ValueError:
        raise _Refused("what stands in brackets must be an IPv6 address") from None
    if percent and not _ZONE.fullmatch(zone):
        raise _Refused("an IPv6 zone looks like http://[fe80::1%25eth0]:19530")
    return f"[{address}{percent}{zone}]"


def _decode(text: str) -> str:
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise _Refused("percent-encoded parts must be UTF-8") from None
    if not check_plain(decoded):
        raise _Refused("control characters are not accepted")
    return decoded


def _without_credentials(text: str) -> str:
    """Return a URI that may be shown, however broken it is.

    Everything up to the last "@" goes, and what stands in the place of a port without being
    a number: both are where a password stands when a URI was put together wrongly.
    """
    scheme, separator, rest = text.partition("://")
    if not (separator and _SCHEME.fullmatch(scheme)):
        scheme, separator, rest = "", "", text
    _, credentials, rest = rest.rpartition("@")
    rest = re.sub(r"([?#]).*", r"\1***", rest, flags=re.DOTALL)
    if not rest.startswith("["):
        rest = re.sub(r"^([^/:]*):(?!\d{1,6}(?:[/?#]|$))[^/]*", r"\1:***", rest)
    shown = f"{scheme}{separator}{'***@' if credentials else ''}{rest}"
    return shown if len(shown) <= 200 else f"{shown[:197]}..."

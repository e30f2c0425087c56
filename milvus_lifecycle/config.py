"""ConnectionConfig: where and how to connect, and the key under which that is pooled."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping
from functools import lru_cache
from operator import attrgetter
from typing import Any, Protocol

from milvus_lifecycle.errors import ConfigError, for_callers
from milvus_lifecycle.tls import PATH_FIELDS, TlsMaterial, load_tls
from milvus_lifecycle.uri import UriParts, check_plain, parse_endpoint, parse_uri

__all__ = ["ConnectionConfig", "TlsMaterial", "load_tls", "parse_endpoint"]

GLOBAL_CLUSTER_MARK = "global-cluster"

_TEXT_FIELDS = ("user", "password", "server_name")
_RESERVED_FIELDS = ("address", "channel")
#: types of which equal values mean the same
_PLAIN = frozenset({str, bool, int, type(None)})

# Keys end up in stats and logs. With a key of its own for every process, nobody can try out
# passwords against a digest that he has read there.
_DIGEST_KEY = secrets.token_bytes(32)


class ForeignConfig(Protocol):
    """What `ConnectionConfig.coerce` reads: pymilvus's class of the same name has it."""

    uri: str
    address: str
    token: str
    db_name: str
    handler_kwargs: Iterable[tuple[str, Any]]


class ConnectionConfig:
    """Where and how to connect. Immutable but for `db_name`, which is per call.

    Attributes:
        uri: the URI as given, without credentials.
        address: what gRPC dials: "host:port", "[::1]:port", "unix:...", or the absolute path
            of a `.db` file.
        token: "user:password" or an API key, "" for none.
        db_name: the database, "" for the server's default; not part of the key.
        key: equal for two configs exactly when they may share a connection.
        is_global: the host names a global cluster.
        is_local: a `.db` path, served by Milvus Lite.
        secure: TLS.
        handler_kwargs: everything else, as (name, value) pairs for pymilvus's handler.
    """

    __slots__ = (
        "__weakref__",
        "address",
        "db_name",
        "handler_kwargs",
        "is_global",
        "is_local",
        "key",
        "secure",
        "token",
        "uri",
    )

    def __init__(self, parts: UriParts, handler_kwargs: dict[str, Any]) -> None:
        """Use `from_uri`."""
        self.uri = parts.uri
        self.address = parts.address
        self.token = parts.token
        self.db_name = parts.db_name
        self.is_global = GLOBAL_CLUSTER_MARK in parts.host
        self.is_local = parts.is_local
        self.secure: bool = handler_kwargs.get("secure", False)
        self.handler_kwargs = tuple(handler_kwargs.items())
        self.key = _pool_key(parts, handler_kwargs)

    @classmethod
    def from_uri(
        cls, uri: str, *, token: str | None = None, db_name: str | None = None, **kwargs: Any
    ) -> ConnectionConfig:
        """Parse a URI; an explicit argument beats the URI, "" and None mean the URI's.

        Args:
            uri: `http://[user:password@]host[:port][/database]`, `https://` (TLS, port 443),
                `tcp://`, `unix:/path`, or a path ending in `.db`. Credentials and database
                are percent-decoded. The port is 19530 unless said otherwise.
            token: "user:password" or an API key.
            db_name: the database.
            **kwargs: for pymilvus's handler: secure, server_pem_path, client_pem_path,
                client_key_path, ca_pem_path, server_name, grpc_options, user, password ...

        Raises:
            ConfigError: names the field, its value without credentials, and what is accepted;
                where pymilvus is installed it is a ConnectionConfigException too.
        """
        plain = _PLAIN.issuperset(map(type, (token, db_name, *kwargs.values())))
        if plain and type(uri) is str and not uri.endswith(".db"):
            return _parsed(uri, token, db_name, **kwargs)._copy()
        return _parse(uri, token, db_name, **kwargs)

    def _copy(self) -> ConnectionConfig:
        """``db_name`` may be assigned, so that each client has a config of its own."""
        copy = object.__new__(ConnectionConfig)
        for write, value in zip(_WRITE, _read(self), strict=True):
            write(copy, value)
        return copy

    @classmethod
    def coerce(cls, config: ConnectionConfig | ForeignConfig) -> ConnectionConfig:
        """Return `config` itself, or what pymilvus's own ConnectionConfig says, parsed here.

        Raises:
            ConfigError: it is neither, or says something unusable.
        """
        if isinstance(config, ConnectionConfig):
            return config
        try:
            uri = config.uri or f"tcp://{config.address}"
            token, db_name = config.token, config.db_name
            kwargs = {str(name): value for name, value in config.handler_kwargs}
        except (AttributeError, TypeError, ValueError):
            raise ConfigError(
                f"config must be a ConnectionConfig, not {type(config).__name__}", field="config"
            ) from None
        return _restore(uri, token, db_name, kwargs)

    def get_handler_kwargs(self) -> dict[str, Any]:
        """Return handler_kwargs as a new dict."""
        return dict(self.handler_kwargs)

    def __setattr__(self, name: str, value: object) -> None:
        # The key is computed once: what it was computed from must stay. pymilvus's
        # use_database assigns db_name.
        if name != "db_name" and hasattr(self, name):
            raise AttributeError(f"ConnectionConfig.{name} is read-only; build a new config")
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        token = "'***'" if self.token else "''"
        options = ", ".join(sorted(name for name, _ in self.handler_kwargs))
        return (
            f"ConnectionConfig(uri={self.uri!r}, address={self.address!r}, token={token}, "
            f"db_name={self.db_name!r}, secure={self.secure}, options=[{options}])"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # The key of another process differs, so that a copy is parsed again where it arrives.
        return _restore, (self.uri, self.token, self.db_name, self.get_handler_kwargs())


_FIELDS = tuple(name for name in ConnectionConfig.__slots__ if name != "__weakref__")
_read, _WRITE = attrgetter(*_FIELDS), [vars(ConnectionConfig)[n].__set__ for n in _FIELDS]


def _parse(uri: str, token: str | None, db_name: str | None, **kwargs: Any) -> ConnectionConfig:
    try:
        token = _check_text("token", token)
        db_name = _check_text("db_name", db_name)
        handler_kwargs = _check_kwargs(kwargs)
        parts = parse_uri(uri)
    except ConfigError as error:
        raise for_callers(error) from None
    if parts.scheme == "https":
        handler_kwargs.setdefault("secure", True)
    parts.token = token or parts.token
    parts.db_name = db_name or parts.db_name
    return ConnectionConfig(parts, handler_kwargs)


#: Clients of one endpoint are made with the same arguments again and again. A path is not
#: remembered: what it means depends on the working directory.
_parsed = lru_cache(maxsize=128, typed=True)(_parse)


def _restore(uri: str, token: str, db_name: str, kwargs: dict[str, Any]) -> ConnectionConfig:
    for name in ("uri", "token", "db_name"):
        if name in kwargs:
            raise ConfigError(f"{name} is given twice", field=name)
    return ConnectionConfig.from_uri(uri, token=token, db_name=db_name, **kwargs)


def _check_text(name: str, value: object) -> str:
    """Return a text field, "" for None. Its value is never shown: it may be a secret."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a string, not {type(value).__name__}", field=name)
    if not check_plain(value):
        raise ConfigError(
            f"{name} holds a control character, such as a newline at its end, or is not Unicode; "
            "accepted is plain text",
            field=name,
        )
    return value


def _check_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    checked = dict(kwargs)
    for name in _RESERVED_FIELDS:
        if name in checked:
            raise ConfigError(f"{name} is not accepted: the uri says where to connect", field=name)
    if "secure" in checked and not isinstance(checked["secure"], bool):
        raise ConfigError(
            f"secure must be True or False, not {type(checked['secure']).__name__}", field="secure"
        )
    for name in _TEXT_FIELDS:
        if name in checked:
            checked[name] = _check_text(name, checked[name])
    for name in PATH_FIELDS:
        if name in checked:
            checked[name] = _check_path(name, checked[name])
    if "grpc_options" in checked:
        checked["grpc_options"] = _check_grpc_options(checked["grpc_options"])
    return checked


def _check_grpc_options(options: object) -> dict[str, Any]:
    """A copy: a caller may change his own later."""
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise ConfigError(
            f"grpc_options must be a dict of gRPC channel arguments, not {type(options).__name__}",
            field="grpc_options",
        )
    if not all(isinstance(option, str) for option in options):
        raise ConfigError("grpc_options must have strings as keys", field="grpc_options")
    return dict(options)


def _check_path(name: str, value: object) -> str:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if path is not None and not isinstance(path, str):
        raise ConfigError(
            f"{name} must be the path of a PEM file, not {type(value).__name__}", field=name
        )
    return path or ""


# --- the key -------------------------------------------------------------------------------


def _pool_key(parts: UriParts, handler_kwargs: Mapping[str, Any]) -> str:
    # What means "not given" to the handler must not tell two configs apart.
    wire = {
        name: value
        for name, value in handler_kwargs.items()
        if not (name in (*_TEXT_FIELDS, *PATH_FIELDS, "grpc_options", "secure") and not value)
    }
    # A global cluster is asked for its topology at a URL of the URI's scheme.
    scheme = parts.scheme if GLOBAL_CLUSTER_MARK in parts.host else ""
    content = _encode([parts.address, scheme, parts.token, wire])
    digest = hashlib.blake2b(content, key=_DIGEST_KEY, digest_size=16).hexdigest()
    return f"{parts.address}|{digest}"


def _encode(value: object, depth: int = 0) -> bytes:
    """Return bytes that are equal exactly when two values are the same on the wire.

    Unknown objects count by identity: rather two connections than one that is wrongly shared.
    """
    if value is None or isinstance(value, (bool, float)):
        tag, body = type(value).__name__, repr(value).encode()
    elif isinstance(value, int):
        tag, body = "int", f"{value:x}".encode()
    elif isinstance(value, str):
        tag, body = "str", value.encode("utf-8", "surrogatepass")
    elif isinstance(value, (bytes, bytearray)):
        tag, body = "bytes", bytes(value)
    elif isinstance(value, (list, tuple)) and depth < 20:
        tag, body = "list", b"".join(_encode(item, depth + 1) for item in value)
    elif isinstance(value, dict) and depth < 20:
        pairs = (_encode(name, depth + 1) + _encode(v, depth + 1) for name, v in value.items())
        tag, body = "dict", b"".join(sorted(pairs))
    else:
        tag, body = "object", f"{type(value).__qualname__}@{id(value):x}".encode()
    return f"{tag}:{len(body)}:".encode() + body

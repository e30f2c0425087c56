"""Fetching a topology over HTTPS: one request. Blocks; the book of a cluster gives it a thread.

At most 1 MiB is read; no redirect is followed, because it would carry the token elsewhere; the
server's certificate is checked against the client's own CA, where it has one. The answer may take
all the time that the caller has: a slow service whose requests are ended and begun anew never
answers any. Only the connection has to be there within 10 s.

httpx's timeouts are those of single socket operations: a server that drips one byte a second
never meets them. So a timer shuts the socket down. Only name resolution ends when the system's
resolver says so.

Needs the extra `global` (httpx); it is imported when the first fetch is made.
"""

from __future__ import annotations

import contextlib
import importlib
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any

from milvus_lifecycle.config import TlsMaterial, parse_endpoint
from milvus_lifecycle.errors import ConfigError, TopologyError, TopologyReason, brief
from milvus_lifecycle.tls import certificate_error, client_context
from milvus_lifecycle.topology import MAX_BYTES, Topology, parse_topology
from milvus_lifecycle.uri import check_plain

__all__ = ["fetch_topology"]

CONNECT_TIMEOUT = 10.0

_MODULES = ("certifi", "httpx")
_PATH = "/global-cluster/topology"


def fetch_topology(
    uri: str, token: str = "", *, tls: TlsMaterial | None = None, timeout: float = 30.0
) -> Topology:
    """Fetch the topology of the global cluster behind `uri`; blocks for `timeout` at most.

    Args:
        uri: the client's URI without credentials (`ConnectionConfig.uri`).
        token: sent as a bearer token, "" for none.
        tls: the client's own roots (`load_tls`); None and no roots mean the system's.
        timeout: seconds for everything, a server that drips included.

    Raises:
        TopologyError: with `reason` and `elapsed`; it never holds the token.
    """
    fetch = _Fetch(uri, token, tls, timeout)
    try:
        return fetch.run()
    except TopologyError as error:
        verdict = fetch.verdict(error)
    raise verdict


class _Fetch:
    """One request, and what its failure means."""

    def __init__(self, uri: str, token: str, tls: TlsMaterial | None, timeout: float) -> None:
        self._token = token
        self._roots = tls.root if tls is not None else None
        self._started = time.monotonic()
        self._deadline = self._started + timeout
        self._address, secure = self._parse(uri, secure=tls is not None)
        self._url = f"{'https' if secure else 'http'}://{self._address}{_PATH}"

    def run(self) -> Topology:
        context = self._prepare()
        import httpx

        answer, left = _Answer(), max(0.001, self._deadline - time.monotonic())
        limits = httpx.Timeout(left, connect=min(left, CONNECT_TIMEOUT))
        watchdog = _Watchdog(left)
        try:
            with (
                httpx.Client(verify=context, timeout=limits, follow_redirects=False) as client,
                watchdog,
                client.stream(
                    "GET",
                    self._url,
                    headers=self._headers(),
                    extensions={"trace": watchdog.trace},
                ) as response,
            ):
                answer.begin(response.status_code, response.headers)
                for chunk in response.iter_raw():
                    answer.feed(chunk)
            watchdog.check()  # a socket that was shut down looks like the end of an answer
            return answer.topology()
        except Exception as error:
            failure = self._translate(error, expired=watchdog.fired)
        raise failure

    def verdict(self, error: TopologyError) -> TopologyError:
        """Return the error for the caller: with the facts, without the token.

        The original is left behind: it leads to a request that has the token in its headers.
        """
        detail = error.detail
        for secret in (self._token, self._token.partition(":")[2]):
            detail = detail.replace(secret, "***") if secret else detail
        elapsed = time.monotonic() - self._started
        return TopologyError(error.reason, detail, address=self._address, elapsed=elapsed)

    def _prepare(self) -> ssl.SSLContext:
        """Import the HTTP library and load the roots: slow the first time (some 0.2 s)."""
        try:
            for name in _MODULES:
                importlib.import_module(name)
            return client_context(self._roots)
        except ImportError as error:
            extra = "pip install 'milvus_lifecycle[global]'"
            problem = f"{error.name or 'httpx'} is needed for global clusters: {extra}"
        except (ssl.SSLError, ValueError):
            problem = "the client's own root certificates are not PEM"
        raise TopologyError(TopologyReason.BAD_REQUEST, problem)

    def _headers(self) -> dict[bytes, bytes]:
        # Compression is not asked for: one small chunk may unpack to gigabytes.
        headers = {b"Accept": b"application/json", b"Accept-Encoding": b"identity"}
        if self._token:
            headers[b"Authorization"] = b"Bearer " + self._token.encode()
        return headers

    def _translate(self, error: Exception, *, expired: bool) -> TopologyError:
        import httpx

        if isinstance(error, TopologyError):
            return error
        if expired or isinstance(error, httpx.TimeoutException):
            late = time.monotonic() >= self._deadline - 0.01
            reason = TopologyReason.DEADLINE if late else TopologyReason.UNREACHABLE
            return TopologyError(reason, "no complete answer in time")
        distrust = certificate_error(error)
        if distrust is not None:
            return TopologyError(
                TopologyReason.UNTRUSTED,
                f"the server's certificate does not verify: {distrust.verify_message}",
            )
        if isinstance(error, (httpx.InvalidURL, httpx.UnsupportedProtocol)):
            return TopologyError(TopologyReason.BAD_REQUEST, brief(error))
        return TopologyError(TopologyReason.UNREACHABLE, brief(error))

    def _parse(self, uri: str, *, secure: bool) -> tuple[str, bool]:
        problem = ""
        try:
            # An endpoint without scheme is asked over https, as pymilvus does.
            bare = isinstance(uri, str) and "://" not in uri
            address, secure = parse_endpoint(f"https://{uri}" if bare else uri, secure=secure)
            if address.startswith("unix:"):
                problem = "a socket file cannot be a global cluster"
        except ConfigError as error:
            address, problem = "", error.detail
        token = self._token
        if not isinstance(token, str) or not check_plain(token) or token != token.strip():
            problem = "the token holds control characters or outer whitespace"
        if problem:
            raise TopologyError(TopologyReason.BAD_REQUEST, problem, address=address)
        return address, secure


class _Answer:
    """The response as it comes in; refuses it as early as possible."""

    def __init__(self) -> None:
        self._body = bytearray()

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        if 300 <= status < 400:
            raise TopologyError(
                TopologyReason.REDIRECT, f"redirects (HTTP {status}) are not followed with a token"
            )
        if status in (401, 403):
            raise TopologyError(
                TopologyReason.UNAUTHORIZED, f"the service refuses the token (HTTP {status})"
            )
        if status != 200:
            raise TopologyError(TopologyReason.HTTP_STATUS, f"the service answers HTTP {status}")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise TopologyError(TopologyReason.GARBAGE, "the answer is compressed, unasked")
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and (len(length) > 9 or int(length) > MAX_BYTES):
            self._refuse_length()

    def feed(self, chunk: bytes) -> None:
        if len(self._body) + len(chunk) > MAX_BYTES:
            self._refuse_length()
        self._body += chunk

    def topology(self) -> Topology:
        return parse_topology(self._body)

    def _refuse_length(self) -> None:
        raise TopologyError(
            TopologyReason.TOO_LARGE, f"the answer is longer than {MAX_BYTES:,} bytes"
        )


class _Watchdog:
    """Shuts a blocking request's socket down when its time is over, whatever it is doing."""

    def __init__(self, seconds: float) -> None:
        self.fired = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._fire)
        self._timer.daemon = True

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Learn of the socket: httpx's trace extension."""
        if not event.endswith("connect_tcp.complete"):
            return
        original = info["return_value"].get_extra_info("socket")
        # A duplicate of our own: the original's number may belong to another file by then.
        twin = socket.fromfd(original.fileno(), original.family, original.type)
        with self._lock:
            self._sockets.append(twin)
            if self.fired:
                self._shut()

    def check(self) -> None:
        if self.fired:
            raise TimeoutError

    def _fire(self) -> None:
        with self._lock:
            self.fired = True
            self._shut()

    def _shut(self) -> None:
        for twin in self._sockets:
            with contextlib.suppress(OSError):
                twin.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> None:
        # Without a thread to spare, httpx's own timeouts have to do.
        with contextlib.suppress(RuntimeError):
            self._timer.start()

    def __exit__(self, *exc_info: object) -> None:
        self._timer.cancel()
        with self._lock:
            for twin in self._sockets:
                twin.close()
            self._sockets.clear()

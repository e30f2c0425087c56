"""Fetching a topology over HTTPS. Blocks; the book of a cluster gives it a thread.

At most 1 MiB is read; no redirect is followed, because it would carry the token elsewhere; the
server's certificate is checked against the client's own CA, where it has one.

The answer may take all the time that the caller has. But a server that hangs looks like one that
is slow, and its neighbour behind the same name may be well: so a request without an answer for
10 s gets company, and the first answer counts. Only a connection has to be there within 10 s.

httpx's timeouts are those of single socket operations, which a server that drips one byte a second
never meets. So each request has a thread, and its socket is shut down when the time is over.

Needs the extra `global` (httpx); it is imported when the first fetch is made.
"""

from __future__ import annotations

import contextlib
import importlib
import queue
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any

from milvus_lifecycle.config import TlsMaterial, parse_endpoint
from milvus_lifecycle.endpoints.topology import MAX_BYTES, Topology, parse_topology
from milvus_lifecycle.errors import ConfigError, TopologyError, TopologyReason, brief
from milvus_lifecycle.tls import certificate_error, client_context
from milvus_lifecycle.uri import check_plain

CONNECT_TIMEOUT = 10.0
COMPANY_AFTER = 10.0

_MODULES = ("certifi", "httpx")
_PATH = "/global-cluster/topology"
_TOO_LONG = f"the answer is longer than {MAX_BYTES:,} bytes"


def fetch_topology(
    uri: str, token: str = "", *, tls: TlsMaterial | None = None, timeout: float = 30.0
) -> Topology:
    """Fetch the topology of the global cluster behind `uri`; blocks for `timeout` (s) at most.

    `uri` is the client's without credentials; `token` is sent as a bearer token, "" for none;
    `tls` has the client's own roots (`load_tls`), None and no roots mean the system's.
    Raises TopologyError with `reason` and `elapsed`; it never holds the token.
    """
    fetch = _Fetch(uri, token, tls, timeout)
    try:
        return fetch.run()
    except TopologyError as error:
        verdict = fetch.verdict(error)
    raise verdict


class _Fetch:
    """One fetch: its requests, and what their failures mean."""

    def __init__(self, uri: str, token: str, tls: TlsMaterial | None, timeout: float) -> None:
        self._token = token
        self._roots = tls.root if tls is not None else None
        self._started = time.monotonic()
        self._deadline = self._started + timeout
        self._address, secure = self._parse(uri, secure=tls is not None)
        self._url = f"{'https' if secure else 'http'}://{self._address}{_PATH}"
        self._outcomes: queue.SimpleQueue[Topology | TopologyError] = queue.SimpleQueue()

    def run(self) -> Topology:
        context, sockets, running = self._prepare(), _Sockets(), 0
        failure = TopologyError(TopologyReason.DEADLINE, "no complete answer in time")
        try:
            while True:
                self._begin(context, sockets)
                running += 1
                until = min(self._deadline, time.monotonic() + COMPANY_AFTER)
                while running and (outcome := self._wait(until)) is not None:
                    if isinstance(outcome, Topology):
                        return outcome
                    running, failure = running - 1, outcome
                if not running or time.monotonic() >= self._deadline:
                    raise failure
        finally:
            sockets.shut()

    def _wait(self, until: float) -> Topology | TopologyError | None:
        with contextlib.suppress(queue.Empty):
            return self._outcomes.get(timeout=max(0.0, until - time.monotonic()))
        return None

    def _begin(self, context: ssl.SSLContext, sockets: _Sockets) -> None:
        name, args = "milvus-lifecycle-topology-request", (context, sockets)
        try:
            threading.Thread(target=self._request, args=args, name=name, daemon=True).start()
        except RuntimeError as error:  # no thread to be had
            self._outcomes.put(TopologyError(TopologyReason.UNREACHABLE, brief(error)))

    def _request(self, context: ssl.SSLContext, sockets: _Sockets) -> None:
        import httpx

        left = max(0.001, self._deadline - time.monotonic())
        limits = httpx.Timeout(left, connect=min(left, CONNECT_TIMEOUT))
        outcome: Topology | TopologyError
        try:
            with (
                httpx.Client(verify=context, timeout=limits, follow_redirects=False) as client,
                client.stream(
                    "GET", self._url, headers=self._headers(), extensions={"trace": sockets.trace}
                ) as response,
            ):
                outcome = _read(response)
        except Exception as error:
            outcome = self._translate(error)
        self._outcomes.put(outcome)

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

    def _translate(self, error: Exception) -> TopologyError:
        import httpx

        if isinstance(error, TopologyError):
            return error
        if isinstance(error, httpx.TimeoutException):
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


def _read(response: Any) -> Topology:
    """What the service answers; refused as early as possible."""
    _check_head(response.status_code, response.headers)
    body = bytearray()
    for chunk in response.iter_raw():
        if len(body) + len(chunk) > MAX_BYTES:
            raise TopologyError(TopologyReason.TOO_LARGE, _TOO_LONG)
        body += chunk
    return parse_topology(body)


def _check_head(status: int, headers: Mapping[str, str]) -> None:
    if 300 <= status < 400:
        problem = f"redirects (HTTP {status}) are not followed with a token"
        raise TopologyError(TopologyReason.REDIRECT, problem)
    if status in (401, 403):
        problem = f"the service refuses the token (HTTP {status})"
        raise TopologyError(TopologyReason.UNAUTHORIZED, problem)
    if status != 200:
        raise TopologyError(TopologyReason.HTTP_STATUS, f"the service answers HTTP {status}")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise TopologyError(TopologyReason.GARBAGE, "the answer is compressed, unasked")
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and (len(length) > 9 or int(length) > MAX_BYTES):
        raise TopologyError(TopologyReason.TOO_LARGE, _TOO_LONG)


class _Sockets:
    """Those of a fetch's requests: shut down when it ends, whatever they are doing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._twins: list[socket.socket] = []
        self._over = False

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Learn of a socket: httpx's trace extension."""
        if not event.endswith("connect_tcp.complete"):
            return
        original = info["return_value"].get_extra_info("socket")
        # A duplicate of our own: the original's number may belong to another file by then.
        twin = socket.fromfd(original.fileno(), original.family, original.type)
        with self._lock:
            self._twins.append(twin)
        if self._over:
            self.shut()

    def shut(self) -> None:
        """End every request, those that are still connecting included."""
        self._over = True
        with self._lock:
            twins, self._twins = self._twins, []
        for twin in twins:
            with contextlib.suppress(OSError):
                twin.shutdown(socket.SHUT_RDWR)
            twin.close()

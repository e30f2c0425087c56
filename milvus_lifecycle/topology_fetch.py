"""Fetching a topology over HTTPS: one request, written once, for threads and for asyncio.

What is fixed here (issue 4): three tries, 1 s, 2 s ... at most 10 s between them, 10 % jitter,
10 s for one request, all of it within the caller's own timeout; at most 1 MiB is read; no
redirect is followed, because it would carry the token elsewhere; the server's certificate is
checked against the client's own CA, where it has one.

httpx's timeouts are those of single socket operations: a server that drips one byte a second
never meets them. So asyncio runs the request in a cancel scope, and in threads a timer shuts
the socket down. Only name resolution in threads ends when the system's resolver says so.

Needs the extra `global` (httpx, tenacity, anyio); they are imported when the first fetch is
made, for asyncio in another thread: that import takes longer than a loop may be blocked.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import random as random_module
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from milvus_lifecycle.config import TlsMaterial, parse_endpoint
from milvus_lifecycle.errors import ConfigError, TopologyError, TopologyReason, brief
from milvus_lifecycle.tls import certificate_error, client_context
from milvus_lifecycle.topology import MAX_BYTES, Topology, parse_topology
from milvus_lifecycle.uri import check_plain

if TYPE_CHECKING:
    from tenacity import RetryCallState

__all__ = ["afetch_topology", "fetch_topology"]

ATTEMPTS = 3
REQUEST_TIMEOUT = 10.0
FIRST_PAUSE, LONGEST_PAUSE, PAUSE_JITTER = 1.0, 10.0, 0.1

# The later ones are what httpx and anyio import with their first request.
_MODULES = ("certifi", "tenacity", "httpx", "httpcore")
_ASYNC_MODULES = ("anyio.abc", "anyio.lowlevel", "anyio.streams.tls", "anyio.to_thread")
_PATH = "/global-cluster/topology"

# What another try may cure. A refusal, a redirect or a wrong topology is the same next time.
_PASSING = frozenset(
    {TopologyReason.UNREACHABLE, TopologyReason.HTTP_STATUS, TopologyReason.GARBAGE}
)


def fetch_topology(
    uri: str,
    token: str = "",
    *,
    tls: TlsMaterial | None = None,
    timeout: float = 30.0,
    tries: int = ATTEMPTS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    random: Callable[[], float] = random_module.random,
) -> Topology:
    """Fetch the topology of the global cluster behind `uri`; blocks for `timeout` at most.

    Args:
        uri: the client's URI without credentials (`ConnectionConfig.uri`).
        token: sent as a bearer token, "" for none.
        tls: the client's own roots (`load_tls`); None and no roots mean the system's.
        timeout: seconds for everything: tries, pauses, and a server that drips.
        tries: requests at most.
        clock, sleep, random: for tests, and so that a driver can end a pause early by raising.

    Raises:
        TopologyError: with `reason`, `attempts` and `elapsed`; it never holds the token.
    """
    fetch = _Fetch(uri, token, tls, timeout, tries, clock, random)
    fetch.prepare()
    import tenacity

    try:
        return tenacity.Retrying(sleep=sleep, **fetch.retry_rules())(_request, fetch)
    except TopologyError as error:
        verdict = fetch.verdict(error)
    raise verdict


async def afetch_topology(
    uri: str,
    token: str = "",
    *,
    tls: TlsMaterial | None = None,
    timeout: float = 30.0,
    tries: int = ATTEMPTS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    random: Callable[[], float] = random_module.random,
) -> Topology:
    """Do what `fetch_topology` does, without blocking the event loop."""
    fetch = _Fetch(uri, token, tls, timeout, tries, clock, random)
    await asyncio.to_thread(fetch.prepare, with_asyncio=True)
    import tenacity

    try:
        return await tenacity.AsyncRetrying(sleep=sleep, **fetch.retry_rules())(_arequest, fetch)
    except TopologyError as error:
        verdict = fetch.verdict(error)
    raise verdict


def _request(fetch: _Fetch) -> Topology:
    import httpx

    answer, budget = _Answer(), fetch.begin_attempt()
    watchdog = _Watchdog(budget)
    try:
        with (
            httpx.Client(**fetch.client_options(budget)) as client,
            watchdog,
            client.stream(**fetch.request(), extensions={"trace": watchdog.trace}) as response,
        ):
            answer.begin(response.status_code, response.headers)
            for chunk in response.iter_raw():
                answer.feed(chunk)
        watchdog.check()  # a socket that was shut down looks like the end of an answer
        return answer.topology()
    except Exception as error:
        failure = fetch.translate(error, expired=watchdog.fired)
    raise failure


async def _arequest(fetch: _Fetch) -> Topology:
    import anyio
    import httpx

    answer, budget = _Answer(), fetch.begin_attempt()
    try:
        with anyio.fail_after(budget):
            async with (
                httpx.AsyncClient(**fetch.client_options(budget)) as client,
                client.stream(**fetch.request()) as response,
            ):
                answer.begin(response.status_code, response.headers)
                async for chunk in response.aiter_raw():
                    answer.feed(chunk)
        return answer.topology()
    except Exception as error:
        failure = fetch.translate(error, expired=isinstance(error, TimeoutError))
    raise failure


class _Fetch:
    """One fetch: what both flavours decide alike. Does no network I/O."""

    def __init__(
        self,
        uri: str,
        token: str,
        tls: TlsMaterial | None,
        timeout: float,
        tries: int,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._token = token
        self._roots = tls.root if tls is not None else None
        self._clock = clock
        self._random = random
        self._started = clock()
        self._deadline = self._started + timeout
        self._tries = tries
        self._attempts = 0
        self._context: ssl.SSLContext | None = None
        self._address, secure = self._parse(uri, secure=tls is not None)
        self._url = f"{'https' if secure else 'http'}://{self._address}{_PATH}"

    def prepare(self, *, with_asyncio: bool = False) -> None:
        """Import the HTTP library and load the roots: slow the first time (some 0.2 s)."""
        problem = ""
        try:
            _import_modules(with_asyncio)
            self._context = client_context(self._roots)
        except ImportError as error:
            extra = "pip install 'milvus_lifecycle[global]'"
            problem = f"{error.name or 'httpx'} is needed for global clusters: {extra}"
        except (ssl.SSLError, ValueError):
            problem = "the client's own root certificates are not PEM"
        if problem:
            self._fail(TopologyReason.BAD_REQUEST, problem)

    def begin_attempt(self) -> float:
        """Count an attempt in and return the seconds that it may take."""
        left = self._deadline - self._clock()
        if left <= 0:
            self._fail(TopologyReason.DEADLINE, "no time is left for the request")
        self._attempts += 1
        return min(left, REQUEST_TIMEOUT)

    def client_options(self, budget: float) -> dict[str, Any]:
        return {"verify": self._context, "timeout": budget, "follow_redirects": False}

    def request(self) -> dict[str, Any]:
        # Compression is not asked for: one small chunk may unpack to gigabytes.
        headers = {b"Accept": b"application/json", b"Accept-Encoding": b"identity"}
        if self._token:
            headers[b"Authorization"] = b"Bearer " + self._token.encode()
        return {"method": "GET", "url": self._url, "headers": headers}

    def retry_rules(self) -> dict[str, Any]:
        """Return tenacity's settings."""
        from tenacity import retry_if_exception

        return {
            "retry": retry_if_exception(_is_passing),
            "wait": self._pause,
            "stop": self._is_last,
            "reraise": True,
        }

    def translate(self, error: Exception, *, expired: bool) -> TopologyError:
        """Return what an attempt's failure means."""
        import httpx

        if isinstance(error, TopologyError):
            return error
        if expired or isinstance(error, httpx.TimeoutException):
            late = self._clock() >= self._deadline - 0.01
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

    def verdict(self, error: TopologyError) -> TopologyError:
        """Return the error for the caller: with the facts, without the token.

        The original is left behind: it leads to a request that has the token in its headers.
        """
        detail = error.detail
        for secret in (self._token, self._token.partition(":")[2]):
            detail = detail.replace(secret, "***") if secret else detail
        return TopologyError(
            error.reason,
            detail,
            address=self._address,
            attempts=self._attempts,
            elapsed=self._clock() - self._started,
        )

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

    def _fail(self, reason: TopologyReason, message: str) -> None:
        raise TopologyError(reason, message, address=self._address)

    def _pause(self, state: RetryCallState) -> float:
        pause: float = min(FIRST_PAUSE * 2.0 ** (state.attempt_number - 1), LONGEST_PAUSE)
        return pause * (1.0 + PAUSE_JITTER * self._random())

    def _is_last(self, state: RetryCallState) -> bool:
        # A pause that would outlast the deadline is not begun.
        resumed = self._clock() + state.upcoming_sleep
        return state.attempt_number >= self._tries or resumed >= self._deadline


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


@functools.lru_cache(maxsize=2)
def _import_modules(with_asyncio: bool) -> None:
    """Import everything that a request will need, so that none of it happens in a user's loop."""
    for name in (*_MODULES, *(_ASYNC_MODULES if with_asyncio else ())):
        importlib.import_module(name)
    if with_asyncio:
        import anyio

        # Loads anyio's backend, in a loop of this worker thread's own.
        anyio.run(anyio.lowlevel.checkpoint)


def _is_passing(error: BaseException) -> bool:
    return isinstance(error, TopologyError) and error.reason in _PASSING

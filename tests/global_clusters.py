"""A global cluster on 127.0.0.1: its topology service, which a test moves and breaks."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

from google.protobuf.message_factory import GetMessageClass
from typing_extensions import Self

from milvus_lifecycle import AsyncConnectionManager, ConnectionManager
from milvus_lifecycle.core.facts import Located
from milvus_lifecycle.endpoints.global_cluster import TopologyLocator
from milvus_lifecycle.testing import Script
from tests.network import TcpProxy, free_port
from tests.servers import SERVICE, TlsFiles, status
from tests.topology_service import Behaviour, Service, answer, cluster, reply, serving

#: An endpoint counts as a global cluster by its host. The last label makes it this machine's.
HOST = "in01.global-cluster.localhost"

_real_getaddrinfo = socket.getaddrinfo


def _getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
    name = host.decode() if isinstance(host, bytes) else host
    if isinstance(name, str) and name.lower().rstrip(".").endswith(".localhost"):
        host = "127.0.0.1"
    return _real_getaddrinfo(host, *args, **kwargs)


@contextlib.contextmanager
def localhost_names() -> Iterator[None]:
    """Resolve every name that ends in `.localhost` to 127.0.0.1, in this process only.

    RFC 6761 (section 6.3) says that such names are this machine's, but a resolver need not do it:
    glibc without systemd's module answers "Name or service not known". Changing /etc/hosts would
    need root and would outlive the tests. What asks for the name here is Python (requests, httpx),
    never gRPC: the endpoints inside the topologies are addresses.
    """
    with mock.patch.object(socket, "getaddrinfo", _getaddrinfo):
        yield


def violated(method: str) -> Any:
    """What a secondary answers to a write: gRPC's OK, with a status that refuses it."""
    response = GetMessageClass(SERVICE.methods_by_name[method].output_type)()
    response.status.CopyFrom(status(2600, "STREAMING_CODE_REPLICATE_VIOLATION: not the primary"))
    return response


class Nobody:
    """A server that refuses connections."""

    def __init__(self) -> None:
        self.uri = f"http://127.0.0.1:{free_port()}"


class GlobalCluster:
    """The topology service of a cluster of gRPC servers; the first one given is the primary.

    Servers are anything with a `uri`. The service stands behind a TCP proxy, so that it can be
    down, hang or reset; `behave` replaces its answers until `heal`.
    """

    def __init__(self, *servers: Any, certificate: TlsFiles | None = None) -> None:
        self.servers = servers
        self.primary: Any = servers[0]
        self.version = 1
        #: seconds of time.monotonic at which a request came
        self.asked: list[float] = []
        #: the most requests that were under way at once
        self.most_at_once = 0
        #: seconds that each answer is late
        self.delay = 0.0
        #: endpoints that the topology writes otherwise than the server's `uri`
        self.written: dict[Any, str] = {}
        self._behaviour: Behaviour | None = None
        self._certificate = certificate
        self._lock = threading.Lock()
        self._at_once = 0
        self._stack = contextlib.ExitStack()
        self._open = threading.Event()
        self._open.set()

    def __enter__(self) -> Self:
        self._stack.enter_context(localhost_names())
        self.service: Service = self._stack.enter_context(serving(self._serve, self._certificate))
        self.proxy = self._stack.enter_context(TcpProxy(self.service.server.server_port))
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.set()
        self._stack.close()

    @property
    def uri(self) -> str:
        """What a client is given."""
        scheme = "http" if self._certificate is None else "https"
        return f"{scheme}://{HOST}:{self.proxy.port}"

    @property
    def address(self) -> str:
        return f"{HOST}:{self.proxy.port}"

    def move(self, primary: Any) -> float:
        """Name another server the primary, in a new version; when (time.monotonic seconds)."""
        with self._lock:
            self.primary, self.version = primary, self.version + 1
            return time.monotonic()

    def behave(self, behaviour: Behaviour) -> None:
        """Answer every request by this behaviour instead of the topology."""
        self._behaviour = behaviour

    def hold(self) -> None:
        """Let every request wait."""
        self._open.clear()

    def heal(self) -> None:
        """Answer with the topology again, at once, those that wait too."""
        self._behaviour, self.delay = None, 0.0
        self._open.set()

    def body(self) -> bytes:
        """The answer of now: every server, the primary as writable."""
        with self._lock:
            clusters = [
                cluster(
                    f"in01-{number}",
                    self.written.get(server, server.uri),
                    3 if server is self.primary else 1,
                )
                for number, server in enumerate(self.servers)
            ]
            return json.dumps(answer(str(self.version), clusters)).encode()

    def _serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.asked.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            self._open.wait(60)
            if self.delay:
                self.service.stopped.wait(self.delay)
            (self._behaviour or reply(self.body()))(handler)
        finally:
            with self._lock:
                self._at_once -= 1


def locate(
    locator: TopologyLocator, connection: Any, failure: Any = None, timeout: float = 10.0
) -> Located:
    """Run its steps as the threads driver does."""
    return _DRIVER.drive(locator.steps(connection, failure, timeout))


async def alocate(
    locator: TopologyLocator, connection: Any, failure: Any = None, timeout: float = 10.0
) -> Located:
    """Run its steps as the asyncio driver does."""
    manager = AsyncConnectionManager(transport=Script().asyncio())
    return await manager._driver.drive(locator.steps(connection, failure, timeout))


#: it has no connections, and so no thread
_DRIVER = ConnectionManager(transport=Script().threads())._driver

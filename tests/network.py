"""Sockets for tests: free ports, a black hole, a TCP proxy that misbehaves, and a socket count."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import socket
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc
from typing_extensions import Self

Mode = Literal["pass", "refuse", "hang", "reset", "latency", "drip"]

#: TCP states as /proc/net/tcp writes them.
ESTABLISHED = "01"
LISTEN = "0A"

_POLL_S = 0.01


def _lowest_ephemeral_port() -> int:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    except OSError:
        return 32768
    return int(text.split()[0])


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on, below the ephemeral range.

    Below it, because a port that a test frees for the time of an outage could otherwise be taken
    by any outgoing connection, or even connect to itself.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    high = max(_lowest_ephemeral_port(), 12000)
    for _ in range(200):
        port = random.randrange(10240, high)
        with contextlib.closing(socket.socket(family)) as candidate, contextlib.suppress(OSError):
            candidate.bind((host, port))
            return port
    raise RuntimeError(f"no free port found on {host}")


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts TCP connections on the port, seen by a socket of its own."""
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _own_socket_inodes(pid: int | str) -> set[str]:
    inodes = set()
    directory = f"/proc/{pid}/fd"
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):
            link = os.readlink(f"{directory}/{name}")
            if link.startswith("socket:["):
                inodes.add(link[8:-1])
    return inodes


#: Up to 1.83 grpc.aio has cycles in the calls of clients with a token, and with them their sockets.
_LEFT_TO_THE_COLLECTOR = tuple(map(int, grpc.__version__.split(".")[:2])) < (1, 84)


def open_sockets_to(port: int, pid: int | str = "self", state: str = ESTABLISHED) -> int:
    """How many client sockets of a process (default: this one) are connected to a port."""
    if _LEFT_TO_THE_COLLECTOR:
        gc.collect()
    inodes = _own_socket_inodes(pid)
    suffix = f":{port:04X}"
    count = 0
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[2].endswith(suffix) and fields[3] == state and fields[9] in inodes:
                    count += 1
    return count


def _listening_socket(port: int, host: str) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(256)
    return listener


def _close(connection: socket.socket, *, reset: bool = False) -> None:
    with contextlib.suppress(OSError):
        if reset:
            # Linger of zero seconds: close sends RST instead of FIN.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            connection.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        connection.close()


def _swallow(source: socket.socket) -> None:
    """Read and drop until the other end gives up."""
    with contextlib.suppress(OSError):
        while source.recv(65536):
            pass


@dataclass(frozen=True)
class Accepted:
    """One accepted connection: when (seconds of time.monotonic) and from which port."""

    at: float
    peer_port: int


class TcpProxy:
    """A proxy on 127.0.0.1 in front of a server, with a mode that can change at any time.

    - pass: forwards;
    - refuse: does not listen;
    - hang: accepts and never answers, existing connections stand still; when the mode changes,
      they go on (a process that was stopped and continued);
    - reset: answers every connection with RST;
    - latency: forwards each chunk `delay` seconds late;
    - drip: forwards one byte every `delay` seconds, until the mode changes.

    Besides, `cut` resets, `tear` resets in the middle of an answer and `forget` leaves half-open
    the connections of now, whatever the mode.
    """

    def __init__(self, target_port: int, mode: Mode = "pass", delay: float = 0.05) -> None:
        self.target_port = target_port
        self.delay = delay
        self.port = free_port()
        self.accepted: list[Accepted] = []
        self._mode: Mode = mode
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._upstreams: set[socket.socket] = set()
        self._torn: set[socket.socket] = set()
        self._forgotten: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._closed = False

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def uri(self) -> str:
        return f"http://{self.address}"

    @property
    def mode(self) -> Mode:
        return self._mode

    def __enter__(self) -> Self:
        if self._mode != "refuse":
            self._listen()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed = True
        self._stop_listening()
        self.cut()

    def set_mode(self, mode: Mode, *, cut: bool = False) -> None:
        """Change the mode; with cut, existing connections are reset first."""
        before, self._mode = self._mode, mode
        if mode == "refuse":
            self._stop_listening()
        if cut:
            self.cut()
        if before == "refuse" and mode != "refuse":
            self._listen()

    def cut(self) -> None:
        """Reset every connection that is open now."""
        with self._lock:
            victims = list(self._open)
            self._open.clear()
        for victim in victims:
            with contextlib.suppress(OSError):
                # Unblocks the pump that sits in recv; closing alone would not.
                victim.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                victim.shutdown(socket.SHUT_RD)
            _close(victim, reset=True)

    def tear(self) -> None:
        """Reset each connection that is open now once half of its next answer has gone through."""
        with self._lock:
            self._torn |= self._upstreams

    def forget(self) -> None:
        """End the connections that are open now for the server, and never tell the client.

        They swallow what the client sends, as behind a router that dropped them while a laptop
        slept; new connections work.
        """
        with self._lock:
            victims, self._upstreams = self._upstreams, set()
            self._forgotten |= victims
            self._open -= victims
        for victim in victims:
            _close(victim)

    def _listen(self) -> None:
        self._listener = _listening_socket(self.port, "127.0.0.1")
        threading.Thread(
            target=self._accept_loop, args=(self._listener,), name="proxy-accept", daemon=True
        ).start()

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            _close(listener)

    def _accept_loop(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, peer = listener.accept()
            except OSError:
                return
            self.accepted.append(Accepted(time.monotonic(), peer[1]))
            threading.Thread(
                target=self._serve, args=(connection,), name="proxy-serve", daemon=True
            ).start()

    def _track(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)

    def _stand_still(self) -> None:
        while self._mode == "hang" and not self._closed:
            time.sleep(_POLL_S)

    def _serve(self, connection: socket.socket) -> None:
        self._track(connection)
        self._stand_still()
        if self._mode in ("reset", "refuse") or self._closed:
            _close(connection, reset=True)
            return
        try:
            upstream = socket.create_connection(("127.0.0.1", self.target_port), timeout=5)
            upstream.settimeout(None)
        except OSError:
            _close(connection, reset=True)
            return
        self._track(upstream)
        with self._lock:
            self._upstreams.add(upstream)
        threading.Thread(
            target=self._pump, args=(upstream, connection), name="proxy-pump", daemon=True
        ).start()
        self._pump(connection, upstream)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while chunk := source.recv(65536):
                self._stand_still()
                if source in self._torn:
                    sink.sendall(chunk[: len(chunk) // 2])
                    _close(sink, reset=True)
                    break
                self._forward(chunk, sink)
        except OSError:
            pass
        if source in self._forgotten:
            return  # the client is not told
        if sink in self._forgotten:
            _swallow(source)
        for connection in (source, sink):
            with self._lock:
                for known in (self._open, self._upstreams, self._torn, self._forgotten):
                    known.discard(connection)
            _close(connection)

    def _forward(self, chunk: bytes, sink: socket.socket) -> None:
        if self._mode == "latency":
            time.sleep(self.delay)
        sent = 0
        while self._mode == "drip" and sent < len(chunk):
            time.sleep(self.delay)
            sink.sendall(chunk[sent : sent + 1])
            sent += 1
        sink.sendall(chunk[sent:])


class BlackHole(TcpProxy):
    """A listening socket on 127.0.0.1 that accepts and never answers."""

    def __init__(self) -> None:
        super().__init__(target_port=0, mode="hang")

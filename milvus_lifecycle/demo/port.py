"""A port that is held for one server, and the moment at which something listens on it.

Held: the demo binds the port without listening. A connect is refused all the same, but the kernel
gives the port to nobody else while the server is down, and no client's own outgoing socket can be
given it as its source (a connect to a free port of the ephemeral range sometimes meets itself and
succeeds). gRPC binds with SO_REUSEPORT, so the server shares the port with its holder.
"""

from __future__ import annotations

import socket
import threading
import time
from types import TracebackType
from typing import final

HOST = "127.0.0.1"

#: Seconds between two attempts of a Knock: how late it can see that the port listens.
KNOCK_GAP = 0.005


class HeldPort:
    """A free port of 127.0.0.1, bound but not listening until `close`."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.bind((HOST, 0))
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()


@final
class Knock:
    """Connects to a port every few milliseconds until it is accepted, with sockets of its own.

    No client of any kind: it sends nothing and hangs up at once. It runs in a thread so that
    drawing the live view cannot make it late.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-knock", daemon=True)
        self.refused = 0
        #: time.monotonic() just before the connect that was accepted; None until then.
        self.listens_at: float | None = None

    def __enter__(self) -> Knock:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            began = time.monotonic()
            if _accepts(self._port):
                self.listens_at = began
                return
            self.refused += 1
            self._stopped.wait(KNOCK_GAP)


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1.0):
            return True
    except OSError:
        return False

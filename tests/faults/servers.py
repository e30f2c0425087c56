"""The real servers: Milvus Lite, and Milvus 2.3.5 in plain text and with TLS and a token."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import platform
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from pymilvus import MilvusClient

from tests.network import listens
from tests.observe import came_true
from tests.processes import ServerProcess
from tests.servers import make_tls_files

#: The PyPI package that holds the server's binary (57 MB, Linux x86-64 only, no dependencies).
PACKAGE = "milvus==2.3.5"

#: A folder that `pip install --target FOLDER milvus==2.3.5` has filled, used instead of the cache.
ENVIRONMENT = "MILVUS_LIFECYCLE_MILVUS_SITE"

_CACHE = Path(tempfile.gettempdir()) / f"milvus-lifecycle-{PACKAGE.replace('==', '-')}"
_UNPACK = "import sys, milvus; milvus._initialize_data_files(sys.argv[1])"
_START_LIMIT = 180.0
_STOP_GRACE = 10.0


class Server(ServerProcess):
    """A real server on a port of its own, and what its clients have to be told."""

    name = ""
    #: Whether a collection has to have an index and be loaded before it can be searched.
    indexed = False

    def __init__(self, command: list[str]) -> None:
        super().__init__(command, start_limit=_START_LIMIT)

    @property
    def options(self) -> dict[str, Any]:
        """Options of a client, the URI aside."""
        return {}

    def uri_at(self, port: int) -> str:
        """Its URI by way of another port."""
        return f"http://127.0.0.1:{port}"

    def terminate(self) -> None:
        """SIGTERM, and SIGKILL if it has not ended within ten seconds: what `docker stop` does.

        Milvus 2.3.5 under load goes on for more than a minute, answering every call with an error.
        """
        process = self._process
        assert process is not None
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_GRACE)
        self.kill()

    def ensure(self) -> None:
        """Start it if it is not running, let it go on if it is stopped."""
        self.resume()
        if self._process is None or self._process.poll() is not None:
            self.kill()
            self.start()

    def wait_ready(self, limit: float = _START_LIMIT) -> None:
        """Wait until it serves, not merely listens."""
        assert came_true(lambda: listens(self.port), limit), f"nothing on {self.address}"
        assert came_true(self._answers, limit, every=0.5), f"no answer from {self.address}"

    def _answers(self) -> bool:
        try:
            client = MilvusClient(self.uri_at(self.port), timeout=10, **self.options)
        except Exception:
            return False
        try:
            client.list_collections(timeout=10)
        except Exception:
            return False
        finally:
            client.close()
        return True


class LiteServer(Server):
    """Milvus Lite with one worker.

    With more it writes its log without a lock, and what it has acknowledged may be lost in a kill.
    """

    def __init__(self, folder: Path) -> None:
        where = ["--data-dir", str(folder), "--host", "127.0.0.1", "--port", "{port}"]
        super().__init__(
            [sys.executable, "-m", "milvus_lite", "server", *where, "--max-workers", "1"]
        )


class MilvusServer(Server):
    """Milvus 2.3.5, standalone, in plain text."""

    indexed = True

    def __init__(self, folder: Path, **options: str) -> None:
        launcher = str(Path(__file__).with_name("milvus_launcher.py"))
        super().__init__(
            [sys.executable, launcher, str(milvus_site()), str(folder), "proxy_port={port}"]
            + [f"{name}={value}" for name, value in options.items()]
        )


class SecureMilvusServer(MilvusServer):
    """Milvus 2.3.5 with a certificate of an authority that nobody knows, and authorization."""

    def __init__(self, folder: Path) -> None:
        self.tls = make_tls_files(folder)
        super().__init__(
            folder,
            authorization_enabled="true",
            tls_mode="1",
            server_pem_path=self.tls.certificate,
            server_key_path=self.tls.key,
            ca_pem_path=self.tls.ca,
        )

    @property
    def options(self) -> dict[str, Any]:
        return {"token": "root:Milvus", "server_pem_path": self.tls.ca}

    def uri_at(self, port: int) -> str:
        return f"https://127.0.0.1:{port}"


SERVERS: dict[str, type[Any]] = {
    "lite": LiteServer,
    "milvus": MilvusServer,
    "milvus-tls-token": SecureMilvusServer,
}


@functools.cache
def milvus_site() -> Path:
    """The folder with the unpacked server; skips the test, with the reason, if there is none."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        pytest.skip(f"{PACKAGE} has a binary for Linux on x86-64 only")
    given = os.environ.get(ENVIRONMENT)
    site = Path(given) if given else _CACHE
    site.mkdir(parents=True, exist_ok=True)
    with open(site / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (site / "milvus").is_dir():
            _install(site)
        if not (site / "unpacked" / ".done").exists():
            unpacked = str(site / "unpacked")
            environment = {**os.environ, "PYTHONPATH": str(site)}
            subprocess.run([sys.executable, "-c", _UNPACK, unpacked], env=environment, check=True)
            (site / "unpacked" / ".done").touch()
    return site


def _install(site: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(site), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{PACKAGE} cannot be installed here: {done.stderr.strip()[-300:]}")

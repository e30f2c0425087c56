"""Bad input: one clear error, early, as pymilvus's users know it, and nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pymilvus.exceptions import ConnectionConfigException, ErrorCode, MilvusException

import milvus_lifecycle as ml
from milvus_lifecycle.errors import ConfigError, LifecycleError, LoopMismatch
from tests.flavours import Program
from tests.network import open_sockets_to
from tests.observe import ChannelCount, came_true
from tests.processes import REPOSITORY
from tests.servers import FakeMilvus, TlsFiles

pytestmark = pytest.mark.timeout(60)

#: What is wrong, the URI, further arguments, and a word that the error must contain. There are
#: more of these in tests/unit/test_uri.py.
BAD_URIS: tuple[tuple[str, Any, dict[str, Any], str], ...] = (
    ("unknown scheme", "ftp://127.0.0.1:19530", {}, "ftp"),
    ("nothing", "", {}, "uri"),
    ("uri is a number", 19530, {}, "uri"),
    ("uri is bytes", b"http://127.0.0.1:19530", {}, "uri"),
    ("uri is None", None, {}, "uri"),
    ("token is a number", "http://127.0.0.1:19530", {"token": 5}, "token"),
    ("token is bytes", "http://127.0.0.1:19530", {"token": b"root:Milvus"}, "token"),
    ("folder missing", "/no/such/folder/demo.db", {}, "/no/such/folder"),
)


def _left_behind(program: Program, channels: ChannelCount) -> dict[str, Any]:
    """What is left: must be empty. Threads may take a moment to end."""
    came_true(lambda: not program.workers(), 5)  # else they are found
    found = {
        "channels": len(channels),
        "workers": program.workers(),
        "pooled": program.stats()["total_connections"],
    }
    return {name: value for name, value in found.items() if value}


@pytest.mark.parametrize(
    ("uri", "options", "word"), [case[1:] for case in BAD_URIS], ids=[case[0] for case in BAD_URIS]
)
def test_a_bad_uri_is_refused_before_anything_happens(
    program: Program, uri: Any, options: dict[str, Any], word: str
) -> None:
    """A client raises ConnectionConfigException that says what is wrong; nothing was opened."""
    with ChannelCount() as channels:
        with pytest.raises(ConnectionConfigException) as caught:
            program.client(uri, **options)
        assert word.lower() in str(caught.value).lower()
        assert _left_behind(program, channels) == {}
        assert program.records == []


@pytest.mark.parametrize("problem", ["missing", "not a certificate", "a folder"])
@pytest.mark.parametrize("name", ["server_pem_path", "client"])
def test_bad_tls_files_are_refused(
    program: Program, tls_files: TlsFiles, tmp_path: Path, problem: str, name: str
) -> None:
    """TLS files that do not exist or do not parse: an error with the path, and no channel."""
    path = tmp_path / "broken.pem"
    if problem == "not a certificate":
        path.write_text("this is no certificate")
    elif problem == "a folder":
        path.mkdir()
    options = {"server_pem_path": str(path)}
    if name == "client":
        options = {
            "ca_pem_path": tls_files.ca,
            "client_key_path": tls_files.key,
            "client_pem_path": str(path),
        }
    with ChannelCount() as channels:
        with pytest.raises(MilvusException) as caught:
            program.client("https://127.0.0.1:19530", timeout=2, **options)
        assert str(path) in str(caught.value)
        assert _left_behind(program, channels) == {}


class _Rigid:
    """A client to which no weak reference is possible."""

    __slots__ = ()


def test_a_client_without_weak_references_is_refused(program: Program, server: FakeMilvus) -> None:
    """A client that cannot be watched is refused before anything is opened."""
    config = ml.ConnectionConfig.from_uri(server.uri)
    with ChannelCount() as channels:
        with pytest.raises((LifecycleError, MilvusException, TypeError), match=r"(?i)weak"):
            program.manager().get_or_create(config, client=_Rigid())
        assert _left_behind(program, channels) == {}
        assert program.records == []


def test_a_refused_first_connect_leaves_nothing(program: Program, server: FakeMilvus) -> None:
    """When nobody listens, the client's error names the address; no entry and no socket stays."""
    server.stop()
    with pytest.raises(MilvusException, match=str(server.port)):
        program.client(server.uri, timeout=0.5)
    assert program.stats()["total_connections"] == 0
    assert open_sockets_to(server.port) == 0
    assert [record.dest for record in program.transitions()][-1] == "CLOSED"
    assert came_true(lambda: not program.workers(), 30), program.workers()


def test_installing_twice_differently_is_refused(installed: None) -> None:
    """A second install with other arguments raises; with the same ones it changes nothing."""
    manager = ml.ConnectionManager.get_instance()
    with pytest.raises((LifecycleError, RuntimeError, ValueError)):
        ml.install(policy=ml.LifecyclePolicy(linger=1.0))
    ml.install(policy=ml.LifecyclePolicy())
    assert ml.ConnectionManager.get_instance() is manager


# -- as pymilvus's users know it -----------------------------------------------------------


def heard(side: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.uri_errors", side, str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_errors_are_those_of_pymilvus(tmp_path: Path) -> None:
    """Class, code and phrase are what pymilvus itself raises, in both flavours; nothing is pooled.

    For what it calls illegal, a folder that is missing, and a path without Milvus Lite to serve it.
    """
    theirs, ours = heard("stock", tmp_path), heard("engine", tmp_path)
    assert ours.pop("left behind") == 0
    assert all(kind == "config" and code == 1 for kind, code, _ in ours.values()), ours
    for case, (_, _, phrases) in theirs.items():
        assert set(phrases) <= set(ours[case][2]), (case, ours[case])


def test_a_broken_milvus_lite(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is installed and cannot be imported says what to install, and leaves nothing."""
    monkeypatch.setitem(sys.modules, "milvus_lite.server_manager", None)
    with pytest.raises(ConnectionConfigException, match="pip install") as caught:
        program.client(str(tmp_path / "demo.db"))
    assert caught.value.code == ErrorCode.UNEXPECTED_ERROR
    assert program.stats()["total_connections"] == 0


def test_errors_of_direct_use() -> None:
    """Whoever uses the engine's classes without `install` is raised MilvusExceptions too."""
    with pytest.raises(ConnectionConfigException, match="is illegal") as refused:
        ml.ConnectionConfig.from_uri("ftp://root:pa55word@h")
    assert refused.value.code == ErrorCode.UNEXPECTED_ERROR
    assert isinstance(refused.value, ConfigError)
    assert refused.value.field == "uri"
    assert "pa55word" not in f"{refused.value!r}{refused.value}{refused.value.__context__!r}"
    with pytest.raises(MilvusException, match="no event loop") as lost:
        ml.AsyncConnectionManager.get_instance()
    assert isinstance(lost.value, LoopMismatch)


_ALONE = """
import sys
sys.modules["pymilvus"] = None
import milvus_lifecycle as ml
def parse():
    ml.ConnectionConfig.from_uri("ftp://h")
for work in (parse, ml.AsyncConnectionManager.get_instance):
    try:
        work()
    except Exception as error:
        print(type(error).__name__)
"""


def test_errors_without_pymilvus() -> None:
    """Where pymilvus is not installed, the same mistakes raise the engine's own errors."""
    done = subprocess.run(
        [sys.executable, "-c", _ALONE], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["ConfigError", "LoopMismatch"]

"""Bad input: one clear error at the earliest point, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pymilvus.exceptions import ConnectionConfigException, MilvusException

import milvus_lifecycle as ml
from milvus_lifecycle.errors import LifecycleError
from tests.conftest import Engine
from tests.network import open_sockets_to
from tests.observe import ChannelCount, wait_until
from tests.servers import FakeMilvus, TlsFiles

pytestmark = pytest.mark.timeout(60)

NewThreads = Callable[[], set[str]]

#: What is wrong, the URI, further arguments, and a word that the error must contain.
BAD_URIS: tuple[tuple[str, Any, dict[str, Any], str], ...] = (
    ("unknown scheme", "ftp://127.0.0.1:19530", {}, "ftp"),
    ("no scheme", "127.0.0.1:19530", {}, "http"),
    ("empty host", "http://:19530", {}, "host"),
    ("nothing", "", {}, "uri"),
    ("port too high", "http://127.0.0.1:65536", {}, "port"),
    ("port zero", "http://127.0.0.1:0", {}, "port"),
    ("port no number", "http://127.0.0.1:milvus", {}, "port"),
    ("open bracket", "http://[::1:19530", {}, "uri"),
    ("uri is a number", 19530, {}, "uri"),
    ("uri is bytes", b"http://127.0.0.1:19530", {}, "uri"),
    ("uri is None", None, {}, "uri"),
    ("token is a number", "http://127.0.0.1:19530", {"token": 5}, "token"),
    ("token is bytes", "http://127.0.0.1:19530", {"token": b"root:Milvus"}, "token"),
    ("folder missing", "/no/such/folder/demo.db", {}, "/no/such/folder"),
)


def _policy(**fields: Any) -> ml.LifecyclePolicy:
    return ml.LifecyclePolicy(**fields)


def _left_behind(engine: Engine, channels: ChannelCount, threads: NewThreads) -> dict[str, Any]:
    """What is left: must be empty. Threads may take a moment to end."""
    wait_until(lambda: not threads(), 5)
    found = {
        "channels": len(channels),
        "threads": sorted(threads()),
        "pooled": engine.stats()["total_connections"],
        "records": len(engine.records),
    }
    return {name: value for name, value in found.items() if value}


@pytest.mark.parametrize(
    ("uri", "options", "word"), [case[1:] for case in BAD_URIS], ids=[case[0] for case in BAD_URIS]
)
def test_a_bad_uri_is_refused_before_anything_happens(
    engine: Engine, new_threads: NewThreads, uri: Any, options: dict[str, Any], word: str
) -> None:
    """MilvusClient raises ConnectionConfigException that says what is wrong; nothing was opened."""
    with ChannelCount() as channels:
        with pytest.raises(ConnectionConfigException) as caught:
            engine.client(uri, **options)
        assert word.lower() in str(caught.value).lower()
        assert _left_behind(engine, channels, new_threads) == {}


@pytest.mark.parametrize("problem", ["missing", "not a certificate", "a folder"])
@pytest.mark.parametrize("name", ["server_pem_path", "client"])
def test_bad_tls_files_are_refused(
    engine: Engine,
    new_threads: NewThreads,
    tls_files: TlsFiles,
    tmp_path: Path,
    problem: str,
    name: str,
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
            engine.client("https://127.0.0.1:19530", timeout=2, **options)
        assert str(path) in str(caught.value)
        left = _left_behind(engine, channels, new_threads)
        left.pop("records", None)
        assert left == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("idle_threshold", -1.0),
        ("probe_timeout", 0.0),
        ("connect_timeout", float("nan")),
        ("recovery_budget", "long"),
        ("backoff_multiplier", 0.5),
        ("backoff_jitter", 1.5),
        ("linger", -0.1),
        ("max_age", 0.0),
        ("drain_timeout", -5.0),
    ],
)
def test_a_bad_policy_field_is_named(field: str, value: Any) -> None:
    """LifecyclePolicy raises ValueError that names the field."""
    with pytest.raises(ValueError, match=field):
        ml.LifecyclePolicy(**{field: value})


def test_an_unknown_policy_field_is_refused() -> None:
    """A field that does not exist is a TypeError, as with any dataclass."""
    with pytest.raises(TypeError, match="no_such_field"):
        _policy(no_such_field=1.0)


def test_an_unknown_handler_is_refused(
    engine: Engine, server: FakeMilvus, new_threads: NewThreads
) -> None:
    """A handler that the engine did not hand out is a clear error, or a no, and changes nothing."""
    client = engine.client(server.uri)
    before = engine.stats()["total_connections"]
    with pytest.raises(LifecycleError, match="handler"):
        engine.manager.release(object())
    assert engine.manager.handle_error(object(), RuntimeError("anything")) is False
    assert engine.stats()["total_connections"] == before
    assert client.list_collections() == ["demo"]


class _Rigid:
    """A client to which no weak reference is possible."""

    __slots__ = ()


def test_a_client_without_weak_references_is_refused(
    engine: Engine, server: FakeMilvus, new_threads: NewThreads
) -> None:
    """A client that cannot be watched is refused before anything is opened."""
    config = engine.config(server.uri)
    with ChannelCount() as channels:
        with pytest.raises((LifecycleError, MilvusException, TypeError), match=r"(?i)weak"):
            engine.manager.get_or_create(config, client=_Rigid())
        assert _left_behind(engine, channels, new_threads) == {}


def test_a_refused_first_connect_leaves_nothing(
    engine: Engine, new_threads: NewThreads, server: FakeMilvus
) -> None:
    """When nobody listens, the client's error names the address; no entry and no socket stays."""
    server.stop()
    with pytest.raises(MilvusException, match=str(server.port)):
        engine.client(server.uri, timeout=0.5)
    assert engine.stats()["total_connections"] == 0
    assert open_sockets_to(server.port) == 0
    assert [record.dest for record in engine.transitions()][-1] == "CLOSED"
    assert wait_until(lambda: not new_threads(), 30)


def test_installing_twice_differently_is_refused(engine: Engine) -> None:
    """A second install with other arguments raises; with the same ones it changes nothing."""
    with pytest.raises((LifecycleError, RuntimeError, ValueError)):
        ml.install(policy=ml.LifecyclePolicy(linger=1.0))
    ml.install(policy=ml.LifecyclePolicy())
    assert ml.ConnectionManager.get_instance() is engine.manager

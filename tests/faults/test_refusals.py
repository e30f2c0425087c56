"""What waiting cannot mend: credentials that are refused, certificates that do not verify."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

from tests.faults.load import FLAVOURS, Flavour, Load, list_only, run_once
from tests.faults.scene import count, engine
from tests.faults.servers import Server
from tests.observe import wait_until
from tests.servers import FakeMilvus, make_tls_files

pytestmark = pytest.mark.timeout(300)

_TOKEN = "root:a-secret-that-nobody-may-see"

Record = Callable[[str, object], None]


def _first_call(flavour: Flavour, uri: str, **options: Any) -> tuple[str, float]:
    """The error of a client's first call, which must fail, and how long it took (seconds)."""
    began = time.monotonic()
    call = run_once if flavour == "asyncio" else MilvusClient
    with pytest.raises(MilvusException) as caught:
        call(uri, **options)
    text = str(caught.value)
    # What the test keeps would keep the client, through the traceback.
    caught.value.__traceback__ = None
    return f"{type(caught.value).__name__}: {text}", time.monotonic() - began


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("running", ["milvus-tls-token"], indirect=True)
def test_milvus_refuses_the_credentials(
    server: Server, flavour: Flavour, tmp_path: Path, record_property: Record
) -> None:
    """A wrong password: one PermanentFailure within 10 s, without the password in it."""
    audit = tmp_path / "audit.jsonl"
    options = {**server.options, "token": _TOKEN}
    with engine(audit):
        text, took = _first_call(flavour, server.uri_at(server.port), **options)
    record_property("fault", f"{server.name:16} {flavour:7}  refused credentials: {took:.2f} s")
    assert text.startswith("PermanentFailure"), text
    assert server.address in text
    assert "secret" not in text + audit.read_text()
    assert count(audit, "probe_failed") == 1
    assert took < 10.0


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("running", ["milvus-tls-token"], indirect=True)
def test_milvus_shows_a_certificate_that_does_not_verify(
    server: Server, flavour: Flavour, tmp_path: Path, record_property: Record
) -> None:
    """A certificate of another authority: one error within 60 s; it names address and cause."""
    audit = tmp_path / "audit.jsonl"
    options = {**server.options, "server_pem_path": make_tls_files(tmp_path).ca}
    with engine(audit):
        text, took = _first_call(flavour, server.uri_at(server.port), **options)
    record_property("fault", f"{server.name:16} {flavour:7}  wrong certificate: {took:.2f} s")
    assert server.address in text
    assert "certificate" in text.lower(), text
    assert count(audit, "probe_failed") == 1
    assert took < 60.0


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_password_is_changed_during_an_outage(
    flavour: Flavour, tmp_path: Path, record_property: Record
) -> None:
    """Recovery is refused: all waiting calls fail within 30 s, by a give_up; then all is well.

    Until somebody sets the old password again, each call may fail.
    """
    audit = tmp_path / "audit.jsonl"
    with (
        engine(audit),
        FakeMilvus() as server,
        Load(flavour, server.uri, operations=list_only, token=_TOKEN) as load,
    ):
        assert load.served_again(60) is not None, load.tally.failed[:3]
        server.stop()
        time.sleep(1.0)
        assert load.tally.failed == []
        server.fail(grpc.StatusCode.UNAUTHENTICATED, spare=())
        began = time.monotonic()
        server.start()
        wait_until(lambda: len(load.tally.failed) >= load.workers, 30)
        took = time.monotonic() - began
        server.heal()
        assert load.served_again(60) is not None, load.tally.failed[:3]
        assert load.stop(60), "a call never ended"
    failed = load.tally.failed
    record_property("fault", f"{'fake':16} {flavour:7}  refused in an outage: {took:.2f} s")
    assert load.complaints == []
    assert all("PermanentFailure" in error for error in failed), failed[:3]
    assert count(audit, "give_up") >= 1
    assert "secret" not in "".join(failed) + audit.read_text()
    assert took < 30.0


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_another_certificate_after_an_outage(
    flavour: Flavour, tmp_path: Path, record_property: Record
) -> None:
    """A server that comes back with a wrong certificate is waited for as one that is down.

    Its certificate may be mended at any time: calls without a timeout then go on.
    """
    audit = tmp_path / "audit.jsonl"
    (tmp_path / "other").mkdir()
    right, wrong = make_tls_files(tmp_path), make_tls_files(tmp_path / "other")
    with engine(audit), FakeMilvus(tls=right) as server:
        uri, port = f"https://127.0.0.1:{server.port}", server.port
        with Load(flavour, uri, operations=list_only, server_pem_path=right.ca) as load:
            assert load.served_again(60) is not None, load.tally.failed[:3]
            server.stop()
            with FakeMilvus(port, tls=wrong):
                time.sleep(4.0)
            server.start()
            served = load.served_again(60)
            assert served is not None, load.tally.failed[:3]
            assert load.stop(60), "a call never ended"
    record_property(
        "fault",
        f"{'fake':16} {flavour:7}  wrong certificate for 4 s: {len(load.tally.failed)} of "
        f"{load.tally.calls:,} calls failed; all served {served:.1f} s after it",
    )
    assert load.complaints == []
    assert load.tally.failed == []
    assert count(audit, "recovered") >= 1

"""A topology service in trouble: clients go on working on the last known primary."""

from __future__ import annotations

import contextlib
import http.server
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests import inside
from tests.flavours import Program
from tests.global_clusters import HOST, GlobalCluster
from tests.observe import Load, LogLines, wait_until
from tests.servers import FakeMilvus, make_tls_files
from tests.topology_service import answer, cluster, reply, serving

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.policy(topology_refresh=0.5, recovery_budget=6.0),
]

#: The promise is that the loop never stands still for 50 ms; a loaded machine alone came to 0.6 s.
STALL = 1.5

Break = Callable[[GlobalCluster, contextlib.ExitStack], None]


def go_down(service: GlobalCluster, stack: contextlib.ExitStack) -> None:
    """Nothing listens."""
    service.proxy.set_mode("refuse", cut=True)


def hang(service: GlobalCluster, stack: contextlib.ExitStack) -> None:
    """The connection is accepted, and that is all."""
    service.proxy.set_mode("hang")


def be_slow(service: GlobalCluster, stack: contextlib.ExitStack) -> None:
    """The answer takes longer than a recovery may."""
    service.delay = 40.0


def fail(service: GlobalCluster, stack: contextlib.ExitStack) -> None:
    service.behave(reply(b"internal error", status=500))


def talk_garbage(service: GlobalCluster, stack: contextlib.ExitStack) -> None:
    service.behave(reply(b"<html>please log in</html>"))


def send_100_megabytes(service: GlobalCluster, stack: contextlib.ExitStack) -> None:
    """Without a length, so that only reading tells."""

    def behave(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(100):
            handler.wfile.write(b" " * 1024 * 1024)

    service.behave(behave)


def name_no_primary(service: GlobalCluster, stack: contextlib.ExitStack) -> None:
    service.behave(reply(json.dumps(answer("9", [cluster(capability=1)])).encode()))


def go_back(service: GlobalCluster, stack: contextlib.ExitStack) -> None:
    """An older version, which names the other server."""
    older = answer("0", [cluster("in01-1", service.servers[1].uri, 3)])
    service.behave(reply(json.dumps(older).encode()))


def redirect(service: GlobalCluster, stack: contextlib.ExitStack) -> None:
    """To another host, which would like to have the token."""
    other = stack.enter_context(serving(reply()))
    stack.callback(lambda: _assert_never_asked(other.seen))
    service.behave(reply(b"", status=302, Location=f"{other.url}/global-cluster/topology"))


def _assert_never_asked(seen: list[Any]) -> None:
    assert seen == []


TROUBLES: tuple[Break, ...] = (
    go_down,
    hang,
    be_slow,
    fail,
    talk_garbage,
    send_100_megabytes,
    name_no_primary,
    go_back,
    redirect,
)


def troubles(lines: LogLines, cluster: GlobalCluster) -> list[str]:
    """The lines about this cluster's topology service, so far.

    A fetch of an earlier test's cluster may still be failing in this process.
    """
    return [
        record.getMessage()
        for record in lines.at_least(logging.WARNING, "milvus_lifecycle")
        if record.getMessage().startswith("audit.trouble")
        and cluster.address in record.getMessage()
    ]


@contextlib.contextmanager
def loaded(program: Program, cluster: GlobalCluster, **options: Any) -> Iterator[Load]:
    """A client that calls all the time; no call may fail, and no loop stand still."""
    client = program.client(cluster.uri, token="root:s3cr3t", **options)
    with program.never_still(STALL):
        load = Load(client.list_collections)
        try:
            wait_until(lambda: load.count >= 5, 20)
            yield load
        finally:
            assert load.stop()
    assert load.errors == []


@pytest.fixture(autouse=True)
def short_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch may take as long as a recovery, and no longer; the next may begin soon."""
    monkeypatch.setattr(*inside.fetch_limit(1.0))
    monkeypatch.setattr(*inside.fetch_spacing(0.2))


@pytest.fixture
def lines() -> Iterator[LogLines]:
    with LogLines(logging.DEBUG) as collected:
        yield collected


@pytest.mark.slow
@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
def test_clients_go_on_working(
    program: Program,
    lines: LogLines,
    old: FakeMilvus,
    new: FakeMilvus,
    cluster: GlobalCluster,
    trouble: Break,
) -> None:
    """No call fails, one WARNING until the service answers again, one more for the next outage.

    Meanwhile the primary even restarts, and its clients ride through it.
    """
    with contextlib.ExitStack() as stack, loaded(program, cluster) as load:
        trouble(cluster, stack)
        wait_until(lambda: troubles(lines, cluster), 40)
        asked, entered = len(cluster.asked), len(cluster.proxy.accepted)
        assert load.works()
        old.stop()
        time.sleep(0.5)  # the primary's own outage
        old.start()
        assert load.works(), load.errors[:3]
        # So that there was more than one reason to complain.
        if trouble not in (go_down, hang, be_slow):
            wait_until(lambda: len(cluster.asked) >= asked + 2, 20)
        assert entered or trouble is go_down
        assert len(troubles(lines, cluster)) == 1, troubles(lines, cluster)
        assert load.result == ["old"]

        cluster.proxy.set_mode("pass", cut=True)
        cluster.heal()
        cluster.move(new)
        wait_until(lambda: load.result == ["new"], 40)
        cluster.behave(reply(b"", status=503))
        wait_until(lambda: len(troubles(lines, cluster)) == 2, 20)
        assert load.works()
        assert len(troubles(lines, cluster)) == 2
    assert "s3cr3t" not in lines.text()
    assert all("\n" not in line for line in troubles(lines, cluster))


def test_a_wrong_certificate_is_trouble_like_any_other(
    program: Program, lines: LogLines, tmp_path: Path
) -> None:
    """The service suddenly has a certificate of another authority: it is not asked any more."""
    files = make_tls_files(tmp_path, HOST, "127.0.0.1")
    stranger = trustme.CA().issue_cert(HOST)
    with (
        FakeMilvus(tls=files, collections=["old"]) as old,
        FakeMilvus(tls=files, collections=["new"]) as new,
        GlobalCluster(old, new, certificate=files) as cluster,
        serving(reply(), stranger) as impostor,
        loaded(program, cluster, server_pem_path=files.ca) as load,
    ):
        genuine = cluster.proxy.target_port
        cluster.proxy.target_port = impostor.server.server_port
        wait_until(lambda: troubles(lines, cluster), 20)
        seen = len(cluster.proxy.accepted)
        wait_until(lambda: len(cluster.proxy.accepted) >= seen + 2, 20)
        assert load.works()
        assert len(troubles(lines, cluster)) == 1
        assert (
            "UNTRUSTED" in troubles(lines, cluster)[0]
            or "certificate" in troubles(lines, cluster)[0]
        )
        assert impostor.seen == []

        cluster.proxy.target_port = genuine
        cluster.move(new)
        wait_until(lambda: load.result == ["new"], 20)

"""TLS files that change on disk while clients are connected, and which of them are needed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from pymilvus.exceptions import MilvusException

import milvus_lifecycle as ml
from tests.flavours import Flavour, Program
from tests.inside import looking_at_tls
from tests.observe import Call, Load, held_rpc, wait_until
from tests.servers import FakeMilvus, TlsFiles, make_tls_files

REASON = "the TLS files have changed"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*looking_at_tls(0.05))


class Mutual:
    """The files of a server and of a client that ask each other for a certificate."""

    def __init__(self, folder: Path) -> None:
        self.server = replace(make_tls_files(folder), mutual=True)
        self.chain, self.key = folder / "client.pem", folder / "client.key"
        self.options = {
            "ca_pem_path": self.server.ca,
            "client_pem_path": str(self.chain),
            "client_key_path": str(self.key),
        }
        self.rotate()

    def rotate(self) -> bytes:
        """Write certificates of a new authority, file by file; returns the client's."""
        authority = trustme.CA()
        server, client = authority.issue_cert("localhost"), authority.issue_cert("client")
        authority.cert_pem.write_to_path(self.server.ca)
        server.private_key_pem.write_to_path(self.server.key)
        server.cert_chain_pems[0].write_to_path(self.server.certificate)
        client.private_key_pem.write_to_path(str(self.key))
        client.cert_chain_pems[0].write_to_path(str(self.chain))
        return client.cert_chain_pems[0].bytes()


@pytest.fixture
def mutual(tmp_path: Path) -> Mutual:
    return Mutual(tmp_path)


def presented(server: FakeMilvus, method: str) -> list[Any]:
    """The client's certificate, as the server saw it with each call."""
    return [call.context.auth_context()["x509_pem_cert"][0] for call in server.seen(method)]


def test_rotated_certificates_are_taken_up_without_a_failed_call(
    program: Program, mutual: Mutual
) -> None:
    """A new authority, and new certificates of both ends: busy and silent connections change over.

    A call that runs meanwhile ends on the old channel; no call fails, and nothing is lost.
    """
    with FakeMilvus(tls=mutual.server) as server:
        uri = f"https://localhost:{server.port}"
        client = program.connected(uri, **mutual.options)
        idle = program.client(uri, **mutual.options, dedicated=True)
        hold, running = held_rpc(server, client)
        load = Load(client.list_collections, threads=2)
        for _ in range(2):
            new = mutual.rotate()
            wait_until(partial(_both_connected_with, new, server), 30)
            assert load.works()
            assert presented(server, "ShowCollections")[-1] == new
        assert not running.done
        hold.release()
        running.value(10)
        assert load.stop()
        assert load.errors == []
        assert idle.list_collections() == ["demo"]
        assert presented(server, "ShowCollections")[-1] == new
    assert {record.reason for record in program.transitions("recycle")} == {REASON}
    assert server.count("HasPartition") == 1
    assert not {"fail", "give_up", "probe_failed"} & set(program.path())


def _both_connected_with(certificate: bytes, server: FakeMilvus) -> bool:
    return presented(server, "Connect").count(certificate) >= 2


class _Passing(grpc.UnaryUnaryClientInterceptor):
    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details, request)


class _AsyncPassing(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(details, request)


def test_interceptors_hide_no_change(flavour: Flavour, mutual: Mutual) -> None:
    """Through a channel of gRPC's that others are wrapped around, too."""
    ml.install(interceptors=[_Passing(), _AsyncPassing()])
    try:
        with FakeMilvus(tls=mutual.server) as server:
            client = flavour.connected(f"https://localhost:{server.port}", **mutual.options)
            new = mutual.rotate()
            wait_until(lambda: new in presented(server, "Connect"), 30)
            assert client.list_collections() == ["demo"]
    finally:
        ml.uninstall()


def test_files_that_are_half_written_break_nothing(program: Program, mutual: Mutual) -> None:
    """While a file is cut short, missing, or not the key's certificate, the old channel serves."""
    with FakeMilvus(tls=mutual.server) as server:
        client = program.connected(f"https://localhost:{server.port}", **mutual.options)
        load = Load(client.list_collections)
        good = mutual.key.read_bytes()
        for bad in (good[:-40], None, trustme.CA().issue_cert("x").private_key_pem.bytes()):
            mutual.key.unlink(missing_ok=True)
            if bad is not None:
                mutual.key.write_bytes(bad)
            assert load.works()  # five calls, 0.02 s apart at least: two looks
            assert not program.transitions("recycle")
        mutual.key.write_bytes(good)
        assert program.saw("recovered")
        assert load.works()
        assert load.stop()


@pytest.mark.policy(backoff_patience=300.0)
def test_a_recovery_takes_up_files_that_come_late(
    program: Program, tls_files: TlsFiles, tmp_path: Path
) -> None:
    """A server is back with a certificate that its client cannot know yet; then the client can.

    The channel that knocks meanwhile would go on with the old file for five minutes.
    """
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(Path(tls_files.ca).read_bytes())
    with FakeMilvus(tls=tls_files) as server:
        uri = f"https://localhost:{server.port}"
        client = program.connected(uri, server_pem_path=str(trusted))
        server.stop()
        make_tls_files(tmp_path)
        server.start()
        call = Call(client.list_collections)
        assert program.saw("retry")
        trusted.write_bytes(Path(tls_files.ca).read_bytes())
        assert call.value(50) == ["demo"]


def test_a_ca_alone_verifies_the_server(
    program: Program, tls_files: TlsFiles, tmp_path: Path
) -> None:
    """pymilvus asks the system's authorities instead (pymilvus#2785), without a word."""
    (tmp_path / "other").mkdir()
    other = make_tls_files(tmp_path / "other")
    with FakeMilvus(tls=tls_files) as server:
        https = f"https://localhost:{server.port}"
        plain = f"http://localhost:{server.port}"
        for uri, more in ((https, {}), (https, {"secure": True}), (plain, {"secure": True})):
            client = program.client(uri, ca_pem_path=tls_files.ca, **more)
            assert client.list_collections() == ["demo"]
        with pytest.raises(MilvusException, match="CERTIFICATE_VERIFY_FAILED"):
            program.client(https, ca_pem_path=other.ca)


@pytest.mark.parametrize(("given", "missing"), [("pem", "key"), ("key", "pem")])
def test_half_a_pair_is_told_at_once(
    program: Program, mutual: Mutual, given: str, missing: str
) -> None:
    """A client's certificate without its key, or the other way round, names what is missing."""
    del mutual.options[f"client_{missing}_path"]
    with pytest.raises(MilvusException, match=f"client_{missing}_path is missing") as caught:
        program.client("https://localhost:9", **mutual.options)
    assert f"client_{given}_path" in str(caught.value)
    assert program.stats()["total_connections"] == 0

"""`milvus-lifecycle probe URI`: what it finds, its exit codes, a sentence for each failure."""

from __future__ import annotations

import contextlib
import datetime
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from pymilvus.grpc_gen import milvus_pb2
from pymilvus.grpc_gen.milvus_pb2_grpc import MilvusServiceStub

from milvus_lifecycle.cli import audit, main
from milvus_lifecycle.cli import probe as command
from tests.global_clusters import GlobalCluster
from tests.network import BlackHole, free_port
from tests.servers import FakeMilvus, RpcFailure, TlsFiles, credentials, make_tls_files
from tests.topology_service import reply

#: Seconds that a probe of a server that hangs is given; what it takes at most is ten times that.
SHORT = 2.0
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*_PROXY_VARIABLES, "all_proxy"):
        for each in (name, name.upper()):
            monkeypatch.delenv(each, raising=False)


Probe = Callable[..., dict[str, Any]]


@pytest.fixture
def probe(capfd: pytest.CaptureFixture[str]) -> Probe:
    """Run it with --json: what it prints, which is one line."""

    def run(*words: str, healthy: bool = False) -> dict[str, Any]:
        code = main(["probe", "--json", *words])
        said = capfd.readouterr().out
        assert (code, said.count("\n")) == (0 if healthy else 1, 1), said
        found: dict[str, Any] = json.loads(said)
        assert found["healthy"] is healthy
        assert (found["problem"] is None) is healthy
        return found

    return run


def localhost(server: FakeMilvus) -> str:
    return server.uri.replace("127.0.0.1", "localhost")


def refuse(code: grpc.StatusCode) -> Callable[[object], None]:
    def answer(call: object) -> None:
        raise RpcFailure(code, "no, with token=sesame")

    return answer


def test_a_server_that_is_well(server: FakeMilvus, probe: Probe) -> None:
    """Address, version and latencies; nothing but Connect and GetVersion is asked of it."""
    found = probe(server.uri, healthy=True)
    assert found["uri"] == server.uri
    assert found["addresses"] == {server.address: "ok"}
    assert found["server_version"] == "v2.6-fake"
    for name in ("tcp_connect", "connect", "get_version"):
        timing = found[name]
        assert timing["count"] == server.count("GetVersion") == command.ROUNDS
        assert 0 < timing["min"] <= timing["median"] < 1000 * found["seconds"] + 1
    assert (found["certificate"], found["topology"], found["proxy"]) == (None, None, None)
    assert {call.method for call in server.calls} == {"Connect", "GetVersion"}


@pytest.mark.parametrize("where", ["variable", "uri"])
def test_a_token_is_sent_and_never_printed(
    server: FakeMilvus, monkeypatch: pytest.MonkeyPatch, capfd: Any, where: str
) -> None:
    """From the variable that is named, or the URI; whether the server takes it or not."""
    monkeypatch.setenv("SOME_TOKEN", "root:sesame")
    words = [server.uri, "--token-env", "SOME_TOKEN"]
    if where == "uri":
        words = [server.uri.replace("//", "//root:sesame@")]
    assert main(["probe", *words]) == 0
    assert main(["probe", "--json", *words]) == 0
    assert {credentials(call) for call in server.seen("GetVersion")} == {"root:sesame"}
    server.on("Connect", refuse(grpc.StatusCode.UNAUTHENTICATED))
    assert main(["probe", *words]) == 1
    said, complained = capfd.readouterr()
    assert "the server refuses: UNAUTHENTICATED: no, with token=***. Check the token" in said
    assert "sesame" not in said + complained


def test_for_a_terminal(
    server: FakeMilvus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for each thing, the verdict last; without escape codes where nobody sees colours."""
    assert main(["probe", server.uri]) == 0
    first, *rows, last = capsys.readouterr().out.splitlines()
    assert first == server.uri
    assert [row.split()[0] for row in rows] == ["address", "TCP", "connect", "GetVersion", "server"]
    assert last.startswith("healthy, in ")
    server.stop()
    monkeypatch.setattr(audit.Paint, "of", lambda stream: audit.Paint(True))
    assert main(["probe", server.uri]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("\x1b[1;31mNOT HEALTHY\x1b[0m: ")
    assert "connection refused. Nothing listens there" in last


def test_a_server_does_not_speak_to_the_terminal(server: FakeMilvus, capsys: Any) -> None:
    """What it says of itself, or as an error, is shown without its control characters."""
    version = milvus_pb2.GetVersionResponse(version="v9\x1b[2J\n")
    server.on("GetVersion", lambda call: version)
    assert main(["probe", server.uri]) == 0
    shown = capsys.readouterr().out
    assert "v9\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}\n" in shown
    assert "\x1b" not in shown


# -- TLS -----------------------------------------------------------------------------------------


def test_a_certificate_that_is_trusted(tls_files: TlsFiles, probe: Probe) -> None:
    """Whose it is, for which names, and for how long."""
    with FakeMilvus(tls=tls_files) as server:
        found = probe(localhost(server), "--ca", tls_files.ca, healthy=True)["certificate"]
    assert "trustme" in found["subject"]
    assert "Testing CA" in found["issuer"]
    assert found["names"] == ["localhost", "127.0.0.1"]
    assert found["expires"] > "2035"
    assert found["days_left"] > 3000
    assert found["untrusted"] is None


def _expired(folder: Path) -> TlsFiles:
    import trustme

    files, authority = make_tls_files(folder), trustme.CA()
    past = datetime.datetime(2020, 1, 31, tzinfo=datetime.timezone.utc)
    issued = authority.issue_cert("localhost", not_before=past.replace(day=1), not_after=past)
    authority.cert_pem.write_to_path(files.ca)
    issued.private_key_pem.write_to_path(files.key)
    issued.cert_chain_pems[0].write_to_path(files.certificate)
    return files


def test_certificates_that_are_not_trusted(tmp_path: Path, probe: Probe) -> None:
    """They are read all the same, and what to do depends on what is wrong."""
    known = make_tls_files(tmp_path, "localhost")
    with FakeMilvus(tls=known) as server:
        unknown = probe(localhost(server))
        other_name = probe(server.uri, "--ca", known.ca)
    with FakeMilvus(tls=_expired(tmp_path)) as server:
        expired = probe(localhost(server), "--ca", known.ca)
    assert "unable to get local issuer certificate. Name the authority" in unknown["problem"]
    assert "--ca FILE" in unknown["problem"]
    assert unknown["certificate"]["names"] == ["localhost"]
    assert other_name["problem"].endswith("Use a name that it is for: localhost.")
    assert expired["problem"].endswith("It expired on 2020-01-31: renew it on the server.")
    assert expired["certificate"]["days_left"] < 0


def test_tls_on_one_side_alone(server: FakeMilvus, tls_files: TlsFiles, probe: Probe) -> None:
    """Either way the scheme to write is said; so is that a client's certificate may be missing."""
    assert "is reached by http://" in probe(server.uri.replace("http", "https"))["problem"]
    with FakeMilvus(tls=tls_files) as secured:
        problem = probe(localhost(secured).replace("https", "http"))["problem"]
        assert "the server speaks TLS: write https://" in problem
    with FakeMilvus(tls=replace(tls_files, mutual=True)) as secured:
        problem = probe(localhost(secured), "--ca", tls_files.ca)["problem"]
        assert "asks for a client's certificate" in problem


# -- servers that are away, or hang --------------------------------------------------------------


def test_a_name_without_an_address(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver's own word for it, and what to check."""

    def nothing(*args: object, **kwargs: object) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nothing)
    problem = probe("http://milvus.example:19530")["problem"]
    assert problem.startswith("milvus.example has no address: Name or service not known. Check how")
    monkeypatch.undo()
    label = "a" * 64  # DNS has 63
    problem = probe(f"http://{label}.example:19530")["problem"]
    assert problem.startswith(f"{label}.example has no address: it cannot be resolved. Check how")


@pytest.fixture
def _two_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name is at 127.0.0.2 and at 127.0.0.1."""
    resolve = socket.getaddrinfo

    def two(host: str, *args: Any, **kwargs: Any) -> Any:
        return resolve("127.0.0.2", *args, **kwargs) + resolve("127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", two)


@pytest.mark.usefixtures("_two_addresses")
def test_one_address_of_two_is_away(server: FakeMilvus, probe: Probe) -> None:
    """It is named, and the server is healthy by the other."""
    away = f"127.0.0.2:{server.port}"
    found = probe(server.uri, healthy=True)
    assert found["addresses"] == {away: "connection refused", server.address: "ok"}


@pytest.mark.slow
@pytest.mark.usefixtures("_two_addresses")
def test_one_address_of_two_says_nothing(server: FakeMilvus, probe: Probe) -> None:
    """It leaves time to ask the other."""
    with contextlib.ExitStack() as stack:
        # Linux drops connects to a listener whose queue is full.
        full = stack.enter_context(socket.create_server(("127.0.0.2", server.port), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        found = probe(server.uri, "--timeout", "8", healthy=True)
    away = f"127.0.0.2:{server.port}"
    assert found["addresses"] == {away: "no answer", server.address: "ok"}
    assert found["seconds"] < 8


def test_a_server_that_is_not_well(server: FakeMilvus, probe: Probe) -> None:
    """Connect is answered, GetVersion with an error."""
    server.on("GetVersion", refuse(grpc.StatusCode.UNIMPLEMENTED))
    found = probe(server.uri)
    assert "GetVersion fails: UNIMPLEMENTED: no, with token=***. Look at" in found["problem"]
    assert found["connect"]["count"] == 1


@pytest.mark.slow
def test_what_hangs_is_named_in_time(
    server: FakeMilvus, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A black hole, with TLS and without; Connect; GetVersion; a topology service; the resolver."""

    def problem_of(uri: str, limit: float = SHORT) -> str:
        began = time.monotonic()
        problem: str = probe(uri, "--timeout", str(limit))["problem"]
        assert time.monotonic() - began < 10 * limit
        return problem

    with BlackHole() as hole:
        assert f"does not answer Connect within {SHORT:g} s" in problem_of(hole.uri)
        problem = problem_of(hole.uri.replace("http", "https"))
        assert f"answers no TLS handshake within {SHORT:g} s" in problem
    hold = server.hold("Connect")
    assert f"does not answer Connect within {SHORT:g} s" in problem_of(server.uri)
    hold.release()
    server.heal()
    hold = server.hold("GetVersion")
    assert "GetVersion is not answered within 8 s" in problem_of(server.uri, 8)
    hold.release()
    with GlobalCluster(server) as cluster:
        cluster.hold()
        assert "global cluster: no complete answer in time" in problem_of(cluster.uri)
    never = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: never.wait(60))
    assert "milvus.example: DNS does not answer within" in problem_of("http://milvus.example")
    never.set()


# -- global clusters -----------------------------------------------------------------------------


def test_a_global_cluster(server: FakeMilvus, probe: Probe, capfd: Any) -> None:
    """Its topology; the primary is what is probed."""
    with FakeMilvus() as other, GlobalCluster(server, other) as cluster:
        cluster.move(other)
        found = probe(cluster.uri, healthy=True)
        assert found["topology"] == {
            "version": 2,
            "clusters": [
                {"id": "in01-0", "endpoint": server.uri, "primary": False},
                {"id": "in01-1", "endpoint": other.uri, "primary": True},
            ],
        }
        assert (found["address"], list(found["addresses"])) == (other.address, [other.address])
        assert server.calls == []
        assert main(["probe", cluster.uri]) == 0
        assert f"  primary     in01-1  {other.uri}\n" in capfd.readouterr().out
        cluster.behave(reply(status=401))
        problem = probe(cluster.uri)["problem"]
        assert problem.startswith(
            "the topology of the global cluster: the service refuses the token"
        )


# -- proxies -------------------------------------------------------------------------------------


class RefusingProxy:
    """An HTTP proxy that lets nobody through; `asked` counts those that want to."""

    def __init__(self) -> None:
        self.asked = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    if connection.recv(1000):
                        self.asked += 1
                        connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def refusing() -> Iterator[RefusingProxy]:
    with contextlib.closing(RefusingProxy()) as proxy:
        yield proxy


def test_a_proxy_that_refuses(
    refusing: RefusingProxy, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named with its variable, its password is not; so is one that is away."""
    monkeypatch.setenv("http_proxy", f"http://me:sesame@{refusing.address}")
    found = probe("http://milvus.example:19530")
    assert (found["proxy"], found["proxy_variable"]) == (
        f"http://***@{refusing.address}",
        "http_proxy",
    )
    assert found["problem"].startswith("the proxy of http_proxy does not let it through: UNAVAIL")
    assert "name milvus.example in no_proxy" in found["problem"]
    assert "sesame" not in str(found)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    problem = probe("http://milvus.example:19530")["problem"]
    assert problem.startswith("the proxy of http_proxy: 127.0.0.1:")
    monkeypatch.setenv("http_proxy", "http://")
    assert "names no proxy" in probe("http://milvus.example:19530")["problem"]


@pytest.mark.parametrize(
    "variables",
    [
        {"http_proxy": "http://PROXY"},
        {"https_proxy": "http://PROXY", "http_proxy": ""},
        {"grpc_proxy": "", "http_proxy": "http://PROXY"},
        {"HTTP_PROXY": "http://PROXY"},
        {"http_proxy": "https://PROXY"},
        {"http_proxy": "http://PROXY", "no_proxy": "*"},
        {"http_proxy": "http://PROXY", "no_proxy": "a.example, 127.0.0.1"},
        {"http_proxy": "http://PROXY", "no_proxy": "127.0.0.0/8"},
        {"http_proxy": "http://PROXY", "no_proxy": "0.0.1"},
        {"http_proxy": "http://PROXY", "no_proxy": "127.0.0.1", "no_grpc_proxy": "a"},
        {"http_proxy": "http://PROXY", "NO_PROXY": "127.0.0.1"},
    ],
)
def test_the_variables_mean_what_grpc_makes_of_them(
    refusing: RefusingProxy, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """A channel goes to the proxy exactly if the probe says so."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("PROXY", refusing.address))
    channel = grpc.insecure_channel(f"127.0.0.1:{free_port()}")
    with channel, pytest.raises(grpc.RpcError):
        MilvusServiceStub(channel).GetVersion(milvus_pb2.GetVersionRequest(), timeout=10)
    assert (command.find_proxy("127.0.0.1")[0] is not None) == bool(refusing.asked)


# -- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nonsense", "uri 'nonsense' is illegal: accepted are http://"),
        ("http://root:sesame@x:0", "uri 'http://***@x:0' is illegal: the port"),
        ("http://x --token-env NOPE", "--token-env: the environment variable NOPE is not set"),
        ("http://x --ca ca.pem", "--ca is of no use without TLS: write https://"),
        ("https://x --ca no/ca.pem", "ca_pem_path 'no/ca.pem' cannot be read"),
        ("x.db", "a .db file is opened by its program"),
        ("http://x --timeout 0", "'0' is not a number of seconds"),
        ("http://x --interval nan", "'nan' is not a number of seconds"),
        ("", "arguments are required: URI"),
    ],
)
def test_wrong_usage(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and what is accepted, before anything is looked at."""
    try:
        code: Any = main(["probe", *words.split()])
    except SystemExit as ended:
        code = ended.code
    out, complained = capsys.readouterr()
    assert (code, out) == (2, "")
    assert said in complained.splitlines()[-1]


def test_watching(
    server: FakeMilvus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line a probe, whatever comes of it, until Ctrl-C."""
    pauses: Iterator[Callable[[], object]] = iter([server.stop, server.start])

    def pause(seconds: float) -> None:
        assert seconds == 7
        then = next(pauses, None)
        if then is None:
            raise KeyboardInterrupt
        then()

    monkeypatch.setattr(time, "sleep", pause)
    assert main(["probe", server.uri, "--watch", "--interval", "7"]) == 130
    well, away, again = (line[10:] for line in capsys.readouterr().out.splitlines())
    assert well.startswith(f"healthy  v2.6-fake  {server.address}  connect ")
    assert away.startswith(f"NOT HEALTHY  {server.address}: connection refused.")
    assert again.startswith("healthy")


@pytest.mark.slow
def test_ctrl_c_ends_it_quietly(server: FakeMilvus) -> None:
    """In a process of its own, between two probes and in the middle of one."""
    words = [sys.executable, "-m", "milvus_lifecycle", "probe", server.uri, "--watch"]
    for hang in (False, True):
        asked = server.count("Connect")
        hold = server.hold("Connect") if hang else None
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            while hang and server.count("Connect") == asked:
                time.sleep(0.05)
            if not hang:
                assert b"healthy" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, complained = process.communicate(timeout=60)
        if hold is not None:
            hold.release()
        assert (process.returncode, complained) == (130, b"")


@pytest.mark.slow
def test_stderr_is_for_complaints(tls_files: TlsFiles) -> None:
    """gRPC's core and pymilvus have nothing to say there: the verdict has it all."""
    with FakeMilvus(tls=tls_files) as server:
        words = [sys.executable, "-m", "milvus_lifecycle", "probe", localhost(server)]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "NOT HEALTHY: the certificate is not trusted" in ended.stdout


@pytest.mark.slow
def test_without_a_stderr_it_says_the_same(server: FakeMilvus) -> None:
    """A service manager may have closed it."""
    command = f'exec "{sys.executable}" -m milvus_lifecycle probe {server.uri} 2>&-'
    ended = subprocess.run(command, shell=True, stdout=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 0
    assert "healthy, in" in ended.stdout


@pytest.mark.slow
def test_whoever_reads_no_further_ends_it(server: FakeMilvus) -> None:
    """`probe --watch | head`."""
    words = [sys.executable, "-m", "milvus_lifecycle", "probe", server.uri, "--watch"]
    command = [*words, "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"healthy" in process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""

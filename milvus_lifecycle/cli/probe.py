"""``milvus-lifecycle probe URI``: what lies between here and a server, step by step.

The way is a client's own: the URI is parsed, the topology fetched and the connection made by the
parts of the package that a `MilvusClient` on the engine uses. Beside it stands what those do not
tell: addresses, how long a TCP connect takes, the certificate, what the proxy variables mean.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import logging
import os
import queue
import re
import socket
import ssl
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from ..config import ConnectionConfig, load_tls, parse_endpoint
from ..drivers.pymilvus import load_pymilvus
from ..endpoints.topology_fetch import fetch_topology
from ..errors import (
    ConfigError,
    ConnectFailed,
    DeadlineExceeded,
    Failure,
    TopologyError,
    TopologyReason,
    brief,
    classify,
    error_code,
    redact,
)
from ..managers import ConnectionManager
from ..policy import LifecyclePolicy
from ..replay.findings import clean
from ..tls import client_context
from . import PROGRAM, Refused
from .audit import Paint

#: How often each address, and the server, is connected to.
ROUNDS = 3
#: Addresses of one name that are looked at.
_ADDRESSES_MOST = 16
#: As gRPC reads them: the first that is set, with a proxy that speaks HTTP.
_PROXIES, _EXCEPTIONS = ("grpc_proxy", "https_proxy", "http_proxy"), ("no_grpc_proxy", "no_proxy")
_NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME

Value = TypeVar("Value")
Where = tuple[socket.AddressFamily, Any]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's options."""
    parser.epilog = f"""examples:
  {PROGRAM} probe http://localhost:19530
  {PROGRAM} probe https://milvus.example.com --ca ca.pem --token-env MILVUS_TOKEN
  {PROGRAM} probe http://milvus:19530 --watch --json >> milvus.jsonl

Exit code: 0 healthy, 1 not (the last line says why, and what to do), 2 wrong usage, 130 Ctrl-C.
Nothing is written to the server, and no token is printed."""
    add = parser.add_argument
    add("uri", metavar="URI", help="as a MilvusClient is given it")
    token = "the environment variable that holds the token, or user:password"
    add("--token-env", metavar="NAME", help=token)
    add("--ca", metavar="FILE", help="PEM file of the authority that has signed the certificate")
    limit = "how long one probe may take (default: %(default)g)"
    add("--timeout", type=_seconds, default=10.0, metavar="SECONDS", help=limit)
    add("--json", action="store_true", help="one JSON object a probe, on a line of its own")
    add("--watch", action="store_true", help="probe again and again, a line each, until Ctrl-C")
    pause = "pause of --watch (default: %(default)g)"
    add("--interval", type=_seconds, default=2.0, metavar="SECONDS", help=pause)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 3600:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0, up to 3600")


def execute(options: argparse.Namespace) -> int:
    """Probe, once or until Ctrl-C; returns the exit code. Raises Refused."""
    config = _configuration(options)
    try:
        load_pymilvus()
    except ImportError as error:
        raise Refused(str(error)) from None
    paint = Paint.of(sys.stdout)
    while True:
        now = datetime.now(timezone.utc)
        finding = probe(config, options.timeout)
        if options.json:
            print(json.dumps({"ts": now.isoformat(timespec="milliseconds"), **asdict(finding)}))
        elif options.watch:
            print(f"{now.astimezone():%H:%M:%S}", in_a_line(finding, paint), sep="  ")
        else:
            print(*in_lines(finding, paint), sep="\n")
        if not options.watch:
            return 0 if finding.healthy else 1
        sys.stdout.flush()
        time.sleep(options.interval)


def _configuration(options: argparse.Namespace) -> ConnectionConfig:
    token, name = None, options.token_env
    if name is not None:
        token = os.environ.get(name)
        if not token:
            raise Refused(f"--token-env: the environment variable {name} is not set, or empty")
    try:
        given = {} if options.ca is None else {"ca_pem_path": options.ca}
        config = ConnectionConfig.from_uri(options.uri, token=token, **given)
        load_tls(config)
    except ConfigError as error:
        raise Refused(error.detail) from None
    if config.is_local:
        raise Refused(f"{options.uri}: a .db file is opened by its program: there is no server yet")
    if options.ca is not None and not config.secure:
        raise Refused("--ca is of no use without TLS: write https:// in the URI")
    return config


# -- what is found -------------------------------------------------------------------------------


@dataclass
class Timing:
    """Milliseconds of some attempts."""

    min: float
    median: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing | None:
        """None without any."""
        if not seconds:
            return None
        shortest, median = min(seconds), statistics.median(seconds)
        return cls(round(shortest * 1000, 2), round(median * 1000, 2), len(seconds))

    def __str__(self) -> str:
        return f"{self.min:g} ms, median {self.median:g} ms of {self.count}"


@dataclass
class Certificate:
    """What a server shows for itself. ``untrusted``: why this machine does not take it, if so."""

    subject: str
    issuer: str
    names: list[str]
    expires: str
    days_left: int
    untrusted: str | None = None


@dataclass
class Finding:
    """One probe, as far as it came. ``problem``: what is wrong, and what to do; None if healthy."""

    uri: str
    #: what is dialled: of a global cluster its primary
    address: str
    healthy: bool = False
    problem: str | None = None
    #: the proxy that gRPC connects through, and the variable that says so
    proxy: str | None = None
    proxy_variable: str | None = None
    #: each address of the name, and what became of connecting to it ("ok", or why not)
    addresses: dict[str, str] = field(default_factory=dict)
    tcp_connect: Timing | None = None
    certificate: Certificate | None = None
    topology: dict[str, Any] | None = None
    #: channel, handshakes and Connect call, as a client has it at its start
    connect: Timing | None = None
    server_version: str | None = None
    get_version: Timing | None = None
    seconds: float = 0.0


def in_lines(finding: Finding, paint: Paint) -> Iterator[str]:
    """For a terminal."""
    yield finding.uri
    rows: list[tuple[str, object]] = []
    if finding.topology is not None:
        rows += [("topology", f"version {finding.topology['version']}")]
        for each in finding.topology["clusters"]:
            role = "primary" if each["primary"] else "secondary"
            rows += [(role, f"{each['id']}  {each['endpoint']}")]
    if finding.proxy is not None:
        rows += [("proxy", f"{finding.proxy} (by {finding.proxy_variable})")]
    rows += [("address", f"{name}  {told}") for name, told in finding.addresses.items()]
    rows += [("TCP connect", finding.tcp_connect)]
    shown = finding.certificate
    if shown is not None:
        rows += [("certificate", f"{shown.subject}, issued by {shown.issuer}")]
        rows += [("", f"for {', '.join(shown.names) or 'no name'}")]
        rows += [("", f"until {shown.expires[:10]}, for {shown.days_left:,} days")]
        rows += [("", shown.untrusted and f"not trusted here: {shown.untrusted}")]
    rows += [("connect", finding.connect), ("GetVersion", finding.get_version)]
    rows += [("server", finding.server_version)]
    # What a server says may hold control characters, which a terminal would obey.
    yield from (f"  {name:<12}{clean(str(told), 500)}" for name, told in rows if told is not None)
    if finding.healthy:
        yield f"{paint('healthy', 'green')}, in {finding.seconds:.1f} s"
    else:
        yield f"{paint('NOT HEALTHY', 'alarm')}: {clean(str(finding.problem), 1000)}"


def in_a_line(finding: Finding, paint: Paint) -> str:
    """For --watch."""
    if not finding.healthy:
        return f"{paint('NOT HEALTHY', 'alarm')}  {clean(str(finding.problem), 1000)}"
    assert finding.connect is not None
    assert finding.get_version is not None
    took = f"connect {finding.connect.min:g} ms, GetVersion {finding.get_version.min:g} ms"
    what = f"{clean(str(finding.server_version))}  {finding.address}  {took}"
    return f"{paint('healthy', 'green')}  {what}"


# -- the steps -----------------------------------------------------------------------------------


class _Wrong(Exception):
    """What is wrong, and what to do. The probe ends."""


def probe(config: ConnectionConfig, timeout: float) -> Finding:
    """Look at a server, for `timeout` seconds at most. Raises Refused: it could not even begin."""
    began = time.monotonic()
    steps = _Steps(config, began + timeout, timeout)
    try:
        steps.run()
    except _Wrong as wrong:
        steps.finding.problem = str(wrong)
    finding = steps.finding
    finding.healthy = finding.problem is None
    finding.seconds = round(time.monotonic() - began, 3)
    return finding


class _Steps:
    """From the URI to the server's answer; `finding` is what is known so far."""

    def __init__(self, config: ConnectionConfig, until: float, timeout: float) -> None:
        self.config, self.until, self.timeout = config, until, timeout
        self.finding = Finding(config.uri, config.address)
        self.secure = config.secure
        #: where a connect succeeded; of a server behind a proxy there is none
        self.where: Where | None = None

    @property
    def left(self) -> float:
        return max(0.001, self.until - time.monotonic())

    def run(self) -> None:
        if self.config.is_global:
            self._fetch_topology()
        address = self.finding.address
        if not address.startswith("unix:"):
            proxy = self._find_proxy(address)
            where = self._connect_to(*(proxy or _split(address)))
            if proxy is None:
                self.where = where
                if self.secure:
                    self._look_at_certificate(where)
        self._ask_server()

    def _find_proxy(self, address: str) -> tuple[str, int] | None:
        name, proxy = find_proxy(_split(address)[0])
        if name is None:
            return None
        self.finding.proxy_variable, self.finding.proxy = name, redact(proxy)
        with contextlib.suppress(ValueError):
            place = urlsplit(proxy)
            if place.hostname:
                return place.hostname, place.port or 443
        raise _Wrong(f"{name} names no proxy: {redact(proxy)!r}. Write http://host:port.")

    def _fetch_topology(self) -> None:
        config = self.config
        try:
            topology = fetch_topology(
                config.uri, config.token, tls=load_tls(config), timeout=self.left
            )
        except TopologyError as error:
            if error.reason is TopologyReason.BAD_REQUEST:
                raise Refused(error.detail) from None
            raise _Wrong(f"the topology of the global cluster: {error}") from None
        primary = topology.primary
        self.finding.address, self.secure = parse_endpoint(primary.endpoint, secure=config.secure)
        self.finding.topology = {
            "version": topology.version,
            "clusters": [
                {"id": each.cluster_id, "endpoint": each.endpoint, "primary": each.is_primary}
                for each in topology.clusters
            ],
        }

    def _connect_to(self, host: str, port: int) -> Where:
        """To each address of a name, at the same time; returns the first that takes connections."""
        found = self._resolve(host, port)
        outcomes = [_begin(partial(self._connect_times, each)) for each in found]
        until = time.monotonic() + self.left / 2  # one that is away leaves time to ask the others
        times: list[float] = []
        reached: list[Where] = []
        told = self.finding.addresses
        for where, outcome in zip(found, outcomes, strict=True):
            ip = where[1][0]
            name = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
            try:
                times += outcome(max(0.001, until - time.monotonic()))
                reached.append(where)
                told[name] = "ok"
            except OSError as error:
                told[name] = why_not(error)
        self.finding.tcp_connect = Timing.of(times)
        if not reached:
            reasons = "; ".join(f"{name}: {why}" for name, why in told.items())
            if self.finding.proxy is not None:
                whose = f"the proxy of {self.finding.proxy_variable}"
                _fail(f"{whose}: {reasons}", "Ask who runs it, or unset the variable.")
            _fail(reasons, _advise_on(set(told.values())))
        return reached[0]

    def _resolve(self, host: str, port: int) -> list[Where]:
        resolve = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            found: Any = _begin(resolve)(self.left)
        except TimeoutError:
            _fail(f"{host}: DNS does not answer within {self.timeout:g} s", "Check the resolver.")
        except (OSError, UnicodeError) as error:  # a label that is longer than DNS has them
            why = getattr(error, "strerror", None) or "it cannot be resolved"
            advice = "Check how it is spelt, and DNS (in Kubernetes: the namespace of the service)."
            _fail(f"{host} has no address: {why}", advice)
        return [(family, place) for family, _, _, _, place in found][:_ADDRESSES_MOST]

    def _connect_times(self, where: Where) -> list[float]:
        times: list[float] = []
        for _ in range(ROUNDS):
            with _timed(times):
                _connect(where, self.left).close()
        return times

    def _look_at_certificate(self, where: Where) -> None:
        """Raises _Wrong if there is none. Whether it will do, gRPC has to say."""
        config = self.config
        name = config.get_handler_kwargs().get("server_name") or _split(self.finding.address)[0]
        tls = load_tls(config)
        show = partial(_show_certificate, where, name, tls.root if tls else None, self.left)
        try:
            self.finding.certificate = _begin(show)(self.left)
        except TimeoutError:
            told = (
                f"it takes the connection, and answers no TLS handshake within {self.timeout:g} s"
            )
            _fail(told, "It hangs, or does not speak TLS: look at the server, and try http://.")
        except OSError as error:
            why = getattr(error, "reason", None) or why_not(error)
            _fail(f"no TLS handshake: {why}", "A server without TLS is reached by http://.")

    def _ask_server(self) -> None:
        """As a client does, a few times: connect, and GetVersion."""
        longer = self.left + 5.0  # so that it is always the call's own time that is over
        policy = LifecyclePolicy(connect_timeout=longer, recovery_budget=longer)
        manager, lease, finding = ConnectionManager(policy), _Lease(), self.finding
        connects: list[float] = []
        answers: list[float] = []
        with _silence():
            try:
                for _ in range(ROUNDS):
                    with _timed(connects):
                        handler = manager.get_or_create(self.config, True, lease, self.left)
                    finding.connect = Timing.of(connects)
                    with _timed(answers):
                        finding.server_version = handler.get_server_version(timeout=self.left)
                    finding.get_version = Timing.of(answers)
                    manager.release(handler, lease)
            except Exception as error:
                raise _Wrong(self._explain(error)) from None
            finally:
                manager.close_all()

    def _explain(self, error: Exception) -> str:
        """What the error of a client means here."""
        finding, last = self.finding, getattr(error, "last_error", None) or error
        told, host = brief(last), finding.address.rpartition(":")[0]
        shown = finding.certificate
        if finding.proxy is not None and "proxy" in told:
            return (
                f"the proxy of {finding.proxy_variable} does not let it through: {told}. Ask who "
                f"runs it, or name {host} in no_proxy if it is not for it."
            )
        if shown is not None and shown.untrusted is not None and finding.connect is None:
            return f"the certificate is not trusted: {shown.untrusted}. {_advise_on_trust(shown)}"
        if Failure.PERMANENT in (classify(error), classify(last)):
            return f"the server refuses: {told}. Check the token (--token-env) and its permissions."
        late = error_code(last) in ("DEADLINE_EXCEEDED", DeadlineExceeded.__name__)
        if finding.connect is not None:
            how = f"is not answered within {self.timeout:g} s" if late else f"fails: {told}"
            return f"it is connected, but GetVersion {how}. Look at the server's log."
        if not self.secure and self.where is not None and self._speaks_tls(self.where):
            return "the server speaks TLS: write https:// (and --ca for an authority of your own)."
        if late:
            return (
                f"it takes the connection, and does not answer Connect within {self.timeout:g} s: "
                "it hangs, or is no Milvus. Look at its log, and whether that is its port."
            )
        also = " Or it asks for a client's certificate: a probe has none." if self.secure else ""
        return f"could not connect: {told}. {ConnectFailed.advice}{also}"

    def _speaks_tls(self, where: Where) -> bool:
        with contextlib.suppress(OSError):
            limit = max(0.5, min(self.left, 2.0))
            _begin(partial(_shake_hands, where, _unverified(), "localhost", limit))(limit)
            return True
        return False


class _Lease:
    """Holds a connection."""


@contextlib.contextmanager
def _timed(times: list[float]) -> Iterator[None]:
    """Adds the seconds that the body takes, if it ends well."""
    began = time.monotonic()
    yield
    times.append(time.monotonic() - began)


def _fail(what: str, advice: str) -> NoReturn:
    raise _Wrong(f"{what}. {advice}") from None


def _begin(work: Callable[[], Value]) -> Callable[[float], Value]:
    """Begin work on a thread of its own; returns what waits for it, so many seconds at most.

    The resolver takes no timeout, so that it may outlive the probe. Raises TimeoutError.
    """
    outcomes: queue.SimpleQueue[tuple[Value | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcomes.put((work(), None))
        except Exception as error:
            outcomes.put((None, error))

    def wait(seconds: float) -> Value:
        try:
            value, error = outcomes.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    threading.Thread(target=run, name="milvus-lifecycle-probe", daemon=True).start()
    return wait


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _connect(where: Where, timeout: float) -> socket.socket:
    family, place = where
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(place)
    except BaseException:
        connection.close()
        raise
    return connection


def why_not(error: OSError) -> str:
    """Of a connect that failed, in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer"
    return (error.strerror or type(error).__name__).lower()


def _advise_on_trust(shown: Certificate) -> str:
    if shown.days_left < 0:
        return f"It expired on {shown.expires[:10]}: renew it on the server."
    if re.search("hostname|IP address", shown.untrusted or "", re.IGNORECASE):
        return f"Use a name that it is for: {', '.join(shown.names)}."
    return "Name the authority that has signed it: --ca FILE (ca_pem_path of a client)."


def _advise_on(reasons: set[str]) -> str:
    if "connection refused" in reasons:
        return "Nothing listens there: is Milvus running, and is that its port?"
    if "no answer" in reasons:
        return "It is away, or a firewall drops what is sent: check security groups and policies."
    return "Check this machine's network and routes."


# -- certificates --------------------------------------------------------------------------------


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _shake_hands(
    where: Where, context: ssl.SSLContext, name: str, timeout: float
) -> tuple[bytes, dict[str, Any]]:
    """The certificate that the server shows, as it came and, if it was verified, read."""
    with (
        contextlib.closing(_connect(where, timeout)) as connection,
        context.wrap_socket(connection, server_hostname=name) as secured,
    ):
        return secured.getpeercert(True) or b"", dict(secured.getpeercert() or {})


def _show_certificate(where: Where, name: str, roots: bytes | None, timeout: float) -> Certificate:
    try:
        return _read_certificate(_shake_hands(where, client_context(roots), name, timeout)[1], None)
    except ssl.SSLCertVerificationError as error:
        untrusted = error.verify_message.rstrip(".")
    # Python reads only what it has verified: so the certificate is its own authority here.
    content, _ = _shake_hands(where, _unverified(), name, timeout)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(_NO_CHECK_TIME)
    context.load_verify_locations(cadata=content)
    return _read_certificate(_shake_hands(where, context, name, timeout)[1], untrusted)


def _read_certificate(shown: dict[str, Any], untrusted: str | None) -> Certificate:
    expires = datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), timezone.utc)
    return Certificate(
        _name_of(shown["subject"]),
        _name_of(shown["issuer"]),
        [value for _, value in shown.get("subjectAltName", ())],
        expires.isoformat(),
        (expires - datetime.now(timezone.utc)).days,
        untrusted,
    )


def _name_of(parts: Any) -> str:
    return ", ".join(f"{name}={value}" for part in parts for name, value in part)


# -- proxies -------------------------------------------------------------------------------------


def find_proxy(host: str) -> tuple[str | None, str]:
    """The variable and the proxy that gRPC takes for a host; (None, "") if it takes none.

    Read as gRPC's core does (http_proxy_mapper.cc): names in lower case only, the first that is
    set, `http://` only; an exception is an end of the host's name, or a network that it is in.
    """
    name = next((name for name in _PROXIES if name in os.environ), None)
    proxy = os.environ[name] if name is not None else ""
    excepted = next((os.environ[each] for each in _EXCEPTIONS if each in os.environ), "")
    taken = proxy.startswith("http://") and not any(
        _is_excepted(host, entry.strip()) for entry in excepted.split(",") if entry.strip()
    )
    return (name, proxy) if taken else (None, "")


def _is_excepted(host: str, entry: str) -> bool:
    if host.lower().endswith(entry.lower()):
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    return False


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """pymilvus logs each error with its traceback, and gRPC's core writes to stderr, below Python,
    as its variable said when it was imported. Both are said in a sentence here."""
    with contextlib.ExitStack() as undo:
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
            stderr = os.dup(2)  # closed by whoever started this, perhaps
            undo.callback(os.close, stderr)
            undo.callback(os.dup2, stderr, 2)
            os.dup2(nowhere.fileno(), 2)
        undo.callback(logging.disable, logging.root.manager.disable)
        logging.disable()
        yield

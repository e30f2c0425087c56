"""What clients see of connections, row by row, on whichever manager is installed.

`python -m tests.integration.test_compatibility` prints the table of docs/compatibility.md as it
is measured now; as a test that file fails when the page says something else.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import grpc

from tests.flavours import FLAVOURS, Flavour, each_flavour
from tests.network import free_port, open_sockets_to
from tests.observe import Call, came_true
from tests.processes import REPOSITORY
from tests.servers import FakeMilvus, RpcFailure, ServedCall, make_tls_files
from tests.stock import Env, Kind, Side, run, verdict

PAGE = Path(REPOSITORY, "docs", "compatibility.md")
Row = Callable[[Env, Flavour], object]
ROWS: dict[str, Row] = {}
#: channels of their own, so that sockets can be counted
OWN = {"grpc.use_local_subchannel_pool": 1}


def row(title: str) -> Callable[[Row], Row]:
    """Make a function a row of the table: what it returns is what is seen."""

    def add(function: Row) -> Row:
        ROWS[title] = function
        return function

    return add


def seen(call: Callable[[], Any]) -> str:
    """What a call comes to, in words that no port and no time is in."""
    try:
        return str(call())
    except Exception as error:
        code: Any = getattr(error, "code", None)
        code = code() if callable(code) else code
        return f"{type(error).__name__.lstrip('_')}, code {getattr(code, 'name', code)}"


def channels(server: FakeMilvus) -> int:
    return open_sockets_to(server.port)


# -- making and closing ----------------------------------------------------------------------


@row("a client, while nobody listens (timeout 3)")
def nobody_listens(env: Env, flavour: Flavour) -> object:
    call = Call(seen, lambda: flavour.client(f"http://127.0.0.1:{free_port()}", timeout=3))
    return f"{call.value(30)}, {'at once' if (call.elapsed or 0) < 1.5 else 'after its timeout'}"


@row("a client with a wrong password")
def wrong_password(env: Env, flavour: Flavour) -> object:
    def deny(call: ServedCall) -> None:
        raise RpcFailure(grpc.StatusCode.UNAUTHENTICATED)

    server = env.server()
    server.on("Connect", deny)
    return seen(lambda: flavour.client(server.uri, token="root:wrong", timeout=3))


@row("a client that does not trust the server's certificate (timeout 3)")
def wrong_authority(env: Env, flavour: Flavour) -> object:
    server = env.server(tls=make_tls_files(env.folder()))
    other, uri = make_tls_files(env.folder()), f"https://localhost:{server.port}"
    try:
        flavour.client(uri, server_pem_path=other.ca, timeout=3)
    except Exception as error:
        named = "CERTIFICATE_VERIFY_FAILED" in str(error)
        return f"{type(error).__name__}, cause {'named' if named else 'not named'}"
    return "connected"


@row("a client with `ca_pem_path` alone (timeout 3)")
def authority_alone(env: Env, flavour: Flavour) -> object:
    files = make_tls_files(env.folder())
    uri = f"https://localhost:{env.server(tls=files).port}"
    return seen(lambda: flavour.connected(uri, ca_pem_path=files.ca, timeout=3).list_collections())


@row("a client with `client_pem_path` and no key (timeout 3)")
def half_a_pair(env: Env, flavour: Flavour) -> object:
    files = make_tls_files(env.folder())
    uri = f"https://localhost:{env.server(tls=files).port}"
    options = {"ca_pem_path": files.ca, "client_pem_path": files.certificate, "timeout": 3}
    return seen(lambda: flavour.client(uri, **options))


@row("a TLS file that does not exist")
def missing_file(env: Env, flavour: Flavour) -> object:
    uri = f"https://127.0.0.1:{free_port()}"
    return seen(lambda: flavour.client(uri, server_pem_path="/no/such.pem", timeout=3))


@row("a URI of an unknown scheme")
def unknown_scheme(env: Env, flavour: Flavour) -> object:
    return seen(lambda: flavour.client("ftp://127.0.0.1"))


@row("clients with equal arguments; other database; other `grpc_options`")
def sharing(env: Env, flavour: Flavour) -> object:
    uri = env.server().uri
    first, *others = (flavour.client(uri, **more)._handler for more in (
        {}, {}, {"db_name": "other"}, {"grpc_options": OWN}
    ))  # fmt: skip
    return ", ".join("shared" if other is first else "its own" for other in others)


@row("the `db_name` of two clients that share, and `use_database`")
def databases(env: Env, flavour: Flavour) -> object:
    server = env.server()
    one, two = (flavour.client(server.uri, db_name=name) for name in ("one", "two"))
    for client in (one, two):
        client.list_collections()
    one.use_database("three")
    one.list_collections()
    return ", ".join(call.metadata.get("dbname", "-") for call in server.seen("ShowCollections"))


@row("two clients with `dedicated=True`")
def dedicated(env: Env, flavour: Flavour) -> object:
    uri = env.server().uri
    one, two = (flavour.client(uri, dedicated=True)._handler for _ in range(2))
    return "shared" if one is two else "a connection each"


@row("the connection when the last client that shares it has closed (`linger` 0.3)")
def last_client(env: Env, flavour: Flavour) -> object:
    server = env.server()
    client = flavour.connected(server.uri, grpc_options=OWN)
    client.close()
    return "closed" if came_true(lambda: channels(server) == 0, 3) else "open for good"


@row("a call after `close()`")
def after_close(env: Env, flavour: Flavour) -> object:
    client = flavour.connected(env.server().uri)
    client.close()
    answer = seen(client.list_collections)
    # Of which class it is depends on pymilvus's version.
    return answer if "demo" in answer else "an error"


@row("clients as context managers")
def context_manager(env: Env, flavour: Flavour) -> object:
    from pymilvus import AsyncMilvusClient, MilvusClient

    wanted = {"threads": (MilvusClient, "__enter__"), "asyncio": (AsyncMilvusClient, "__aenter__")}
    return "yes" if hasattr(*wanted[flavour.name]) else "no"


# -- calls -----------------------------------------------------------------------------------


@row("`get_server_version()`")
def server_version(env: Env, flavour: Flavour) -> object:
    return seen(flavour.client(env.server().uri).get_server_version)


@row("a call with `timeout=0.3` to a server that does not answer")
def silent_server(env: Env, flavour: Flavour) -> object:
    server = env.server()
    client = flavour.connected(server.uri)
    hold = server.hold("ShowCollections")
    try:
        return seen(lambda: client.list_collections(timeout=0.3))
    finally:
        hold.release()


@row("a call with `timeout=0.3` while the server is away")
def server_away(env: Env, flavour: Flavour) -> object:
    server = env.server()
    client = flavour.connected(server.uri)
    server.stop()
    return seen(lambda: client.list_collections(timeout=0.3))


@row("a call that the server answers with an error of its own")
def own_error(env: Env, flavour: Flavour) -> object:
    def deny(call: ServedCall) -> None:
        raise RpcFailure(grpc.StatusCode.PERMISSION_DENIED)

    server = env.server()
    client = flavour.connected(server.uri)
    server.on("ShowCollections", deny)
    return seen(client.list_collections)


@row("`close_all()` under a client, and its next call")
def close_all(env: Env, flavour: Flavour) -> object:
    client = flavour.connected(env.server().uri)
    flavour.manager().close_all()
    return seen(lambda: client.list_collections(timeout=3))


# -- the manager, and tests of one's own -----------------------------------------------------


@row("public methods of the manager")
def public_methods(env: Env, flavour: Flavour) -> object:
    kind = type(getattr(flavour.manager(), "inner", flavour.manager()))
    return ", ".join(sorted(name for name in dir(kind) if not name.startswith("_")))


@row("`release` of a handler that is not the manager's")
def unknown_handler(env: Env, flavour: Flavour) -> object:
    return seen(lambda: flavour.manager().release(object()))


@row("the handler's class")
def handler_class(env: Env, flavour: Flavour) -> object:
    return type(flavour.client(env.server().uri)._handler).__name__


_HANDLERS = {
    "threads": ("pymilvus.client.grpc_handler.GrpcHandler", "_wait_for_channel_ready"),
    "asyncio": ("pymilvus.client.async_grpc_handler.AsyncGrpcHandler", "ensure_channel_ready"),
}


def _calls_to(flavour: Flavour, server: FakeMilvus) -> str:
    made = seen(lambda: flavour.client(server.uri) and "a client")
    return f"{made}, {len(server.calls) or 'no'} RPC"


@row("the handler's class is patched: a client of it")
def patched_class(env: Env, flavour: Flavour) -> object:
    with mock.patch(_HANDLERS[flavour.name][0], autospec=True):
        return _calls_to(flavour, env.server())


@row("what waits for the handler's channel is patched: a client")
def patched_wait(env: Env, flavour: Flavour) -> object:
    with mock.patch(".".join(_HANDLERS[flavour.name])):
        return _calls_to(flavour, env.server())


@row("the manager's `get_or_create` is patched: a client")
def patched_manager(env: Env, flavour: Flavour) -> object:
    name = "AsyncConnectionManager" if flavour.name == "asyncio" else "ConnectionManager"
    with mock.patch(f"pymilvus.client.connection_manager.{name}.get_or_create"):
        return _calls_to(flavour, env.server())


class _Names(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.add(record.name.partition(".")[0])


@row("loggers that tell of a server that went away, at INFO")
def loggers(env: Env, flavour: Flavour) -> object:
    server, names = env.server(), _Names()
    client = flavour.connected(server.uri)
    for name in ("pymilvus", "milvus_lifecycle"):
        logging.getLogger(name).addHandler(names)
        logging.getLogger(name).setLevel(logging.INFO)
    server.stop()
    seen(lambda: client.list_collections(timeout=0.3))
    # The engine's are told by a thread of their own.
    came_true(lambda: env.side == "stock" or len(names.seen) == 2, 10)
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    return ", ".join(sorted(names.seen))


@each_flavour(limit=110, linger=0.3)
def all_rows(env: Env, flavour: Flavour) -> None:
    """Every row, by its title."""
    found = {title: str(function(env, flavour)) for title, function in ROWS.items()}
    verdict(True, json.dumps(found))


def measure(side: Side) -> dict[str, str]:
    """What each row comes to; where the flavours differ, of both."""
    bodies = [globals()[f"all_rows_in_{name}"] for name in FLAVOURS]
    outcomes = [call.value(180) for call in [Call(run, side, body) for body in bodies]]
    assert all(outcome.kind is Kind.PASSED for outcome in outcomes), "".join(map(str, outcomes))
    found = [json.loads(outcome.detail) for outcome in outcomes]
    threads, loops = found
    return {
        title: threads[title]
        if threads[title] == loops[title]
        else f"threads: {threads[title]}; asyncio: {loops[title]}"
        for title in ROWS
    }


def documented() -> dict[str, tuple[str, str]]:
    """title -> (pymilvus, engine), as the page has them."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    return {title: (stock, engine) for title, stock, engine in rows if title in ROWS}

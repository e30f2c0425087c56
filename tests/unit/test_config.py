"""ConnectionConfig: its arguments, what shares a connection, and what is never shown."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymilvus.client.connection_manager import ConnectionConfig as PymilvusConfig

from milvus_lifecycle.config import ConnectionConfig
from milvus_lifecycle.errors import ConfigError, Failure, classify

parse = ConnectionConfig.from_uri
SECRET = "s3cr3t"
secret_texts = st.text(min_size=1, max_size=20).map(lambda text: f"{SECRET}{text}{SECRET}")


def test_explicit_arguments_beat_the_uri() -> None:
    """token= and db_name= win; empty strings and None leave the URI's."""
    uri = "http://root:Milvus@h/db1"
    config = parse(uri, token="key", db_name="db2")
    assert (config.token, config.db_name) == ("key", "db2")
    for empty in ("", None):
        config = parse(uri, token=empty, db_name=empty)
        assert (config.token, config.db_name) == ("root:Milvus", "db1")
    assert parse("https://h", secure=False).secure is False
    assert parse("http://h", secure=True).secure is True
    assert parse("https://h").get_handler_kwargs() == {"secure": True}


def test_only_db_name_can_be_assigned() -> None:
    """use_database may assign db_name; what the key was made of stays."""
    config = parse("http://h")
    key = config.key
    config.db_name = "other"
    assert (config.db_name, config.key) == ("other", key)
    for name in ("uri", "address", "token", "key", "secure"):
        with pytest.raises(AttributeError, match="read-only"):
            setattr(config, name, "x")
    with pytest.raises(AttributeError):
        setattr(config, "unknown" + "_attribute", 1)


def test_copies_are_equal() -> None:
    """Copies and pickles of a config mean the same connection."""
    config = parse("https://root:Milvus@h/db", grpc_options={"a": 1}, user="me")
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin.key == config.key
        assert (twin.uri, twin.token, twin.db_name) == (config.uri, config.token, config.db_name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("uri", None),
        ("uri", b"http://h"),
        ("uri", 7),
        ("token", 7),
        ("token", SECRET.encode()),
        ("token", SECRET + "\n"),
        ("token", SECRET + "\ud800"),
        ("db_name", 7),
        ("db_name", "a\x00b"),
        ("user", ["x"]),
        ("password", SECRET.encode()),
        ("password", SECRET + "\r"),
        ("server_name", 1),
        ("secure", "yes"),
        ("secure", None),
        ("secure", 1),
        ("grpc_options", [("a", 1)]),
        ("grpc_options", {1: 2}),
        ("server_pem_path", 7),
        ("client_pem_path", b"x"),
        ("client_key_path", True),
        ("ca_pem_path", ["x"]),
        ("address", "h:1"),
        ("channel", object()),
    ],
)
def test_bad_arguments_name_the_field(field: str, value: object) -> None:
    """A bad argument is a ConfigError that names the field and never shows a secret."""
    arguments: dict[str, Any] = {"uri": "http://h", field: value}
    with pytest.raises(ConfigError) as caught:
        parse(**arguments)
    assert caught.value.field == field
    assert str(caught.value).startswith(field)
    assert SECRET not in str(caught.value)
    assert classify(caught.value) is Failure.PERMANENT


@given(secret_texts, secret_texts)
def test_no_argument_is_ever_shown(token: str, password: str) -> None:
    """A token or password given as an argument reaches no repr, key or error."""
    arguments: dict[str, Any] = {
        "token": token,
        "password": password,
        "user": "me",
        "option": {"x": token},
    }
    try:
        shown = parse("http://h", **arguments)
    except ConfigError as error:
        text = f"{error!r}{error}"
    else:
        text = f"{shown!r}{shown}{shown.key}"
    assert SECRET not in text


@pytest.mark.parametrize(
    "other",
    [
        parse("http://h:19530"),
        parse("http://H"),
        parse("tcp://h"),
        parse("http://h/db"),
        parse("http://h", db_name="db"),
        parse("http://h", token=""),
        parse("http://h", secure=False),
        parse("https://h:19530", secure=False),
        parse("http://h", user="", password="", server_name=None, grpc_options={}),
        parse("http://h", server_pem_path="", ca_pem_path=None),
    ],
)
def test_what_travels_alike_shares(other: ConnectionConfig) -> None:
    """Different spellings of the same connection have the same key."""
    assert parse("http://h").key == other.key


VARIANTS: list[dict[str, Any]] = [
    {},
    {"token": "a:b"},
    {"token": "a:c"},
    {"user": "a"},
    {"user": "a", "password": "b"},
    {"secure": True},
    {"server_name": "n"},
    {"server_pem_path": "/a.pem"},
    {"server_pem_path": "/b.pem"},
    {"client_pem_path": "/a.pem"},
    {"client_key_path": "/a.pem"},
    {"ca_pem_path": "/a.pem"},
    {"grpc_options": {"x": 1}},
    {"grpc_options": {"x": "1"}},
    {"grpc_options": {"x": True}},
    {"grpc_options": {"x": None}},
    {"grpc_options": {"x": b"1"}},
    {"grpc_options": {"x": 1, "y": 2}},
    {"option": {"x": 1}},
    {"option": object()},
    {"option": object()},
    {"anything": 0.5},
]


def test_what_travels_differently_does_not_share() -> None:
    """Credentials, TLS, options and identity keep clients apart (D14)."""
    keys = [parse("http://h", **variant).key for variant in VARIANTS]
    keys += [parse("http://h:1").key, parse("http://g").key]
    assert len(set(keys)) == len(keys)
    assert parse("http://global-cluster:1").key != parse("tcp://global-cluster:1").key


options = st.dictionaries(
    st.sampled_from(["secure", "user", "password", "option", "grpc_options", "x", "y"]),
    st.none(),
    max_size=7,
).flatmap(
    lambda names: st.fixed_dictionaries(
        {
            name: {
                "secure": st.booleans(),
                "user": st.sampled_from(["a", "b"]),
                "password": st.sampled_from(["a", "b"]),
                "grpc_options": st.dictionaries(st.sampled_from("abc"), st.integers(), max_size=3),
            }.get(
                name,
                st.recursive(
                    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
                    max_leaves=5,
                ),
            )
            for name in names
        }
    )
)


@given(options, st.randoms())
def test_key_ignores_the_order_of_arguments(kwargs: dict[str, Any], source: Any) -> None:
    """Equal inputs have equal keys, in whatever order they come."""
    names = list(kwargs)
    source.shuffle(names)
    shuffled = {name: copy.deepcopy(kwargs[name]) for name in names}
    if "grpc_options" in shuffled:
        shuffled["grpc_options"] = dict(reversed(shuffled["grpc_options"].items()))
    assert parse("http://h", **kwargs).key == parse("http://h", **shuffled).key


def test_key_survives_odd_values() -> None:
    """Values that nobody expects, cycles and huge numbers among them, still make a key."""
    cycle: list[Any] = []
    cycle.append(cycle)
    keys = {parse("http://h", option=value).key for value in (cycle, 10**5000, -(10**5000), {1, 2})}
    assert len(keys) == 4
    assert parse("http://h", option=cycle).key in keys


def test_later_changes_by_the_caller_change_nothing() -> None:
    """A config keeps its own copy of the gRPC options."""
    given_options = {"a": 1}
    config = parse("http://h", grpc_options=given_options)
    given_options["a"] = 2
    assert config.get_handler_kwargs() == {"grpc_options": {"a": 1}}


def test_key_cannot_be_guessed() -> None:
    """The key differs from process to process, so that nobody tries out tokens against it."""
    code = (
        "from milvus_lifecycle.config import ConnectionConfig as C; "
        "print(C.from_uri('http://h', token='root:Milvus').key)"
    )
    run = [sys.executable, "-c", code]
    theirs = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True).stdout
    mine = parse("http://h", token="root:Milvus").key
    assert theirs.strip().partition("|")[0] == mine.partition("|")[0] == "h:19530"
    assert theirs.strip() != mine


def test_coerce() -> None:
    """pymilvus's own config becomes ours, parsed by our rules; ours stays itself."""
    ours = parse("http://h")
    assert ConnectionConfig.coerce(ours) is ours
    theirs = PymilvusConfig.from_uri(
        "https://root:p%40ss@[::1]/db", user="me", grpc_options={"a": 1}
    )
    config = ConnectionConfig.coerce(theirs)
    assert config.address == "[::1]:443"
    assert config.db_name == "db"
    assert config.get_handler_kwargs() == {"user": "me", "grpc_options": {"a": 1}, "secure": True}
    bare = SimpleNamespace(uri="", address="h:1", token="", db_name="", handler_kwargs=())
    assert ConnectionConfig.coerce(bare).address == "h:1"


@pytest.mark.parametrize(
    "foreign",
    [
        None,
        "http://h",
        SimpleNamespace(uri="http://h"),
        SimpleNamespace(uri="http://h", address="", token="", db_name="", handler_kwargs=7),
        SimpleNamespace(uri="http://h", address="", token="", db_name="", handler_kwargs=[(1,)]),
        SimpleNamespace(
            uri="http://h", address="", token="", db_name="", handler_kwargs=[("uri", "http://g")]
        ),
    ],
)
def test_coerce_refuses_what_is_no_config(foreign: Any) -> None:
    """Something else than a config is a ConfigError."""
    with pytest.raises(ConfigError):
        ConnectionConfig.coerce(foreign)


def test_a_config_that_was_made_before_is_remembered_and_not_shared() -> None:
    """Each client's db_name is its own; equal values of other types are looked at anew."""
    first = ConnectionConfig.from_uri("http://remembered:19530", secure=True)
    first.db_name = "mine"
    again = ConnectionConfig.from_uri("http://remembered:19530", secure=True)
    assert again is not first
    assert (again.key, again.db_name) == (first.key, "")
    with pytest.raises(ConfigError, match="secure must be True or False, not int"):
        ConnectionConfig.from_uri("http://remembered:19530", secure=1)
    with pytest.raises(ConfigError, match="token must be a string, not list"):
        ConnectionConfig.from_uri("http://remembered:19530", token=[])  # type: ignore[arg-type]

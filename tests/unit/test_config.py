"""ConnectionConfig: what a URI means, what shares a connection, and what is never shown."""

from __future__ import annotations

import copy
import os
import pickle
import ssl
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from pymilvus.client.connection_manager import ConnectionConfig as PymilvusConfig

from milvus_lifecycle.config import ConnectionConfig, TlsMaterial, load_tls, parse_endpoint
from milvus_lifecycle.errors import ConfigError, Failure, classify

parse = ConnectionConfig.from_uri


@pytest.mark.parametrize(
    ("uri", "address", "token", "db_name", "secure"),
    [
        ("http://localhost:19530", "localhost:19530", "", "", False),
        ("http://localhost", "localhost:19530", "", "", False),
        ("http://localhost:", "localhost:19530", "", "", False),
        ("HTTP://LocalHost/", "localhost:19530", "", "", False),
        ("tcp://milvus_1.internal.:7", "milvus_1.internal.:7", "", "", False),
        ("https://in01.example.com", "in01.example.com:443", "", "", True),
        ("https://in01.example.com:19538", "in01.example.com:19538", "", "", True),
        ("http://[::1]:1", "[::1]:1", "", "", False),
        ("http://[0:0::1]", "[::1]:19530", "", "", False),
        ("https://[2001:db8::7]", "[2001:db8::7]:443", "", "", True),
        ("http://[fe80::1%25eth0]", "[fe80::1%eth0]:19530", "", "", False),
        ("http://root:Milvus@h", "h:19530", "root:Milvus", "", False),
        ("http://key@h", "h:19530", "key", "", False),
        ("http://key:@h", "h:19530", "key", "", False),
        ("http://@h", "h:19530", "", "", False),
        ("http://u%20ser:p%40ss%2F%3a@h", "h:19530", "u ser:p@ss/:", "", False),
        ("http://root:p@ss@h", "h:19530", "root:p@ss", "", False),
        ("http://root:100%sure@h", "h:19530", "root:100%sure", "", False),
        ("http://root:%C3%A9@h", "h:19530", "root:é", "", False),
        ("http://h/mydb", "h:19530", "", "mydb", False),
        ("http://h//mydb/more/", "h:19530", "", "mydb", False),
        ("http://h/my%20db", "h:19530", "", "my db", False),
        ("http://h/file.db", "h:19530", "", "file.db", False),
        ("unix:/run/milvus.sock", "unix:/run/milvus.sock", "", "", False),
        ("unix:///run/milvus.sock", "unix:///run/milvus.sock", "", "", False),
    ],
)
def test_what_a_uri_means(uri: str, address: str, token: str, db_name: str, secure: bool) -> None:
    """Address, credentials, database and TLS come out of a URI as documented (D30)."""
    config = parse(uri)
    assert (config.address, config.token, config.db_name) == (address, token, db_name)
    assert config.secure is secure
    assert not config.is_local
    assert not config.is_global


def test_stored_uri_has_no_credentials() -> None:
    """The URI that is kept is the one given, credentials aside (D26)."""
    assert parse("https://root:Milvus@H.com:1/db").uri == "https://H.com:1/db"
    assert parse("http://h").uri == "http://h"


def test_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `.db` path is local, its address is absolute, and Milvus Lite is not started."""
    monkeypatch.chdir(tmp_path)
    config = parse("./my data.db", token="t", db_name="d")
    assert config.address == str(tmp_path / "my data.db")
    assert (config.is_local, config.secure, config.is_global) == (True, False, False)
    assert (config.uri, config.token, config.db_name) == ("./my data.db", "t", "d")
    assert config.key == parse(str(tmp_path / "my data.db"), token="t").key
    assert list(tmp_path.iterdir()) == []


def test_parsing_starts_nothing() -> None:
    """Parsing loads neither pymilvus nor Milvus Lite, and starts no thread."""
    code = (
        "import sys, threading; from milvus_lifecycle.config import ConnectionConfig as C; "
        "before = set(sys.modules); C.from_uri('/tmp/x.db'); C.from_uri('https://u:p@h/d'); "
        "print([m for m in set(sys.modules) - before if 'milvus' in m], threading.active_count())"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["[]", "1"]


@pytest.mark.parametrize(
    ("uri", "is_global"),
    [
        ("https://my-global-cluster.example.com", True),
        ("https://GLOBAL-CLUSTER.example.com", True),
        ("http://global-cluster:19530", True),
        ("http://example.com/global-cluster", False),
        ("http://global-cluster:x@example.com", False),
        ("unix:/run/global-cluster.sock", False),
        ("/tmp/global-cluster.db", False),
    ],
)
def test_global_is_a_matter_of_the_host(uri: str, is_global: bool) -> None:
    """Only a host that contains "global-cluster" makes a global cluster (D30)."""
    assert parse(uri).is_global is is_global


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


# --- what is refused -----------------------------------------------------------------------

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "empty"),
        (" http://h", "whitespace"),
        ("http://h\n", "control"),
        ("http://h\x00", "control"),
        ("http://a b", "whitespace"),
        ("http://h\ud800", "control"),
        ("localhost:19530", "accepted are http"),
        ("localhost", "accepted are http"),
        ("ftp://h", "accepted are http"),
        ("http:/h", "accepted are http"),
        ("http://", "host is empty"),
        ("http://:19530", "host is empty"),
        ("http:///db", "host is empty"),
        ("http://h:0", "from 1 to 65535"),
        ("http://h:65536", "from 1 to 65535"),
        ("http://h:-1", "from 1 to 65535"),
        ("http://h:1x", "from 1 to 65535"),
        ("http://h:\u0661", "from 1 to 65535"),
        ("http://h:" + "9" * 5000, "from 1 to 65535"),
        ("http://::1:19530", "in brackets"),
        ("http://[::1", "IPv6"),
        ("http://[::1]x", "IPv6"),
        ("http://[nonsense]", "IPv6"),
        ("http://[fe80::1%]", "zone"),
        ("http://h..x", "host may hold"),
        ("http://-h", "host may hold"),
        ("http://a,b", "host may hold"),
        ("http://é.com", "host may hold"),
        ("http://" + "a" * 254, "host may hold"),
        ("http://h?x=1", "not accepted"),
        ("http://h/db#x", "not accepted"),
        ("http://h/%0a", "control"),
        ("unix:", "socket"),
        ("unix://", "socket"),
        ("file:///tmp/x.db", "accepted are http"),
        ("/nonexistent-folder/x.db", "'/nonexistent-folder' does not exist"),
        (f"root:{SECRET}@h", "accepted are http"),
        (f"ftp://root:{SECRET}@h", "accepted are http"),
        (f"root:pa://{SECRET}@h", "accepted are http"),
        (f"http:/root:{SECRET}@h", "accepted are http"),
        (f"http:/root:{SECRET}@h/x.db", "does not exist"),
        (f"http://root:a/{SECRET}@h", "percent-encode"),
        (f"http://root:12/{SECRET}@h", "percent-encode"),
        (f"http://root:a?{SECRET}@h", "percent-encode"),
        (f"http://root:{SECRET}#@h", "percent-encode"),
        (f"http://root:{SECRET}", "from 1 to 65535"),
        (f"root:{SECRET}", "accepted are http"),
        (f"http://:{SECRET}@h", "user name"),
        (f"http://root:{SECRET}%ff@h", "UTF-8"),
        (f"http://root:{SECRET}%00@h", "control"),
        (f"http://root:{SECRET} @h", "whitespace"),
        (f"http://root:{SECRET}@[::1", "IPv6"),
        (f"http://root:{SECRET}@h:port", "from 1 to 65535"),
        (f"http://h?token={SECRET}", "not accepted"),
        (f"http://h/db#{SECRET}", "not accepted"),
    ],
)
def test_bad_uris_say_what_is_accepted(uri: str, says: str) -> None:
    """A bad URI is a ConfigError that names it, explains it, and shows no secret."""
    with pytest.raises(ConfigError, match=says) as caught:
        parse(uri)
    text = str(caught.value)
    assert text.startswith("uri ")
    assert caught.value.field == "uri"
    assert SECRET not in text
    assert len(text) < 500
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


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


def test_working_directory_that_is_gone(tmp_path: Path) -> None:
    """A relative `.db` path without a working directory is a ConfigError, not an OSError."""
    gone = tmp_path / "gone"
    gone.mkdir()
    before = os.getcwd()
    os.chdir(gone)
    try:
        gone.rmdir()
        with pytest.raises(ConfigError, match="working directory"):
            parse("x.db")
    finally:
        os.chdir(before)


def attempt(uri: str, **arguments: Any) -> ConnectionConfig | ConfigError:
    """Return what parsing comes to; anything else than these two fails the test."""
    try:
        return parse(uri, **arguments)
    except ConfigError as error:
        return error


uri_like = st.one_of(
    st.text(max_size=60),
    st.text("htps:/@[]%?#.0123456789abdx \n\x00é", max_size=60),
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["http://", "https://", "tcp://", "unix:", "HTTP://u:p@", "http://["]),
        st.text(max_size=40),
        st.sampled_from(["", ".db", ":19530", "]:1", "/db", "?x", "@h"]),
    ),
)


@given(uri_like, st.none() | st.text(max_size=8), st.none() | st.text(max_size=8))
def test_parser_raises_nothing_else(uri: str, token: str | None, db_name: str | None) -> None:
    """Any text is either a config or a ConfigError, which prints as it should."""
    config = attempt(uri, token=token, db_name=db_name)
    if isinstance(config, ConfigError):
        assert len(str(config)) < 800
        return
    assert config.address
    assert config.key.startswith(config.address)
    assert config.key == parse(config.uri, token=config.token, db_name=db_name).key


@given(uri_like)
def test_endpoint_parser_raises_nothing_else(endpoint: str) -> None:
    """Any text is either an endpoint or a ConfigError."""
    try:
        address, secure = parse_endpoint(endpoint)
    except ConfigError:
        return
    assert address
    assert isinstance(secure, bool)


secrets_ = st.text(min_size=1, max_size=20).map(lambda text: f"{SECRET}{text}{SECRET}")
breakage = st.sampled_from(["", ":x", ":0", "/a@b", " ", "\n", "]", "[", "?", "#", ",", ":1:2"])


@given(
    secrets_,
    st.booleans(),
    st.sampled_from(["http://", "https://", "tcp://", "ftp://", "", "http:/", "://", "unix:"]),
    breakage,
)
def test_no_secret_is_ever_shown(secret: str, encode: bool, scheme: str, broken: str) -> None:
    """However broken a URI is, no part of its password reaches an error or a repr."""
    password = quote(secret, safe="", errors="replace") if encode else secret
    config = attempt(f"{scheme}root:{password}@host{broken}")
    assert SECRET not in repr(config) or scheme == "unix:"
    if isinstance(config, ConfigError):
        assert SECRET not in str(config)
        return
    if scheme == "unix:":
        return  # a path, verbatim: nothing in it is a credential
    for text in (repr(config), str(config), config.uri, config.address, config.key):
        assert SECRET not in text


@given(secrets_, secrets_)
def test_no_argument_is_ever_shown(token: str, password: str) -> None:
    """A token or password given as an argument reaches no repr, key or error."""
    arguments = {"token": token, "password": password, "user": "me", "option": {"x": token}}
    config = attempt("http://h", **arguments)
    assert SECRET not in repr(config)
    assert SECRET not in str(config)
    assert isinstance(config, ConfigError) or SECRET not in config.key


# --- endpoints -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("https://host", ("host:443", True)),
        ("https://host/", ("host:443", True)),
        ("https://host:19530", ("host:19530", True)),
        ("http://host", ("host:19530", False)),
        ("host:19530", ("host:19530", False)),
        ("host", ("host:19530", False)),
        ("tcp://host:1", ("host:1", False)),
        ("[::1]:19530", ("[::1]:19530", False)),
        ("unix:/run/x.sock", ("unix:/run/x.sock", False)),
    ],
)
def test_endpoints(endpoint: str, expected: tuple[str, bool]) -> None:
    """A failover address is read by the rules of the first connect (D9)."""
    assert parse_endpoint(endpoint) == expected


def test_endpoint_without_scheme_keeps_the_callers_tls() -> None:
    """A bare endpoint never downgrades a client that asked for TLS."""
    assert parse_endpoint("host:19530", secure=True) == ("host:19530", True)
    assert parse_endpoint("tcp://host:19530", secure=True) == ("host:19530", True)
    assert parse_endpoint("http://host:19530", secure=True) == ("host:19530", False)


@pytest.mark.parametrize("endpoint", [f"https://u:{SECRET}@host", f"u:{SECRET}@host", "", "::1", 5])
def test_bad_endpoints(endpoint: Any) -> None:
    """An endpoint with credentials, or none at all, is refused without showing them."""
    with pytest.raises(ConfigError, match=r"^endpoint ") as caught:
        parse_endpoint(endpoint)
    assert SECRET not in str(caught.value)


# --- the key -------------------------------------------------------------------------------


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


# --- pymilvus's own config -----------------------------------------------------------------


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


# --- TLS -----------------------------------------------------------------------------------


class Pki:
    """A certificate authority of the test's own, with files as a user has them."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.root = folder / "ca.pem"
        self.chain, self.key = folder / "client.pem", folder / "client.key"
        self.other_key = folder / "other.key"
        authority.cert_pem.write_to_path(str(self.root))
        leaf, other = authority.issue_cert("me"), authority.issue_cert("you")
        leaf.cert_chain_pems[0].write_to_path(str(self.chain))
        leaf.private_key_pem.write_to_path(str(self.key))
        other.private_key_pem.write_to_path(str(self.other_key))
        self.folder = folder

    def three(self, **changes: object) -> dict[str, Any]:
        return {
            "client_pem_path": str(self.chain),
            "client_key_path": str(self.key),
            "ca_pem_path": str(self.root),
            **changes,
        }


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


def test_tls_files_are_chosen_as_pymilvus_does(pki: Pki) -> None:
    """server_pem_path wins; certificate, key and CA count together; else the system's roots."""
    root = pki.root.read_bytes()
    assert load_tls(parse("http://h", server_pem_path=str(pki.root))) is None
    assert load_tls(parse("https://h")) == TlsMaterial()
    assert load_tls(parse("https://h", server_name="n")) == TlsMaterial(server_name="n")
    alone = load_tls(parse("https://h", server_pem_path=pki.root, **pki.three()))
    assert alone == TlsMaterial(root=root)
    mutual = load_tls(parse("https://h", **pki.three()))
    assert mutual == TlsMaterial(root, pki.key.read_bytes(), pki.chain.read_bytes())
    assert load_tls(parse("https://h", **pki.three(client_key_path=""))) == TlsMaterial()


def test_tls_material_shows_nothing(pki: Pki) -> None:
    """Key and certificates appear in no repr."""
    assert repr(load_tls(parse("https://h", **pki.three()))) == "TlsMaterial(server_name='')"


def test_roots_with_text_around_them(pki: Pki) -> None:
    """A bundle with comments, in any language, between several certificates is fine."""
    bundle = pki.folder / "bundle.pem"
    bundle.write_bytes("# équipe\n".encode() + pki.root.read_bytes() * 2 + b"\nend\n")
    assert load_tls(parse("https://h", server_pem_path=str(bundle))) is not None


@pytest.mark.parametrize(
    ("field", "content", "says"),
    [
        ("server_pem_path", None, "cannot be read: No such file"),
        ("server_pem_path", b"", "does not hold PEM certificates"),
        ("server_pem_path", b"s3cr3t\xff", "does not hold PEM certificates"),
        (
            "server_pem_path",
            b"-----BEGIN CERTIFICATE-----\ns3cr3t\n-----END CERTIFICATE-----\n",
            "does not hold PEM certificates",
        ),
        ("server_pem_path", b"\n" * (4 * 1024 * 1024 + 1), "larger than"),
        ("ca_pem_path", None, "cannot be read: No such file"),
        ("ca_pem_path", b"s3cr3t", "does not hold PEM certificates"),
        ("client_pem_path", None, "cannot be read: No such file"),
        ("client_pem_path", b"s3cr3t", "are not a certificate and its"),
        ("client_key_path", None, "cannot be read: No such file"),
        ("client_key_path", b"s3cr3t", "are not a certificate and its"),
    ],
)
def test_unusable_tls_files(
    pki: Pki, tmp_path: Path, field: str, content: bytes | None, says: str
) -> None:
    """A missing or broken file is a ConfigError with field and path, and without content."""
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_bytes(content)
    kwargs = {field: str(path)} if field == "server_pem_path" else pki.three(**{field: str(path)})
    with pytest.raises(ConfigError, match=says) as caught:
        load_tls(parse("https://h", **kwargs))
    text = str(caught.value)
    assert field in text
    assert str(path) in text
    assert SECRET not in text
    assert classify(caught.value) is Failure.PERMANENT


def test_folder_or_odd_path_as_tls_file(tmp_path: Path) -> None:
    """A folder, or a path that no file can have, is a ConfigError too."""
    for path in (str(tmp_path), "a\x00b"):
        with pytest.raises(ConfigError, match=r"server_pem_path .* cannot be read"):
            load_tls(parse("https://h", server_pem_path=path))


def test_key_of_another_certificate(pki: Pki) -> None:
    """A key that does not belong to the certificate is found before any server is asked."""
    with pytest.raises(ConfigError, match="KEY_VALUES_MISMATCH"):
        load_tls(parse("https://h", **pki.three(client_key_path=str(pki.other_key))))


def test_encrypted_key_does_not_ask_for_a_password(pki: Pki, tmp_path: Path) -> None:
    """A key behind a password is refused at once; nothing waits at a terminal."""
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(encrypt(pki.key.read_bytes()))
    with pytest.raises(ConfigError, match="unencrypted key"):
        load_tls(parse("https://h", **pki.three(client_key_path=str(encrypted))))


def encrypt(key: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )


def test_material_is_what_openssl_accepts(pki: Pki) -> None:
    """What load_tls lets pass, OpenSSL takes."""
    material = load_tls(parse("https://h", server_pem_path=str(pki.root)))
    assert material is not None
    assert material.root is not None
    ssl.create_default_context(cadata=material.root.decode())

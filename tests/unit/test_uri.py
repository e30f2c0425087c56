"""URIs and endpoints: what they mean, what is refused, and what is never shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milvus_lifecycle.config import ConnectionConfig, parse_endpoint
from milvus_lifecycle.errors import ConfigError

parse = ConnectionConfig.from_uri
SECRET = "s3cr3t"


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


secret_texts = st.text(min_size=1, max_size=20).map(lambda text: f"{SECRET}{text}{SECRET}")


breakage = st.sampled_from(["", ":x", ":0", "/a@b", " ", "\n", "]", "[", "?", "#", ",", ":1:2"])


@given(
    secret_texts,
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

"""TLS files: which are read, what is found wrong with them, and that nothing is shown."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from milvus_lifecycle import tls
from milvus_lifecycle.config import ConnectionConfig, TlsMaterial, load_tls
from milvus_lifecycle.errors import ConfigError, Failure, classify
from milvus_lifecycle.tls import fingerprint, tls_files

parse = ConnectionConfig.from_uri
SECRET = "s3cr3t"


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
    """server_pem_path wins; else certificate and key with a CA; else the system's roots."""
    root = pki.root.read_bytes()
    assert load_tls(parse("http://h", server_pem_path=str(pki.root))) is None
    assert load_tls(parse("https://h")) == TlsMaterial()
    assert load_tls(parse("https://h", server_name="n")) == TlsMaterial(server_name="n")
    alone = load_tls(parse("https://h", server_pem_path=pki.root, **pki.three()))
    assert alone == TlsMaterial(root=root)
    mutual = load_tls(parse("https://h", **pki.three()))
    assert mutual == TlsMaterial(root, pki.key.read_bytes(), pki.chain.read_bytes())


def test_a_ca_alone_and_a_client_certificate_alone(pki: Pki) -> None:
    """pymilvus ignores them without each other; a pair that lacks one is an error that says so."""
    root = pki.root.read_bytes()
    assert load_tls(parse("https://h", ca_pem_path=pki.root)) == TlsMaterial(root=root)
    pair = load_tls(parse("https://h", **pki.three(ca_pem_path="")))
    assert pair == TlsMaterial(None, pki.key.read_bytes(), pki.chain.read_bytes())
    for given, missing in (("pem", "key"), ("key", "pem")):
        kwargs = pki.three(**{f"client_{missing}_path": None})
        with pytest.raises(ConfigError, match=f"^client_{missing}_path is missing") as caught:
            load_tls(parse("https://h", **kwargs))
        assert caught.value.field == f"client_{missing}_path"
        assert f"client_{given}_path" in str(caught.value)


def test_a_fingerprint_tells_changes_of_the_files_that_are_read(pki: Pki, tmp_path: Path) -> None:
    """Written to, replaced under the same size and time, or gone: it is another one each time."""
    path, spare = tmp_path / "root.pem", tmp_path / "spare.pem"
    path.write_bytes(b"one")
    config = parse("https://h", server_pem_path=path, **pki.three())
    seen = [fingerprint(config)]
    path.write_bytes(b"three")
    seen.append(fingerprint(config))
    spare.write_bytes(b"seven")
    os.utime(spare, ns=(0, path.stat().st_mtime_ns))
    spare.replace(path)
    seen.append(fingerprint(config))
    path.unlink()
    seen.append(fingerprint(config))
    assert len({str(each) for each in seen}) == 4
    assert tls_files(config) == [str(path)]
    assert tls_files(parse("http://h", server_pem_path=path)) == []
    assert len(tls_files(parse("https://h", **pki.three()))) == 3


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


def test_a_key_that_goes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half written, read, and away before the pair is checked: that is no pair, and it is said."""
    pki = Pki(tmp_path)
    pki.key.write_text("half a key")
    read = tls._read_file

    def read_and_lose(name: str, path: str) -> bytes:
        content = read(name, path)
        if name == "client_pem_path":  # the last one that is read
            pki.key.unlink()
        return content

    monkeypatch.setattr(tls, "_read_file", read_and_lose)
    with pytest.raises(ConfigError, match="are not a certificate and its unencrypted key"):
        load_tls(parse("https://host", **pki.three()))


def test_encrypted_key_does_not_ask_for_a_password(pki: Pki, tmp_path: Path) -> None:
    """A key behind a password is refused at once; nothing waits at a terminal."""
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(encrypt(pki.key.read_bytes()))
    with pytest.raises(ConfigError, match="unencrypted key"):
        load_tls(parse("https://h", **pki.three(client_key_path=str(encrypted))))


def encrypt(key: bytes) -> bytes:
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

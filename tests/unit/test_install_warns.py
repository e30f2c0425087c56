"""What install() warns of: surroundings in which the engine cannot keep what it promises; and
the hint that a program uses what the engine does not cover."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from pymilvus import Collection, connections, utility
from pymilvus.exceptions import MilvusException
from pymilvus.orm.connections import Connections

import milvus_lifecycle as ml
from milvus_lifecycle.integrations import pymilvus as integration


def _said() -> list[str]:
    """What install() warns of now, whether or not it was said before."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ml.install()
        ml.install()
    ml.uninstall()
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("found", ["2.6.18", "2.7.0", "3.0.3", "3.0.10"])
def test_a_newer_pymilvus(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    """Newer than the newest patch tested: one warning, which names it and those."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found)
    (said,) = _said()
    assert f"pymilvus {found} is newer" in said
    assert "tested with, 2.6.17 and 3.0.2:" in said


@pytest.mark.parametrize("found", ["2.6.10", "2.6.17", "3.0.0", "3.0.2"])
def test_a_tested_pymilvus(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    """No word about those that were tested, nor about those between them."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found)
    assert _said() == []


@pytest.mark.parametrize("patched", [True, False])
@pytest.mark.parametrize("told", [True, False])
def test_gevent_without_grpcs(monkeypatch: pytest.MonkeyPatch, patched: bool, told: bool) -> None:
    """gevent's patches without gRPC's own: one warning, which says what to call."""
    monkey = SimpleNamespace(is_module_patched=lambda name: patched)
    monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
    if told:
        monkeypatch.setitem(sys.modules, "grpc.experimental.gevent", monkey)
    said = [text for text in _said() if "is newer than" not in text]
    assert len(said) == (patched and not told)
    assert all("gevent.init_gevent()" in text for text in said)


@pytest.mark.parametrize(
    "use",
    [
        lambda: connections.connect(uri="no uri"),
        lambda: Collection("demo"),
        lambda: utility.list_collections(),
    ],
)
def test_the_orm_is_hinted_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, use: Callable[[], object]
) -> None:
    """One WARNING, whatever of the ORM was used first; it works as ever, its own warnings name the
    line that used it. It is pymilvus's own again after uninstall, and an install after the hint
    leaves it alone."""
    monkeypatch.setattr(integration, "_hints", list(integration._hints))
    names = ("connect", "_fetch_handler")
    stock = [vars(Connections)[name] for name in names]
    ml.install()
    assert [vars(Connections)[name] for name in names] != stock
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with pytest.raises(MilvusException):
                use()
    ml.uninstall()
    assert {warning.filename for warning in caught} <= {__file__}
    assert [vars(Connections)[name] for name in names] == stock
    (said,) = caplog.records
    assert (said.name, said.levelno) == ("milvus_lifecycle", logging.WARNING)
    assert "pymilvus's ORM" in said.getMessage()
    ml.install()
    assert [vars(Connections)[name] for name in names] == stock
    ml.uninstall()

"""``audit report``: the page holds what it needs and nothing that could harm."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("bokeh", reason="the extra 'report' is not installed")

from milvus_lifecycle.cli import main
from milvus_lifecycle.diagram.formats import RendererMissing
from milvus_lifecycle.report import page as report_page
from tests.audit_logs import Story, merged, write_log
from tests.corruption import Fields


def page_of(tmp_path: Path, records: list[Fields]) -> str:
    log = write_log(tmp_path / "audit.jsonl", records)
    out = tmp_path / "report.html"
    assert main(["audit", "report", log, "-o", str(out)]) == 0
    return out.read_text(encoding="utf-8")


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    """No element loads anything, and the page forbids itself to."""
    page = page_of(tmp_path, merged(Story().connect().outage(2.0, 0.5)))
    assert "default-src 'none'" in page
    head = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", head)
    assert "@import" not in head
    assert "url(" not in head


def test_what_the_log_says_cannot_become_markup(tmp_path: Path) -> None:
    """Addresses, ids and reasons are text, wherever they end up."""
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    story = Story(f"id-{evil}", f"host-{evil}:1").connect()
    story.step("fail", "RECOVERING", 1.0, reason=evil, error_code=evil)
    page = page_of(tmp_path, merged(story.step("recovered", "ACTIVE", 1.0)))
    assert "<script>alert" not in page
    assert "<img" not in page


def test_the_verdict_stands_on_the_page(tmp_path: Path) -> None:
    """A log that is not legal says so, with its findings."""
    records = merged(Story().connect().outage(2.0, 0.5))
    assert "&#10003; Legal" in page_of(tmp_path, records)
    records[3]["dest"] = "LIMBO"
    page = page_of(tmp_path, records)
    assert "&#10007; Not legal" in page
    assert "audit.jsonl:4" in page
    assert "illegal-transition" in page


def test_a_log_without_outages_makes_a_page(tmp_path: Path) -> None:
    """Nothing to show is shown as such."""
    assert "No outage in this log." in page_of(tmp_path, merged(Story().connect()))


def test_a_thinned_page_says_by_which_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of a page knows what is not on it."""
    monkeypatch.setattr(report_page, "STAYS", 100)
    story = Story().connect()
    for _ in range(300):
        story.step("release", "IDLE", 0.01).step("acquire", "ACTIVE", 0.01)
    page = page_of(tmp_path, merged(story.outage(500.0, 2.0)))
    assert "A large log, thinned to" in page
    assert "are merged with the one before them" in page


def test_without_graphviz_the_page_has_no_diagram(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The diagram needs one more extra; everything else is there without it."""

    def missing(*_: object) -> str:
        raise RendererMissing("pip install this")

    monkeypatch.setattr(report_page, "render_svg", missing)
    page = page_of(tmp_path, merged(Story().connect().outage(2.0, 0.5)))
    assert "No diagram: pip install this" in page
    assert "Incidents" in page


def test_an_incident_says_in_a_sentence_what_calls_felt(tmp_path: Path) -> None:
    """Newest first, each with an anchor of its own, a moment for the reader's clock, its cause."""
    first = Story("a" * 16, "milvus:19530").connect()
    first.step("fail", "RECOVERING", 1.0, reason="an RPC failed: UNAVAILABLE: gone")
    first.step("retry", "RECOVERING", 3.0, waiting=4, waited=4)
    first.step("recovered", "ACTIVE", 30.0, waited=7, failed=1)
    second = Story("b" * 16, "milvus:19530").connect()
    second.step("release", "IDLE", 100.0).step("acquire", "ACTIVE", 0.0).outage(2.0, 0.5)
    page = page_of(tmp_path, merged(first, second))
    items = re.findall(r"<li (.*?)</li>", page, flags=re.S)
    told = [re.sub(r"<[^>]*>", "", item.partition(">")[2]).strip() for item in items]
    assert len(told) == 2
    assert "milvus:19530 lost its connection for 500 ms; " in told[0]
    lost = "milvus:19530 lost its connection for 33 s; 7 calls waited, 1 failed; 2 attempts."
    assert lost in told[1]
    assert "an RPC failed: UNAVAILABLE: gone" in told[1]
    anchors = re.findall(r'<li id="(incident-[^"]*)"', page)
    assert [f'href="#{anchor}"' in page for anchor in dict.fromkeys(anchors)] == [True, True]
    assert re.search(r'<time datetime="[0-9-]{10}T[0-9:]{8}Z">', items[0])


def test_a_live_log_is_served(tmp_path: Path) -> None:
    """The page at each look is of the log as it is then; Ctrl-C ends it, with exit code 0."""
    log = write_log(tmp_path / "audit.jsonl", merged(Story().connect()))
    command = [sys.executable, "-m", "milvus_lifecycle", "audit", "report", log, "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        try:
            assert served.stdout is not None
            uri = served.stdout.readline().split()[0]
            # Browsers open connections that they do not use yet.
            idle = socket.create_connection(("127.0.0.1", int(uri.rstrip("/").rpartition(":")[2])))
            for outages in ("No outage in this log.", "lost its connection"):
                with urllib.request.urlopen(uri, timeout=30) as answer:
                    assert answer.headers["Refresh"] == "10"
                    assert outages in answer.read().decode()
                write_log(tmp_path / "audit.jsonl", merged(Story().connect().outage(2.0, 0.5)))
            for host in ("localhost", "localhost:9", "127.0.0.1:9"):
                asked = urllib.request.Request(uri, headers={"Host": host})
                with urllib.request.urlopen(asked, timeout=30) as answer:
                    assert answer.status == 200
            stranger = urllib.request.Request(uri, headers={"Host": "evil.example:80"})
            with pytest.raises(urllib.error.HTTPError, match="or localhost"):
                urllib.request.urlopen(stranger, timeout=30)
        finally:
            served.send_signal(signal.SIGINT)
        assert served.wait(30) == 0
        idle.close()


def test_a_port_that_is_taken_is_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Or one that there is not: the reason is told."""
    log = write_log(tmp_path / "audit.jsonl", merged(Story().connect()))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["audit", "report", log, "--serve", port]) == 2
    assert f"cannot listen at 127.0.0.1:{port}" in capsys.readouterr().err
    assert main(["audit", "report", log, "--serve", "70000"]) == 2


def test_a_page_that_cannot_be_written_is_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, with the reason."""
    log = write_log(tmp_path / "audit.jsonl", merged(Story()))
    assert main(["audit", "report", log, "-o", str(tmp_path)]) == 2
    assert "cannot be written: Is a directory" in capsys.readouterr().err
    assert main(["audit", "report", log + ".no", "-o", str(tmp_path / "x.html")]) == 2

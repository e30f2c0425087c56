"""The programs of docs/services.md, as they stand there, while their Milvus Lite is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymilvus import MilvusClient

from tests.network import TcpProxy, free_port, listens
from tests.observe import Call, wait_until
from tests.pages import program
from tests.processes import REPOSITORY, MilvusLiteProcess

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(120)]

#: How long a program may take to start, or a call that was waited for to come back (seconds).
LIMIT = 60.0


def environment() -> dict[str, str]:
    """Where programs find this checkout, and the commands of this Python."""
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]
    return {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}


@contextmanager
def running(command: str | Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own; killed at the end with all that it started."""
    with subprocess.Popen(command, text=True, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


class Place:
    """Where a program of the page runs: a folder, and a Milvus with three rows in "docs"."""

    def __init__(self, folder: Path, lite: MilvusLiteProcess, proxy: TcpProxy) -> None:
        self.folder, self.lite, self.proxy = folder, lite, proxy
        self.audit = folder / "audit.jsonl"
        self.env = environment()
        self.env.update(MILVUS_URI=proxy.uri, MILVUS_LIFECYCLE_AUDIT=str(self.audit))
        client = MilvusClient(lite.uri)
        client.create_collection("docs", dimension=4)
        client.insert("docs", [{"id": n, "vector": [n, 0, 0, 0]} for n in (1, 2, 3)])
        client.close()

    def write(self, title: str, name: str) -> None:
        """The page's program under that heading, as a file."""
        (self.folder / name).write_text(program("services.md", title), encoding="utf-8")

    @contextmanager
    def running(self, *command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """A module of Python, or a file, with arguments."""
        where: dict[str, Any] = {"cwd": self.folder, "env": self.env, **options}
        with (
            (self.folder / "log").open("w+") as log,
            running([sys.executable, *command], stderr=log, **where) as process,
        ):
            try:
                yield process
            except BaseException:
                print((self.folder / "log").read_text()[-5000:])
                raise

    @contextmanager
    def asking(self, *command: str) -> Iterator[Callable[[str], str]]:
        """The same for a program that answers each line with one: it is given, and returned."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with self.running(*command, **pipes) as process:
            to, back = process.stdin, process.stdout
            assert to is not None
            assert back is not None

            def ask(line: str) -> str:
                to.write(line + "\n")
                to.flush()
                return back.readline().strip()

            yield ask
            to.close()
            process.wait(LIMIT)

    def outage(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What a call comes to that begins in an outage, and lasts until it is over."""
        self.kill()
        waiting = Call(call, *arguments)
        time.sleep(1)  # the outage
        assert not waiting.done
        self.start()
        return waiting.value(LIMIT)

    def kill(self) -> None:
        """The server dies, and with it every connection."""
        self.proxy.set_mode("refuse")
        self.lite.kill()
        self.proxy.cut()

    def start(self) -> None:
        """It is back with its collections loaded: Milvus loads them by itself, Lite does not."""
        self.lite.start()
        client = MilvusClient(self.lite.uri)
        for name in client.list_collections():
            client.load_collection(name)
        client.close()
        self.proxy.set_mode("pass")

    def recovered(self) -> set[int]:
        """The processes that have ridden out an outage, by the audit log."""
        records = map(json.loads, self.audit.read_text().splitlines())
        return {record["pid"] for record in records if record.get("trigger") == "recovered"}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with (
        MilvusLiteProcess(tmp_path / "data") as lite,
        TcpProxy(lite.port) as proxy,
    ):
        yield Place(tmp_path, lite, proxy)


class Site:
    """What a browser sees of a service."""

    def __init__(self, port: int) -> None:
        self._at = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> tuple[int, Any]:
        """The status and the JSON of the answer."""
        try:
            with urllib.request.urlopen(self._at + path, timeout=LIMIT) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def up(self) -> bool:
        try:
            self.get("/ready")
        except (OSError, ValueError):
            return False
        return True


def test_getting_started(tmp_path: Path) -> None:
    """The page, step by step: server, program, Ctrl-C, server, and what is made of the log."""
    port = free_port()
    title = "A server, and a program"
    serve = program("getting-started.md", title, "").replace("19530", str(port))
    (tmp_path / "app.py").write_text(
        program("getting-started.md", title).replace("19530", str(port)), encoding="utf-8"
    )
    where: dict[str, Any] = {"cwd": tmp_path, "env": environment()}

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(running(f"exec {serve}", shell=True, **where))
        wait_until(lambda: listens(port), LIMIT)
        app = stack.enter_context(running([sys.executable, "app.py"], **pipes, **where))
        said = app.stdout
        assert said is not None
        assert " []" in said.readline()
        first.send_signal(signal.SIGINT)
        first.wait(LIMIT)
        time.sleep(2)  # the outage
        with running(f"exec {serve}", shell=True, **where):
            wait_until(lambda: "recovered" in (tmp_path / "audit.jsonl").read_text(), LIMIT)
            assert " []" in said.readline()
            app.kill()
            assert "Traceback" not in said.read()
    commands = program("getting-started.md", "Look at the outage", "")
    done = subprocess.run(
        f"set -e\n{commands}", shell=True, check=True, capture_output=True, text=True, **where
    )
    assert "legal: " in done.stdout, done.stdout
    assert {"report.html", "outage.svg"} <= set(os.listdir(tmp_path))


def test_fastapi(place: Place) -> None:
    """Requests ride out the outage; ready says so meanwhile, and comes back without a request."""
    place.write("FastAPI", "app.py")
    port = free_port()
    site = Site(port)
    with place.running("-m", "uvicorn", "app:app", "--port", str(port)):
        wait_until(site.up, LIMIT)
        assert site.get("/documents/1") == (200, [{"id": 1}])
        assert site.get("/ready") == (
            200,
            {"ready": True, "connections": 1, "unusable": 0, "waiting": 0},
        )
        place.kill()
        waiting = Call(site.get, "/documents/2")
        wait_until(lambda: site.get("/ready")[1]["waiting"] == 1, LIMIT)
        code, said = site.get("/ready")
        assert (code, said["ready"]) == (503, False)
        assert site.get("/live") == (200, "alive")
        assert not waiting.done
        place.start()
        assert waiting.value(LIMIT) == (200, [{"id": 2}])
        wait_until(lambda: site.get("/ready")[0] == 200, LIMIT)
    assert len(place.recovered()) == 1


def test_fastapi_after_a_give_up(place: Place) -> None:
    """The budget is spent: nobody sends requests any more, and the service is ready again."""
    place.write("FastAPI", "app.py")
    place.env["MILVUS_LIFECYCLE_RECOVERY_BUDGET"] = "0.5"
    port = free_port()
    site = Site(port)
    with place.running("-m", "uvicorn", "app:app", "--port", str(port)):
        wait_until(site.up, LIMIT)
        place.kill()
        with pytest.raises(ValueError, match="Expecting value"):  # "Internal Server Error"
            site.get("/documents/1")
        assert site.get("/ready")[0] == 503
        place.start()
        wait_until(lambda: site.get("/ready")[0] == 200, LIMIT)
        assert site.get("/documents/1") == (200, [{"id": 1}])


def test_gunicorn(place: Place) -> None:
    """Workers that are forked with a client ride out the outage."""
    place.write("gunicorn", "app.py")
    port = free_port()
    site = Site(port)
    command = ["-m", "gunicorn", "--preload", "--workers", "2", "--threads", "4"]
    with place.running(*command, "--timeout", "90", "--bind", f"127.0.0.1:{port}", "app:app"):
        wait_until(site.up, LIMIT)
        place.kill()
        waiting = [Call(site.get, "/") for _ in range(12)]
        time.sleep(1)  # the outage
        assert not any(call.done for call in waiting)
        place.start()
        answers = [call.value(LIMIT) for call in waiting]
    assert answers == [(200, [{"id": 1}])] * 12


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(place: Place, method: str) -> None:
    """Every job of the children is done, although the server dies in the middle."""
    place.write("multiprocessing", "jobs.py")
    count = 600
    with place.running("jobs.py", method, str(count), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        done = [process.stdout.readline()]
        place.kill()
        time.sleep(1)  # the outage
        place.start()
        done += process.stdout.read().splitlines(keepends=True)
        assert process.wait(LIMIT) == 0
    assert sorted(map(int, done)) == list(range(count))
    rows = MilvusClient(place.lite.uri).query("docs", output_fields=["count(*)"])
    assert rows[0]["count(*)"] == count
    assert place.recovered()


CELERYCONFIG = """
broker_url = "filesystem://"
broker_transport_options = {"data_folder_in": "queue", "data_folder_out": "queue"}
result_backend = "file://results"
"""

SENDER = """
import sys, tasks
for line in sys.stdin:
    results = [tasks.write.delay(number) for number in range(int(line))]
    print(sum(result.get(timeout=60) for result in results), flush=True)
"""


def test_celery(place: Place) -> None:
    """Tasks that are sent in the outage are done, at their first try."""
    place.write("Celery", "tasks.py")
    (place.folder / "celeryconfig.py").write_text(CELERYCONFIG)
    for name in ("queue", "results"):
        (place.folder / name).mkdir()
    worker = place.running("-m", "celery", "-A", "tasks", "worker", "-c", "2")
    with worker, place.asking("-c", SENDER) as ask:
        assert ask("20") == str(sum(range(20)))
        assert place.outage(ask, "20") == str(sum(range(20)))
    assert place.recovered()


@pytest.mark.parametrize("engine", [False, True])
def test_langchain(place: Place, engine: bool) -> None:
    """The same program, without the engine and with it: what its searches find."""
    place.write("LangChain", "rag.py")
    found = "found: a connection is a state machine"
    run = ["-m", "milvus_lifecycle", "run"] if engine else []
    with place.asking(*run, "rag.py") as search:
        assert search("what?") == found
        if engine:
            assert place.outage(search, "what?") == found
            assert search("what?") == found
        else:
            place.kill()
            assert search("what?") == "failed: MilvusException"
            place.start()
            wait_until(lambda: search("what?") == found, LIMIT)


def test_haystack(place: Place) -> None:
    """A pipeline finds the document before the outage, in it, and after."""
    place.write("Haystack", "pipeline.py")
    place.env["HAYSTACK_TELEMETRY_ENABLED"] = "False"
    with place.asking("pipeline.py") as search:
        said = [search("what?"), place.outage(search, "what?"), search("what?")]
    assert said == ["found: a connection is a state machine"] * 3


NOTEBOOK = """
import pathlib, sys, nbclient, nbformat
notebook = nbformat.v4.new_notebook()
_, *cells = pathlib.Path("cells.py").read_text().split("# %%")
notebook.cells = [nbformat.v4.new_code_cell("#" + cell) for cell in cells]
client = nbclient.NotebookClient(notebook, timeout=60)
with client.setup_kernel():
    for line in sys.stdin:
        cell = notebook.cells[int(line)]
        client.execute_cell(cell, int(line))
        said = [output["data"]["text/plain"] for output in cell.outputs]
        print(*"".join(said).split(), flush=True)
"""


def test_jupyter(place: Place) -> None:
    """The cells, in a real kernel: the server dies, and the client works in each loop."""
    place.write("Jupyter", "cells.py")
    with place.asking("-c", NOTEBOOK) as run:
        assert run("0") == ""
        assert run("1").count("'id'") == 1
        assert place.outage(run, "1").count("'id'") == 1
        assert place.outage(run, "2").count("'id'") == 3


def test_pytest(tmp_path: Path) -> None:
    """The page's fixtures, and its tests, in a run of pytest's own."""
    (tmp_path / "test_mine.py").write_text(program("services.md", "pytest"), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    env = {**environment(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=LIMIT
    )
    assert "2 passed" in done.stdout, done.stdout

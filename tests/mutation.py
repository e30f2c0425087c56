"""Mutation testing: each small change of what decides and drives has to make a test fail.

    python -m tests.mutation                          all mutants: hours
    python -m tests.mutation --sample 300 --seed 11   so many, from each module its share
    python -m tests.mutation --changed --minutes 3    of the lines changed since the main branch

cosmic-ray makes the mutants, by tests/cosmic-ray.toml, and keeps its session (``--session FILE`` is
gone on with; cr-report and cr-html read it). What is here is how the tests run: for each mutant
those that run its line, the quickest first, in a forked process and a copy of the repository; for
the core and the drivers then those of the simulation, which is too slow to be measured. A hang is
a death.

docs/testing.md lists, with reasons, the survivors that no test can kill, which count neither way,
and those that are left, which count. Fewer than 90 % dead is a failure.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import math
import os
import queue
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cosmic_ray.plugins
from cosmic_ray.commands.init import init
from cosmic_ray.config import load_config
from cosmic_ray.modules import find_modules
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.tools.filters.git import GitFilter
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import (
    MutationSpec,
    TestOutcome,
    WorkerOutcome,
    WorkItem,
    WorkResult,
)
from coverage import CoverageData
from parso.python.tree import Keyword

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path("tests/cosmic-ray.toml")
DOCS = Path("docs/testing.md")
#: percent of the mutants that are not equivalent
FLOOR = 90.0
#: what the measured tests of one mutant take together (seconds), at most
BUDGET = 25.0
_SIMULATION_TAKES = 60.0
#: its first round, which most mutants do not survive
FIRST_ROUND = 3.0

_QUICK = "not (stock or search or slow or browser or recipes or long)"
_PYTEST = ("-q", "-o", "addopts=", "-p", "no:cacheprovider")
# The fork server imports hypothesis before pytest can rewrite its assertions, which nobody needs.
_ONE = ("-x", "--tb=line", "-rfE", "-W", "ignore::pytest.PytestAssertRewriteWarning")
_READING = ("test_replay*", "test_diagram*", "test_demo*", "test_audit_docs*")
# Not those whose bodies run in processes of their own, where nobody measures, nor the longest.
_INTEGRATION = (
    *("asyncio_cancellation", "asyncio_loops", "asyncio_pool", "bad_input", "channels", "global"),
    *("global_slow", "identity", "keepalive", "not_ready", "rare_events", "timeouts", "uninstall"),
)
_MEASURED = (
    *("tests/unit", "tests/conformance"),
    *(f"tests/integration/test_{name}.py" for name in _INTEGRATION),
    *(f"--ignore-glob=*/{name}" for name in _READING),
)
_SIMULATION = (
    "tests/simulation",
    # They change a line of the shipped text themselves, and fail if it is not there.
    "--deselect=tests/simulation/test_model_check.py::test_a_broken_core_is_rejected",
    "--deselect=tests/simulation/test_schedules.py::test_a_broken_driver_is_found",
    "--deselect=tests/simulation/test_stateful.py::test_a_seeded_bug_is_found",
)
_SIMULATED = (
    "milvus_lifecycle/core/",
    *(f"milvus_lifecycle/drivers/{name}.py" for name in ("threads", "aio", "aio_loops")),
)
_FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)
_NOT_FOUND = re.compile(r"^ERROR: not found: (.+)$", re.MULTILINE)
_NONE_LEFT = 5
#: so many tests may be too slow for their limits on a busy machine
_FAIL_BY_CHANCE = 10
_DURATION = re.compile(r"^\s*([\d.]+)s (?:call|setup|teardown) +(\S.*?)\s*$", re.MULTILINE)
_LISTED = re.compile(
    r"^- `(\S+)` `(\S+)`: `(.+?)` becomes (?:`(.+?)`|nothing):\s+((?:.+\n?(?!- ))+)", re.MULTILINE
)


class DropStatement(Operator):  # type: ignore[misc]
    """Leaves out a call, a request of a procedure, or an assignment to an attribute or an item.

    cosmic-ray has none that leaves out statements. What ``__init__`` assigns is not left out: that
    an attribute is missing is noticed by the first test there is.
    """

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type == "simple_stmt" and self._has_effect(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        first = node.children[0]
        node.children[0] = Keyword("pass", first.start_pos, prefix=first.get_first_leaf().prefix)
        return node

    @staticmethod
    def _has_effect(statement: Any) -> bool:
        if statement.type == "expr_stmt":
            function = statement.search_ancestor("funcdef")
            target, operator = statement.children[:2]
            return (
                target.type == "atom_expr"
                and operator.type in ("operator", "augassign")
                and function is not None
                and function.name.value != "__init__"
            )
        return statement.type in ("atom_expr", "yield_expr", "del_stmt")

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        return ()


cosmic_ray.plugins.OPERATOR_PROVIDERS["here"] = {"DropStatement": DropStatement}


@dataclass(frozen=True)
class Mutant:
    """One small change of one module; ``before`` and ``after`` are the lines that differ."""

    path: str
    function: str
    line: int
    before: str
    after: str
    source: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """By which it is listed as equivalent."""
        return self.path.removeprefix("milvus_lifecycle/"), self.function, self.before, self.after

    def __str__(self) -> str:
        path, function, before, after = self.key
        return f"`{path}` `{function}`: `{before}` becomes {f'`{after}`' if after else 'nothing'}"


def make_mutant(mutation: MutationSpec) -> Mutant:
    source = mutation.module_path.read_text()
    operator = cosmic_ray.plugins.get_operator(mutation.operator_name)(**mutation.operator_args)
    mutated = mutate_code(source, operator, mutation.occurrence)
    if mutated is None:
        sys.exit("the session is of other sources than these; begin another")
    old, new = source.splitlines(), mutated.splitlines()
    changes = [
        change
        for change in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        if change[0] != "equal"
    ]
    return Mutant(
        str(mutation.module_path),
        mutation.definition_name or "-",
        mutation.start_pos[0],
        _text(line for change in changes for line in old[change[1] : change[2]]),
        _text(line for change in changes for line in new[change[3] : change[4]]),
        mutated,
    )


def _text(lines: Iterable[str]) -> str:
    return " ".join(" ".join(lines).split())


class Wanted(WorkDB):  # type: ignore[misc]
    """A session that takes in no noise."""

    def add_work_items(self, work_items: Iterable[WorkItem]) -> None:
        super().add_work_items(item for item in work_items if not _is_noise(item.mutations[0]))


def fill(session: str, base: str | None) -> None:
    """Write the mutants into a new session; those of lines that have not changed are skipped."""
    config = load_config(CONFIG)
    # What cosmic-ray's own filter does mutant by mutant, which takes minutes.
    excluded = re.compile("|".join(config.sub("filters", "operators-filter")["exclude-operators"]))
    providers = cosmic_ray.plugins.OPERATOR_PROVIDERS
    providers["core"] = {
        name: providers["core"][name]
        for name in providers["core"]
        if not excluded.match(f"core/{name}")
    }
    db = Wanted(session, WorkDB.Mode.create)
    if db.num_work_items:
        return
    init(sorted(find_modules(map(Path, config["module-path"]))), db, {})
    db.close()
    if base is not None:
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as asked:
            asked.write(f'[cosmic-ray.filters.git-filter]\nbranch = "{base}"\n')
            asked.flush()
            GitFilter().main([session, "--config", asked.name])


def _is_noise(mutation: MutationSpec) -> bool:
    """True for how a class is declared, and for what another operator does as well."""
    lines = mutation.module_path.read_text().splitlines()[
        mutation.start_pos[0] - 1 : mutation.end_pos[0]
    ]
    if "Replace" in mutation.operator_name and lines[0].lstrip().startswith("@"):
        return True  # slots, eq, repr: no behaviour, or mypy's
    if lines[-1][mutation.end_pos[1] :].startswith(",") and "_Mul_" in mutation.operator_name:
        return True  # the star of keyword-only parameters
    if mutation.operator_name == "core/AddNot":
        lines[-1] = lines[-1][: mutation.end_pos[1]]
        lines[0] = lines[0][mutation.start_pos[1] :]
        condition: ast.AST = ast.parse(f"({chr(10).join(lines)})", mode="eval").body
        # `not a is b` is `a is not b`, and `not not a` is `a`.
        return isinstance(condition, ast.Compare) or (
            isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not)
        )
    return False


def order(items: Iterable[WorkItem], count: int | None, seed: int) -> list[WorkItem]:
    """All in a random order that ``seed`` decides, or ``count``, from each module in proportion."""
    source = random.Random(seed)
    modules: dict[Path, list[WorkItem]] = defaultdict(list)
    for item in sorted(items, key=_place):
        modules[item.mutations[0].module_path].append(item)
    total = sum(map(len, modules.values()))
    share = 1.0 if count is None else min(1.0, count / max(total, 1))
    taken = [
        item
        for members in modules.values()
        for item in source.sample(members, max(1, round(share * len(members))))
    ]
    source.shuffle(taken)
    return taken


def _place(item: WorkItem) -> tuple[Any, ...]:
    mutation = item.mutations[0]
    where = str(mutation.module_path), mutation.start_pos
    return *where, mutation.operator_name, mutation.occurrence


class Tree:
    """A copy of the repository, and a process in it that runs tests."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        shutil.copytree(
            model, folder, ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache", "site")
        )
        # Outside the copy, the package that is installed would be the repository's own.
        self.environment = {**os.environ, "PYTHONPATH": str(folder)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server"],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def compile(self) -> None:
        """Have everything compiled: the children that run tests keep nothing of it."""
        command = [sys.executable, "-m", "pytest", *_PYTEST, "--collect-only"]
        command += [*_MEASURED, "tests/simulation"]
        subprocess.run(
            command, cwd=self.folder, env=self.environment, check=True, stdout=subprocess.DEVNULL
        )

    def ask(self, arguments: list[str], limit: float) -> tuple[int | None, str]:
        """Run pytest: (its exit code, None for a hang; the end of what it has said)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"arguments": arguments, "limit": limit}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["code"], answer["said"]

    def kill(self, mutant: Mutant, rounds: list[tuple[list[str], float]]) -> str | None:
        """What kills it; None if nothing does."""
        path = self.folder / mutant.path
        original, times = path.read_text(), path.stat()
        path.write_text(mutant.source)
        try:
            return next(filter(None, (self._round(*each) for each in rounds)), None)
        finally:
            path.write_text(original)
            # What was compiled before is valid again.
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    def _round(self, tests: list[str], seconds: float) -> str | None:
        options = [*_PYTEST, *_ONE, f"--timeout={20 + 3 * seconds:.0f}"]
        while tests:
            code, said = self.ask([*options, *tests], 60 + 5 * seconds)
            if code in (None, 0, _NONE_LEFT):
                return "a hang" if code is None else None
            missing = {it.partition("/tests/")[2] for it in _NOT_FOUND.findall(said)}
            if any(f"tests/{it}" in tests for it in missing):
                # A case that is not made any more is no failure.
                tests = [test for test in tests if test.removeprefix("tests/") not in missing]
                continue
            failed = _FAILED.findall(said)
            if not failed:
                return f"pytest's exit code {code}: {said[-500:]}"
            if self.ask([*options, failed[0]], 60 + 5 * seconds)[0] != 0:
                return str(failed[0])
            # Whatever passes at the second try has failed by chance.
            tests = [*tests, f"--deselect={failed[0]}"]
        return None


class Reach:
    """Which tests run a line, and how long they take."""

    def __init__(self, measured: dict[str, Any]) -> None:
        self._seconds: dict[str, float] = measured["seconds"]
        self._lines: dict[str, dict[str, list[int]]] = measured["lines"]
        self._tests = list(self._seconds)

    def rounds(self, mutant: Mutant) -> list[tuple[list[str], float]]:
        """The tests that may notice this mutant, in rounds, with the seconds that each takes."""
        measured = self._measured(mutant)
        first = _within(measured, self._seconds, FIRST_ROUND)
        rounds = [first, _within(measured - set(first[0]), self._seconds, BUDGET - FIRST_ROUND)]
        if mutant.path.startswith(_SIMULATED):
            rounds.append(([*_SIMULATION, "-m", _QUICK], _SIMULATION_TAKES))
        return [(tests, seconds) for tests, seconds in rounds if tests]

    def _measured(self, mutant: Mutant) -> set[str]:
        """Those that run its line, and those of its subject: they may do so in another process."""
        lines = {int(line): tests for line, tests in self._lines[mutant.path].items()}
        if mutant.before.startswith("@"):  # runs on import; the function under it does not
            line = min((it for it in lines if it > mutant.line and lines[it]), default=0)
        else:  # the first line of its statement, or what came before it
            line = max((it for it in lines if it <= mutant.line), default=0)
        # None, if that runs on import.
        found = lines.get(line) or {test for tests in lines.values() for test in tests}
        subject = f"tests/unit/test_{Path(mutant.path).stem}.py::"
        return {self._tests[it] for it in found} | {
            test for test in self._tests if test.startswith(subject)
        }


def measure(tree: Tree, workers: int) -> dict[str, Any]:
    """Run the tests once, and see which lines each of those that pass runs."""
    data = tree.folder / "reach.coverage"
    command = [sys.executable, "-m", "pytest", *_PYTEST, *_MEASURED, "-m", _QUICK]
    command += ["-vvv", "--durations=0", "-n", str(workers), "--dist", "worksteal"]
    command += ["--cov", "--cov-config=pyproject.toml", "--cov-context=test", "--cov-report="]
    environment = {**tree.environment, "COVERAGE_FILE": str(data)}
    done = subprocess.run(command, cwd=tree.folder, env=environment, capture_output=True, text=True)
    failed = _FAILED.findall(done.stdout)
    if done.returncode not in (0, 1) or len(failed) > _FAIL_BY_CHANCE:
        sys.exit(f"{done.stdout[-5000:]}{done.stderr}\nthe tests fail without any mutant")
    for test in failed:
        print(f"fails without any mutant, and is not asked: {test}", flush=True)
    seconds: dict[str, float] = defaultdict(float)
    for duration, test in _DURATION.findall(done.stdout):
        if test not in failed:
            seconds[test] += float(duration)
    numbers = {test: number for number, test in enumerate(seconds)}
    covered = CoverageData(str(data))
    covered.read()
    lines = {
        path: {
            line: sorted({numbers.get(it.rpartition("|")[0], -1) for it in contexts} - {-1})
            for line, contexts in covered.contexts_by_lineno(path).items()
        }
        for path in covered.measured_files()
    }
    return {"seconds": seconds, "lines": lines}


def _within(tests: set[str], seconds: dict[str, float], budget: float) -> tuple[list[str], float]:
    """The quickest of ``tests`` that take at most ``budget`` together, and what they take."""
    taken, spent = [], 0.0
    for test in sorted(tests, key=lambda test: (seconds[test], test)):
        if spent + seconds[test] > budget:
            break
        taken.append(test)
        spent += seconds[test]
    return taken, spent


def run(db: WorkDB, items: list[WorkItem], workers: int, minutes: float, reached: Path) -> None:
    """Try each mutant, and note what became of it; begin none after so many minutes."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        trees = [Tree(Path(folder) / "tree-0", ROOT)]
        trees[0].compile()
        for number in range(1, workers):
            trees.append(Tree(Path(folder) / f"tree-{number}", trees[0].folder))
        try:
            if not reached.exists():
                # Most tests wait most of the time.
                reached.write_text(json.dumps(measure(trees[0], 2 * workers)))
            reach = Reach(json.loads(reached.read_text()))
            until = time.monotonic() + 60 * minutes
            print(f"{len(items)} mutants, {workers} at once", flush=True)
            attempts = _begin(pool, trees, reach, items, until)
            for number, done in enumerate(as_completed(attempts), 1):
                if (result := done.result()) is not None:
                    job, mutant, death = result
                    outcome = TestOutcome.KILLED if death else TestOutcome.SURVIVED
                    note = WorkResult(WorkerOutcome.NORMAL, death, outcome, str(mutant))
                    db.set_result(job, note)
                    print(f"{number:5} {death or 'SURVIVED'}  {mutant.line}: {mutant}", flush=True)
            _check(trees[0], db)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for tree in trees:
                tree.close()


def _begin(
    pool: ThreadPoolExecutor, trees: list[Tree], reach: Reach, items: list[WorkItem], until: float
) -> list[Future[tuple[str, Mutant, str | None] | None]]:
    idle: queue.SimpleQueue[Tree] = queue.SimpleQueue()
    for tree in trees:
        idle.put(tree)

    def attempt(item: WorkItem) -> tuple[str, Mutant, str | None] | None:
        if time.monotonic() > until:
            return None
        mutant = make_mutant(item.mutations[0])
        tree = idle.get()
        try:
            return item.job_id, mutant, tree.kill(mutant, reach.rounds(mutant))
        finally:
            idle.put(tree)

    return [pool.submit(attempt, item) for item in items]


def _check(tree: Tree, db: WorkDB) -> None:
    """Whatever has killed a mutant has to pass without one, run in the same way."""
    deaths = sorted({result.output for _, result in db.results if "::" in (result.output or "")})
    for first in range(0, len(deaths), 100):
        code, said = tree.ask([*_PYTEST, *_ONE[1:], *deaths[first : first + 100]], 3600)
        if code != 0:
            sys.exit(f"{said}\nfails without a mutant, too: what such a test kills says nothing")


def listed(section: str) -> dict[str, str]:
    """The mutants of a section of docs/testing.md, and why; each has to be one of today's text."""
    text = DOCS.read_text().partition(f"### {section}\n")[2].partition("\n#")[0]
    found = {}
    for path, function, before, after, why in _LISTED.findall(text):
        if before not in _text((ROOT / "milvus_lifecycle" / path).read_text().splitlines()):
            sys.exit(f"{DOCS} lists a mutant of a line that {path} has not: {before}")
        found[str(Mutant(path, function, 0, before, after, ""))] = " ".join(why.split())
    return found


def report(db: WorkDB, sample: list[WorkItem], all_count: int, seed: int) -> bool:
    """Print what became of the mutants of a sample; True if enough of them died."""
    equivalent, known = listed("Equivalent mutants"), listed("Survivors")
    drawn = {item.job_id for item in sample}
    fates: Counter[str] = Counter()
    survivors, doubtful = [], []
    for item, result in db.completed_work_items:
        if item.job_id not in drawn or result.worker_outcome is not WorkerOutcome.NORMAL:
            continue
        mutant, fate = result.diff, "killed" if result.is_killed else "survived"
        if mutant in equivalent:
            doubtful += [f"- {mutant}: by {result.output}"] * result.is_killed
            fate = "equivalent"
        elif fate == "survived":
            survivors.append(f"- {mutant}: {known.get(mutant, 'WHY?')}")
        fates[fate] += 1
    tried, judged = fates.total(), fates["killed"] + fates["survived"]
    rate = 100 * fates["killed"] / judged if judged else 100.0
    low, high = wilson(fates["killed"], judged)
    print(f"\n{all_count:,} mutants; {len(sample):,} drawn (seed {seed}), {tried:,} of them tried:")
    print(", ".join(f"{fates[fate]:,} {fate}" for fate in ("equivalent", "killed", "survived")))
    print(f"{rate:.1f} % of those that are not equivalent died")
    print(f"(95 % confidence: {low:.1f} % to {high:.1f} % of all such mutants)")
    print("\n".join(["survivors:", *sorted(survivors)]))
    if doubtful:
        print("\n".join(["listed as equivalent, and yet killed:", *sorted(doubtful)]))
    return rate >= FLOOR


def wilson(killed: int, tried: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share, in percent, by Wilson's score."""
    if not tried:
        return 0.0, 100.0
    z, share = 1.96, killed / tried
    middle = share + z * z / (2 * tried)
    half = z * math.sqrt(share * (1 - share) / tried + z * z / (4 * tried * tried))
    return tuple(100 * (middle + side) / (1 + z * z / tried) for side in (-half, half))  # type: ignore[return-value]


def find_base() -> str:
    """The commit against which lines are changed: where main was left, or the one before."""
    head = _git("rev-parse", "HEAD")
    for main in ("origin/main", "main"):
        base = _git("merge-base", "HEAD", main)
        if base and base != head:
            return base
    base = _git("rev-parse", "HEAD~1")
    if not base:
        print("no git history here: nothing says which lines have changed, so no mutant is tried")
        sys.exit(0)
    return base


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Try whether tests notice small changes.")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn from each module")
    parser.add_argument("--seed", type=int, default=11, help="decides the sample and the order")
    parser.add_argument("--changed", action="store_true", help="only those of changed lines")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin none after it")
    parser.add_argument(
        "--session", help="cosmic-ray's session file; what is in it is gone on with"
    )
    parser.add_argument("-n", dest="workers", type=int, default=2, help="mutants at once")
    options = parser.parse_args()
    os.chdir(ROOT)
    listed("Equivalent mutants"), listed("Survivors")  # before anything that takes long
    with tempfile.TemporaryDirectory() as folder:
        session = options.session or f"{folder}/session.sqlite"
        base = find_base() if options.changed else None
        fill(session, base)
        with use_db(session) as db:
            fates = {job: result.worker_outcome for job, result in db.results}
            all_items = [
                it for it in db.work_items if fates.get(it.job_id) != WorkerOutcome.SKIPPED
            ]
            sample = order(all_items, options.sample, options.seed)
            if not sample:
                print("no line of core, drivers or endpoints has changed that a mutant is made of")
                return
            items = [item for item in sample if item.job_id not in fates]
            reached = Path(session).with_suffix(".reach")
            if items:
                run(db, items, options.workers, options.minutes, reached)
            enough = report(db, sample, len(all_items), options.seed)
    if not enough:
        sys.exit(f"fewer than {FLOOR:.0f} % died")


if __name__ == "__main__":
    main()

"""All sound records of some logs, one after the other, for whoever folds them into something."""

from __future__ import annotations

from collections.abc import Iterator

from .decoding import decode_or_explain
from .lines import LineReader, Progress
from .problems import Problem, Problems
from .records import Record, decode
from .rules import Verifier
from .sources import Sources


def read_records(
    sources: Sources,
    problems: Problems,
    on_progress: Progress | None = None,
    verifier: Verifier | None = None,
) -> Iterator[Record]:
    """Records in the order of the logs. What cannot be read is left out and told to ``problems``.

    Nothing is raised for bad input. Whether the records are legal is only looked at by a
    ``verifier``, if there is one; it keeps the problems then.
    """

    def tell(problem: Problem) -> None:
        if verifier is None:
            problems.add(problem)
        else:
            verifier.damage(problem.kind, problem.line, problem.message)

    for problem in sources.problems:
        problems.add(problem)
    for path in sources.paths:
        if verifier is not None:
            verifier.begin(path)
        for part in LineReader(path, None, on_progress):
            if isinstance(part, Problem):
                tell(part)
                continue
            for number, line in enumerate(part.lines, part.first):
                try:
                    records = [decode(line)]
                except (ValueError, RecursionError):
                    records, findings = decode_or_explain(line, part.complete)
                    for kind, message in findings:
                        tell(Problem(kind, path, number, message))
                for record in records:
                    if verifier is not None:
                        verifier.check(record, number)
                    yield record

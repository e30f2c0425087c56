"""Without msgspec: everything is found that is found with it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

from milvus_lifecycle.replay.decoding import decode_or_explain
from milvus_lifecycle.replay.structs import FAST
from milvus_lifecycle.replay.verify import verify_logs
from tests.corruption import CORRUPTIONS, Victim, encode

WITHOUT = """
import sys
sys.modules["msgspec"] = None  # as if it were not installed
import json
from milvus_lifecycle.replay.structs import FAST
assert not FAST
"""

VERIFY = (
    WITHOUT
    + """
from milvus_lifecycle.replay.verify import verify_logs
for line in sys.stdin:
    verdict = verify_logs([line.strip()])
    kept = [(str(one.kind), one.line, one.connection_id) for one in verdict.problems.kept]
    print(json.dumps([verdict.records, verdict.connections, kept]))
"""
)

DECODE = (
    WITHOUT
    + """
from milvus_lifecycle.replay.decoding import decode_or_explain
for line in sys.stdin:
    records, findings = decode_or_explain(bytes.fromhex(line))
    told = [[type(one).__name__, one.ts.isoformat(), one.connection_id] for one in records]
    print(json.dumps([told, [str(kind) for kind, _ in findings]]))
"""
)


def run(script: str, lines: list[str]) -> list[object]:
    """Run ``script`` in a process of its own; what it printed, decoded line by line."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_corruption_is_found_without_msgspec(tmp_path: Path) -> None:
    """The extra makes verify faster, and changes no verdict."""
    assert FAST, "the test extra brings msgspec"
    paths = []
    for name, corrupt in CORRUPTIONS.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(corrupt(Victim(21)).data)
        paths.append(str(path))
    for name, plain in zip(paths, run(VERIFY, paths), strict=True):
        verdict = verify_logs([name])
        kept = [[str(one.kind), one.line, one.connection_id] for one in verdict.problems.kept]
        assert plain == [verdict.records, verdict.connections, kept], name


def test_both_decoders_agree_on_damaged_lines() -> None:
    """Whatever happens to the bytes of a line, both decoders see the same in it."""
    chance = random.Random(17)
    sound = [encode(record) for record in Victim(3).records]
    lines = []
    for _ in range(4000):
        line = bytearray(chance.choice(sound))
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(line))
            cut = chance.choice((b"", bytes([chance.randrange(256)]), b"1", b'"', b"null", b"{"))
            line[at : at + chance.randint(0, 2)] = cut
        lines.append(bytes(line).replace(b"\n", b" "))
    plain = run(DECODE, [line.hex() for line in lines])
    for damaged, told in zip(lines, plain, strict=True):
        records, findings = decode_or_explain(damaged)
        mine = [[type(one).__name__, one.ts.isoformat(), one.connection_id] for one in records]
        assert told == [mine, [str(kind) for kind, _ in findings]], damaged

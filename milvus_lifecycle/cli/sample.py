"""``milvus-lifecycle audit sample``: writes a made-up log to try the tools or a collector with."""

from __future__ import annotations

import argparse
import json
import sys

from ..replay.synthetic import synthetic_records

SUMMARY = "write a made-up but legal log, to try the tools or a collector with"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``audit sample``."""
    parser.add_argument("-n", "--records", type=int, default=5000, metavar="N")
    parser.add_argument("--seed", type=int, default=1, help="the same seed, the same log")
    parser.add_argument("--connections", type=int, default=40, metavar="N")
    parser.add_argument("--addresses", type=int, default=4, metavar="N")
    parser.add_argument("-o", "--output", default="-", metavar="FILE", help="default: stdout")


def execute(options: argparse.Namespace) -> int:
    """Write the log; returns the exit code."""
    records = synthetic_records(
        max(0, options.records),
        seed=options.seed,
        connections=max(1, options.connections),
        addresses=max(1, options.addresses),
    )
    if options.output == "-":
        for record in records:
            sys.stdout.write(json.dumps(record, separators=(",", ":")) + "\n")
        return 0
    try:
        with open(options.output, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
    except OSError as error:
        print(f"{options.output}: cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    return 0

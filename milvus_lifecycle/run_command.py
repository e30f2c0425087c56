"""`milvus-lifecycle run app.py`: an unchanged program, with its MilvusClients on the engine."""

from __future__ import annotations

import argparse
import os
import runpy
import sys

from .errors import ConfigError


def configure(parser: argparse.ArgumentParser) -> None:
    """The program and its own arguments."""
    parser.add_argument(
        "--audit", metavar="FILE", help="write the audit records there, as JSON lines"
    )
    parser.add_argument("-m", dest="module", action="store_true", help="run a module by its name")
    parser.add_argument("program", help="path of the program, or the module's name with -m")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the program is given")


def execute(options: argparse.Namespace) -> int:
    """Install the engine, then become the program; its own exit code is ours."""
    import milvus_lifecycle

    try:
        milvus_lifecycle.install(audit=options.audit)
    except (ConfigError, ImportError) as error:
        print(f"milvus-lifecycle run: {error}", file=sys.stderr)
        return 2
    if not options.module and not os.path.exists(options.program):
        print(f"milvus-lifecycle run: there is no program {options.program!r}", file=sys.stderr)
        return 2
    sys.argv = [options.program, *options.arguments]
    if options.module:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(options.program, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(options.program)))
        runpy.run_path(options.program, run_name="__main__")
    return 0

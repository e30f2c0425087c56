"""`milvus-lifecycle run app.py`: an unchanged program, with its MilvusClients on the engine.

Python itself runs the program: this process becomes `python app.py`, with a folder on PYTHONPATH
whose `sitecustomize` installs the engine (bootstrap/sitecustomize.py). Its Python children inherit
that, and what it has installed, by their environment.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

import milvus_lifecycle

from ..audit.jsonl import ENVIRONMENT as AUDIT
from ..errors import ConfigError
from ..managers import RUN, VARIABLES, choose_policy
from . import PROGRAM, Refused

_BOOTSTRAP = os.path.join(os.path.dirname(os.path.abspath(milvus_lifecycle.__file__)), "bootstrap")


def configure(parser: argparse.ArgumentParser) -> None:
    """The program and its own arguments."""
    parser.epilog = f"""examples:
  {PROGRAM} run app.py --port 8000
  {PROGRAM} run --audit audit.jsonl --policy recovery_budget=30 -m uvicorn app:app

It is `python app.py` on the engine: exit code, signals and tracebacks are the program's. 2
before it has started: an option or an environment variable of the engine's cannot be used,
or pymilvus is missing."""
    add = parser.add_argument
    add("--audit", metavar="FILE", help="write the audit records there, as JSON lines")
    policy = "a field of LifecyclePolicy, such as recovery_budget=30 or linger=none (repeatable)"
    add("--policy", type=parse_field, action="append", metavar="FIELD=VALUE", help=policy)
    add("-m", dest="module", action="store_true", help="run a module by its name")
    add("program", help="path of the program, or the module's name with -m")
    add("arguments", nargs=argparse.REMAINDER, help="what the program is given")


def execute(options: argparse.Namespace) -> int:
    """Become the program; returns on Windows only. Refused: the engine cannot be had in it."""
    from ..integrations.pymilvus import what_to_install

    given = dict(options.policy or ())
    try:
        _, audit = what_to_install(choose_policy(None, given), options.audit)
    except (ConfigError, ImportError) as error:
        raise Refused(str(error)) from error
    if sys.flags.ignore_environment or sys.flags.no_site:
        raise Refused("the engine cannot be handed to a Python with -I, -E or -S")
    path = os.pathsep.join(filter(None, (_BOOTSTRAP, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, RUN: sys.prefix, "PYTHONPATH": path}
    if audit is not None:
        environment[AUDIT] = audit
    # As variables, so that an install() of the program's own takes them as it takes the user's.
    environment.update({VARIABLES[field]: value for field, value in given.items()})
    how = ["-m"] if options.module else []
    flags = interpreter_flags(sys.orig_argv[1:])
    return _become([sys.executable, *flags, *how, options.program, *options.arguments], environment)


def parse_field(text: str) -> tuple[str, str]:
    """The argument of --policy: a field that there is, and a value that is looked at later."""
    field, _, value = text.partition("=")
    if field not in VARIABLES:
        raise argparse.ArgumentTypeError(
            f"{text!r}: LifecyclePolicy has no field {field!r}; it has {', '.join(VARIABLES)}"
        )
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r} names no value, as in {field}=30")
    return field, value


def interpreter_flags(words: Sequence[str]) -> list[str]:
    """Python's own options at the start of its command line: before -m, -c or the script."""
    flags = []
    rest = iter(words)
    for word in rest:
        option = re.fullmatch(r"-([^-cmWX]*)(.*)", word, re.DOTALL)
        if option is None or word == "-":
            break
        letters, last = option.groups()
        if last.startswith(("c", "m")):  # -um: the end, with flags before it
            flags += [f"-{letters}"] if letters else []
            break
        flags.append(word)
        if last in ("W", "X") or last.startswith("-"):  # -W error, --check-hash-based-pycs always
            flags.append(next(rest))
    return flags


def _become(command: list[str], environment: Mapping[str, str]) -> int:
    if sys.stdout is not None:  # a sitecustomize of the user's may have printed
        sys.stdout.flush()
    if sys.platform != "win32":
        os.execve(command[0], command, environment)
    # There the shell would take the end of this process for the end of the program.
    process = subprocess.Popen(command, env=environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the program by itself
    return process.wait()

"""The command line: finds the subcommand's module and hands over to it.

Each subcommand is one line in `COMMANDS` and a module of that name here, with two functions:

    configure(parser: argparse.ArgumentParser) -> None    adds the options
    execute(options: argparse.Namespace) -> int           does the work, returns the exit code

Only the module of the subcommand that was asked for is imported, so that `--help` needs no extra
and a missing extra of one subcommand does not break another.

Exit codes: 0 success, 1 the command's own verdict is negative, 2 wrong usage or could not run
(`Refused`), 130 interrupted by Ctrl-C; `run` ends as its program does.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Collection, Sequence

from milvus_lifecycle import __version__

PROGRAM = "milvus-lifecycle"

USAGE_ERROR = 2
INTERRUPTED = 130
#: Package: the extra that brings it.
_EXTRAS = {"msgspec": "audit", "bokeh": "report", "certifi": "global", "shtab": "completion"}

#: Subcommand, which is the name of its module here: what it does.
COMMANDS = {
    "demo": "kill a real server under an unmodified MilvusClient program and watch the connections",
    "probe": "look at a server step by step: name, TCP, TLS, version, latency",
    "run": "run an unchanged program with its MilvusClients on the engine",
    "diagram": "draw the lifecycle from the table, or from what audit logs say of it",
    "audit": "verify, count, follow and show audit logs",
}


_EPILOG = f"""examples:
  {PROGRAM} demo
  {PROGRAM} run --audit audit.jsonl app.py
  {PROGRAM} probe http://localhost:19530
  {PROGRAM} audit stats audit.jsonl
  {PROGRAM} COMMAND --help

Exit codes: 0 done, or the verdict is good; 1 the verdict is bad (a call failed, a log is
not legal, a server is not healthy, a drawing is out of date); 2 wrong usage, or something
that is needed is missing; 130 Ctrl-C. run ends as its program does. Colours are for
terminals, and NO_COLOR switches them off."""


class Help(argparse.HelpFormatter):
    """Wraps paragraphs, as ever, and leaves examples as they are: what has indented lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        paragraphs = text.split("\n\n")
        return "\n\n".join(
            each if "\n  " in each else fill(each, width, indent) for each in paragraphs
        )


class Refused(Exception):
    """A command could not run; the text says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (argparse itself exits with 2 on bad usage)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Windows redirects in a code page without arrows: better a question mark than an end.
        sys.stdout.reconfigure(errors="replace")
    try:
        code = _execute(words)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough (| head). Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Refused as error:
        why = f" {words[0]}: {error}"
    except ImportError as error:
        extra = _EXTRAS.get(error.name or "")
        if extra is None:
            raise
        why = f": this needs {error.name}: pip install 'milvus_lifecycle[{extra}]'"
    print(f"{PROGRAM}{why}", file=sys.stderr)
    return USAGE_ERROR


def build_parser(names: Collection[str]) -> argparse.ArgumentParser:
    """The command line. Those subcommands have their options, too, and are imported for it."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Connection lifecycle engine for the Milvus Python SDK.",
        epilog=_EPILOG,
        formatter_class=Help,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    shells = "print what makes this shell complete the command line (needs the extra completion)"
    parser.add_argument("--completion", choices=("bash", "zsh", "tcsh"), help=shells)
    parser.set_defaults(execute_command=None)
    children = parser.add_subparsers(title="subcommands", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        text = summary[0].upper() + summary[1:] + "."
        child = children.add_parser(name, help=summary, description=text, formatter_class=Help)
        if name in names:
            module = importlib.import_module(f"{__name__}.{name}")
            module.configure(child)
            child.set_defaults(execute_command=module.execute)
    return parser


def _execute(words: list[str]) -> int:
    first = next((word for word in words if not word.startswith("-")), "")
    parser = build_parser([first])
    options = parser.parse_args(words)  # which explains what there is, for any other word
    if options.completion is not None:
        print(_completion(options.completion))
        return 0
    if options.execute_command is None:
        parser.print_help(sys.stderr)
        return USAGE_ERROR
    return int(options.execute_command(options))


def _completion(shell: str) -> str:
    import shtab

    def mark(parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for child in action.choices.values():
                    mark(child)
            elif action.metavar in ("FILE", "LOG", "DIR") or action.dest == "program":
                action.complete = shtab.FILE  # type: ignore[attr-defined]

    parser = build_parser(COMMANDS)
    mark(parser)
    return str(shtab.complete(parser, shell))

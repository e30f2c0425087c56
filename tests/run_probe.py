"""A program that prints all it can see of how it was started: `python app.py` or otherwise.

`tests/unit/test_run_command.py` runs copies of it. Its first argument says how it ends.
"""

import atexit
import doctest
import inspect
import json
import multiprocessing.spawn
import os
import pickle
import signal
import sys
import threading
import typing
from dataclasses import dataclass


@dataclass
class Thing:
    """A class of __main__.

    >>> Thing(3).number + 1
    4
    """

    number: "int"


def pickles(moment: str) -> None:
    try:
        again = pickle.loads(pickle.dumps(Thing(1))) == Thing(1)
    except Exception as error:
        again = repr(error)
    print(json.dumps({moment: again}), flush=True)


def describe_main() -> dict[str, object]:
    main = sys.modules["__main__"]
    spec, loader = main.__spec__, main.__loader__
    return {
        "is this": vars(main) is globals(),
        "names": sorted(vars(main)),
        "plain": {
            name: repr(value)
            for name, value in vars(main).items()
            if isinstance(value, (str, int, dict, type(None))) and name != "__builtins__"
        },
        "builtins": type(__builtins__).__name__,
        "spec": spec and [spec.name, spec.origin, spec.parent, spec.cached, spec.has_location],
        "loader": [
            repr(type(loader)),
            getattr(loader, "name", None),
            getattr(loader, "path", None),
        ],
    }


def describe_interpreter() -> dict[str, object]:
    streams: tuple[typing.Any, ...] = (sys.stdin, sys.stdout, sys.stderr)
    return {
        "argv": sys.argv,
        "orig_argv": sys.orig_argv[1:],
        "path": sys.path,
        "path_importer_cache": sorted(sys.path_importer_cache),
        "flags": repr(sys.flags),
        "options": [sys.warnoptions, sys._xoptions],
        "modules": sorted(sys.modules),
        "sitecustomize": getattr(sys.modules.get("sitecustomize"), "__file__", None),
        "meta_path": [getattr(one, "__name__", type(one).__name__) for one in sys.meta_path],
        "path_hooks": len(sys.path_hooks),
        "hooks": [repr(type(hook)) for hook in (sys.excepthook, sys.gettrace(), sys.getprofile())],
        "streams": [[s.name, s.line_buffering, s.write_through, s.encoding] for s in streams],
        "limits": [sys.getrecursionlimit(), sys.getswitchinterval()],
        "executable": [sys.executable, sys.prefix, sys.exec_prefix],
    }


def describe_process() -> dict[str, object]:
    return {
        "environ": dict(os.environ),
        "cwd": os.getcwd(),
        "umask": os.umask(os.umask(0)),
        "signals": [repr(signal.getsignal(number)) for number in signal.valid_signals()],
        "mask": [repr(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "descriptors": sorted(os.listdir("/dev/fd")),
        "threads": [thread.name for thread in threading.enumerate()],
        "atexit": atexit._ncallbacks(),
    }


def describe_tools() -> dict[str, object]:
    """What looks for __main__ from outside: tools that read its source, and spawned children."""
    preparation = multiprocessing.spawn.get_preparation_data("child")
    preparation.pop("authkey")
    try:
        source = inspect.getsource(Thing)
    except OSError as error:  # standard input, or compiled without its source
        source = repr(error)
    return {
        "depth": len(inspect.stack()),
        "source": source,
        "hints": repr(typing.get_type_hints(Thing)),
        "doctest": list(doctest.testmod()),
        "spawn": preparation,
    }


def outlive() -> None:
    threading.main_thread().join()
    pickles("in a thread that outlives the script")


describe = (describe_main, describe_interpreter, describe_process, describe_tools)
if __name__ == "__main__":
    for each in describe:
        print(json.dumps(each()), flush=True)
    pickles("in the script")
    atexit.register(pickles, "at exit")
    threading.Thread(target=outlive).start()
    end = sys.argv[1] if sys.argv[1:] else ""
    if end == "error":
        raise LookupError(end)
    if end == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(60)
    if end == "hook":
        sys.excepthook = lambda kind, value, trace: print(
            trace and inspect.getinnerframes(trace)[0].function
        )
        raise LookupError(end)
    if end.startswith("exit"):
        sys.exit({"exit": None, "exit 3": 3, "exit words": "words"}[end])

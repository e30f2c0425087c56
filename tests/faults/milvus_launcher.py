"""Becomes Milvus 2.3.5: reads its options, writes its configuration, then executes its binary.

`python milvus_launcher.py SITE DATA OPTION=VALUE ...`; SITE is a folder that holds the PyPI package
`milvus`. The package's own `milvus-server` is not used: it takes the next port when its own is in
TIME_WAIT after a kill, and its way to stop is SIGKILL after a second.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any


def bind_again(config: object, port: int) -> socket.socket | None:
    """A socket on a port that the server before left a moment ago, or None; it never listens."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind(("127.0.0.1", port))
    except OSError:
        holder.close()
        return None
    return holder


def read_value(text: str) -> str | int | bool:
    """What the configuration wants: numbers and booleans as such."""
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.isdigit() else text


def main(site: str, data: str, *options: str) -> None:
    """Replace this process by the server, so that a signal to it is a signal to Milvus."""
    sys.path.insert(0, site)
    import milvus

    config_class: Any = milvus.MilvusServerConfig
    config_class.try_bind_port = bind_again
    config = config_class()
    config.configs["data_dir"] = data
    config.resolve_storage()
    for option in options:
        name, _, value = option.partition("=")
        config.set(name, read_value(value))
    config.resolve()
    web_port, web = config.resolve_port(9091)
    web.close()
    binaries = Path(site, "unpacked", "bin")
    environment = {
        **os.environ,
        "DEPLOY_MODE": "STANDALONE",
        "METRICS_PORT": str(web_port),
        "MILVUS_RUN_DIR": str(Path(data, "run")),
        "LD_LIBRARY_PATH": str(binaries),
    }
    os.chdir(data)
    os.execve(binaries / "milvus", ["milvus", "run", "standalone"], environment)


if __name__ == "__main__":
    main(*sys.argv[1:])

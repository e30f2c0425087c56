"""Names that end in `.localhost`, resolved to this machine."""

from __future__ import annotations

import socket
from typing import Any

ADDRESS = "127.0.0.1"


def resolve_localhost_names() -> None:
    """Have Python resolve every name that ends in `.localhost` to 127.0.0.1 in this process.

    An endpoint is a global cluster by its host's name, so the demo's needs a name. RFC 6761
    (section 6.3) keeps `.localhost` for this machine, but not every resolver knows (glibc alone
    does not), and a demo does not write to /etc/hosts. Only the topology service is asked by name.
    """
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        local = isinstance(name, str) and name.lower().rstrip(".").endswith(".localhost")
        return resolve(ADDRESS if local else host, *args, **kwargs)

    socket.getaddrinfo = getaddrinfo

"""The program of test_names: a name changes its address in the middle of an outage.

`python -m tests.integration.renamed HOSTS SECONDS PATIENCE`, with HOSTS mounted over /etc/hosts:
the server of the old address is gone, SECONDS later the name has another one. Prints how late (in
seconds) after that each flavour's call was served, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import milvus_lifecycle as ml
from tests.flavours import FLAVOURS, Flavour
from tests.network import free_port
from tests.observe import Call
from tests.servers import FakeMilvus

NAME = "milvus.test"
OLD, NEW = "127.0.0.2", "127.0.0.3"


def entry(address: str) -> str:
    """A line of a hosts file."""
    return f"{address} {NAME}\n"


def served(client: Any) -> tuple[Any, float]:
    """What a client is answered, and when (seconds of time.monotonic)."""
    return client.list_collections(), time.monotonic()


def main(hosts: str, seconds: str, patience: str) -> None:
    ml.install(policy=ml.LifecyclePolicy(backoff_patience=float(patience)))
    port = free_port()
    with FakeMilvus(port, host=OLD) as old, FakeMilvus(port, host=NEW, collections=["new"]):
        clients = [Flavour(each).connected(f"http://{NAME}:{port}") for each in FLAVOURS]
        old.stop()
        calls = [Call(served, client) for client in clients]
        time.sleep(float(seconds))
        # In one piece, so that nobody reads half of it.
        with open(hosts, "r+") as file:
            file.write(entry(NEW))
        renamed = time.monotonic()
        answers = [call.value(60) for call in calls]
        assert [listed for listed, _ in answers] == [["new"], ["new"]]
        late = [at - renamed for _, at in answers]
        print(json.dumps(dict(zip(FLAVOURS, late, strict=True))))
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])

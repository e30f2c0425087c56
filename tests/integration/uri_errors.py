"""What clients say of URIs: `python -m tests.integration.uri_errors engine|stock FOLDER`.

Prints one line of JSON: for each URI and flavour the class of the error (of pymilvus's), its code
and which of pymilvus's phrases are in its message. Milvus Lite is hidden from the process.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

URIS = (
    *("ftp://127.0.0.1:19530", "127.0.0.1:19530", "localhost", "milvus://h:1", "http//127.0.0.1"),
    *("", "   ", "://", "ftp://root:pa55word@h:1", "/no/such/folder/demo.db", "FOLDER/demo.db"),
)
PHRASES = ("is illegal", "milvus-lite is required for local database connections", "pip install")


def main(side: str, folder: str) -> None:
    sys.modules["milvus_lite"] = None  # type: ignore[assignment]
    if side == "engine":
        import milvus_lifecycle as ml

        ml.install()
    from pymilvus.exceptions import ConnectionConfigException, MilvusException

    from tests.flavours import FLAVOURS, Flavour

    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    said: dict[str, Any] = {}
    for uri in URIS:
        for flavour in FLAVOURS:
            try:
                heard: Any = Flavour(flavour).connected(uri.replace("FOLDER", folder))
            except MilvusException as error:
                kind = "config" if isinstance(error, ConnectionConfigException) else str(error)
                phrases = [phrase for phrase in PHRASES if phrase in error.message]
                heard = [kind, int(error.code), phrases]
            said[f"{uri} {flavour}"] = heard
    if side == "engine":
        said["left behind"] = ml.ConnectionManager.get_instance().get_stats()["total_connections"]
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])

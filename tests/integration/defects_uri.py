"""Bodies of the defects of URIs and secrets: D26, D30."""

from __future__ import annotations

import base64

from tests.observe import Call, wait_until
from tests.servers import FakeMilvus
from tests.stock import Env, defect, verdict


@defect()
def d26_a_secret_is_shown_nowhere(env: Env) -> None:
    """Passwords and tokens appear in no stat, repr or stored URI."""
    server = env.server()
    by_uri = env.client(f"http://root:pa55word@{server.address}")
    by_token = env.client(server.uri, token="t0psecret")
    dedicated = env.client(server.uri, token="t0psecret", dedicated=True)
    shown = {
        "stats": repr(env.manager().get_stats()),
        "manager": repr(env.manager()),
        "config": repr([client._config for client in (by_uri, by_token, dedicated)]),
        "config str": " ".join(str(client._config) for client in (by_uri, by_token)),
        "uri": by_uri._config.uri,
        "key": repr([by_uri._config.key, by_token._config.key]),
        "handler": repr([by_uri._handler, dedicated._handler]),
    }
    leaks = [where for where, text in shown.items() if "pa55word" in text or "t0psecret" in text]
    verdict(not leaks, f"secrets are shown by: {', '.join(leaks) or 'nothing'}")


def _authorization(server: FakeMilvus) -> str:
    seen = server.seen("ShowCollections")
    return base64.b64decode(seen[-1].metadata.get("authorization", "")).decode() if seen else "-"


@defect()
def d30_uris_mean_what_they_say(env: Env) -> None:
    """IPv6 hosts, percent-encoded passwords and a path called global-cluster are understood."""
    server = env.server(host="::1")
    call = Call(
        lambda: env.client(f"http://root:p%40ss@[::1]:{server.port}", timeout=3).list_collections()
    )
    wait_until(lambda: call.done, 20)
    plain = env.server()
    decoded = env.client(f"http://root:p%40ss@{plain.address}")
    decoded.list_collections()
    is_global = env.config(f"http://127.0.0.1:{plain.port}/global-cluster").is_global
    sent = _authorization(plain)
    verdict(
        call.result == ["demo"] and sent == "root:p@ss" and not is_global,
        f"IPv6: {call.error or call.result}; sent {sent!r}; "
        f"a database named global-cluster makes the endpoint global: {is_global}",
    )

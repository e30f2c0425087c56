"""What channels are opened with."""

from __future__ import annotations

from typing import Any

from milvus_lifecycle.config import ConnectionConfig
from milvus_lifecycle.drivers.pymilvus import channel_options


def options(**grpc_options: Any) -> dict[str, Any]:
    config = ConnectionConfig.from_uri("http://a:1", grpc_options=grpc_options)
    return dict(channel_options(config, (0.1, 0.4), 10.0))


def test_the_users_options_win() -> None:
    """Over pymilvus's and the engine's own; but a channel never shares another one's connection."""
    own = {
        "grpc.keepalive_time_ms": 7,
        "grpc.dns_min_time_between_resolutions_ms": 8,
        "grpc.max_reconnect_backoff_ms": 9,
        "grpc.my_own": 10,
    }
    assert options()["grpc.dns_min_time_between_resolutions_ms"] == 500
    chosen = options(**own, **{"grpc.use_local_subchannel_pool": 0})
    assert {name: chosen[name] for name in own} == own
    assert chosen["grpc.use_local_subchannel_pool"] == 1

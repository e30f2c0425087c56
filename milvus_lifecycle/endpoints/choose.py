"""Which strategy an endpoint gets, by its configuration."""

from __future__ import annotations

from ..config import ConnectionConfig
from ..core.strategies import ConnectionStrategy, RegularStrategy
from .global_cluster import GlobalStrategy
from .local import LocalStrategy


def default_strategy(config: ConnectionConfig) -> ConnectionStrategy:
    """The strategy for a configuration: local file, global cluster or regular endpoint."""
    if config.is_local:
        return LocalStrategy(config)
    if config.is_global:
        return GlobalStrategy(config)
    return RegularStrategy(config)

"""What a forked child inherits from its parent and must neither use nor close.

Closing an inherited gRPC channel would write to the parent's sockets. Dropping the last
reference closes it too, so the child keeps every such object until it ends.
"""

from __future__ import annotations

_KEPT: list[object] = []


def keep(*things: object) -> None:
    """Hold ``things`` for the rest of the process."""
    _KEPT.extend(things)

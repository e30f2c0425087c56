"""The storm: thousands of clients lose one server together; when do they come back?

``python -m tests.simulation.storm docs/storm.svg`` draws the picture of docs/operations.md.

Each client behaves as the engine makes gRPC behave, by the policy's own ``reconnect_window``: one
channel that reconnects at the fast pace from the failure on, and at ``backoff_patience`` one that
reconnects at the slow pace. A gRPC channel tries at once, then after its initial backoff, and
multiplies that by 1.6 up to its maximum; every gap varies by 20 % and none is under 100 ms
(https://github.com/grpc/grpc/blob/master/doc/connection-backoff.md, measured with grpcio 1.85.1).
The worst case is simulated: everybody fails in the same instant, and a refusal takes no time.
"""

from __future__ import annotations

import random
import sys
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from milvus_lifecycle import LifecyclePolicy

CLIENTS = 10_000
AWAY = 45.0
#: seconds; what "at the same time" means to a server
WINDOW = 0.1
#: the greatest share of all clients that may come within one window (issue 6, design section 5)
LIMIT = 0.02
SEED = 2030

GRPC_MULTIPLIER, GRPC_JITTER, GRPC_FLOOR = 1.6, 0.2, 0.1


def attempts_until(
    opened: float, window: tuple[float, float], end: float, chance: Callable[[], float]
) -> float:
    """When a channel opened at ``opened`` (s) makes its first attempt at or after ``end``."""
    gap, most = (max(GRPC_FLOOR, seconds) for seconds in window)
    at = opened
    while at < end:
        at += min(gap, most) * (1.0 + GRPC_JITTER * (2.0 * chance() - 1.0))
        gap *= GRPC_MULTIPLIER
    return at


def arrival(policy: LifecyclePolicy, away: float, chance: Callable[[], float]) -> float:
    """Seconds between the server's return, ``away`` s after its loss, and one client's arrival."""
    patience = policy.backoff_patience
    if away <= patience:
        fast = attempts_until(0.0, policy.reconnect_window(0.0, chance), away, chance)
        if fast <= patience:
            return fast - away
    window = policy.reconnect_window(patience, chance)
    return attempts_until(patience, window, away, chance) - away


@dataclass(frozen=True)
class Storm:
    """Arrivals of one simulated storm: seconds after the server's return, sorted."""

    away: float
    arrivals: tuple[float, ...]

    def peak(self) -> float:
        """The greatest share of clients in any window of 100 ms, wherever it begins."""
        times = self.arrivals
        return max(bisect_left(times, at + WINDOW) - n for n, at in enumerate(times)) / len(times)

    def mean(self) -> float:
        """Seconds after its return at which a client comes, on average."""
        return sum(self.arrivals) / len(self.arrivals)

    def counts(self) -> list[int]:
        """Arrivals in each 100 ms since the return."""
        counts = [0] * (int(self.arrivals[-1] / WINDOW) + 1)
        for at in self.arrivals:
            counts[int(at / WINDOW)] += 1
        return counts


def simulate(
    policy: LifecyclePolicy, *, away: float = AWAY, clients: int = CLIENTS, seed: int = SEED
) -> Storm:
    """A storm; equal arguments give equal arrivals."""
    chance = random.Random(seed).random
    return Storm(away, tuple(sorted(arrival(policy, away, chance) for _ in range(clients))))


# -- the picture -------------------------------------------------------------------------------

_WIDE, _HIGH, _LEFT, _TOP, _RIGHT, _BOTTOM = 760, 300, 56, 44, 16, 44
_STYLE = (
    "text{font:12px sans-serif;fill:#444}.title{font-size:14px;fill:#111}"
    ".bar{fill:#2a6f97}.limit{stroke:#c0392b;stroke-dasharray:5 4}.axis{stroke:#999}"
    "@media(prefers-color-scheme:dark){text{fill:#bbb}.title{fill:#eee}.bar{fill:#61a5c2}}"
)


def draw(storm: Storm) -> str:
    """The arrivals as an SVG picture. Equal storms give equal text."""
    counts, clients = storm.counts(), len(storm.arrivals)
    shares = [count / clients for count in counts]
    top = max(LIMIT * 1.2, max(shares) * 1.1)
    across = (_WIDE - _LEFT - _RIGHT) / len(counts)
    down = (_HIGH - _TOP - _BOTTOM) / top
    floor = _HIGH - _BOTTOM
    title = (
        f"{clients:,} clients lost a server for {storm.away:g} s: arrivals per 100 ms "
        f"(peak {storm.peak():.1%}, mean {storm.mean():.1f} s after the return)"
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {_HIGH}" role="img" '
        f'aria-label="{title}">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="{_LEFT}" y="22">{title}</text>',
    ]
    for n, share in enumerate(shares):
        high = share * down
        lines.append(
            f'<rect class="bar" x="{_LEFT + n * across:.2f}" y="{floor - high:.2f}" '
            f'width="{max(0.5, across - 0.6):.2f}" height="{high:.2f}"/>'
        )
    for percent in (1, 2):
        y = floor - percent / 100 * down
        kind = "limit" if percent / 100 == LIMIT else "axis"
        lines.append(
            f'<line class="{kind}" x1="{_LEFT}" y1="{y:.2f}" x2="{_WIDE - _RIGHT}" y2="{y:.2f}"/>'
        )
        lines.append(f'<text x="{_LEFT - 8}" y="{y + 4:.2f}" text-anchor="end">{percent} %</text>')
    lines.append(
        f'<line class="axis" x1="{_LEFT}" y1="{floor}" x2="{_WIDE - _RIGHT}" y2="{floor}"/>'
    )
    for second in range(0, int(len(counts) * WINDOW) + 1, 2):
        x = _LEFT + second / WINDOW * across
        lines.append(f'<text x="{x:.2f}" y="{floor + 18}" text-anchor="middle">{second}</text>')
    lines.append(
        f'<text x="{_WIDE - _RIGHT}" y="{_HIGH - 8}" text-anchor="end">'
        "seconds since the server is back; dashed: the limit of 2 %</text>"
    )
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


def main(path: str) -> None:
    """Write the picture."""
    Path(path).write_text(draw(simulate(LifecyclePolicy())), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])

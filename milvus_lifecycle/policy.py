"""LifecyclePolicy: every duration and backoff of the engine, checked once, frozen.

Backoff in two phases. While an outage is younger than `backoff_patience` the gaps between
connection attempts grow from `backoff_initial` to `backoff_max`, so that a restart is noticed
at once. After that they go on growing to `backoff_ceiling`, so that thousands of clients do
not hammer, nor flood, a server that was away for long.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from milvus_lifecycle.errors import ConfigError

#: share of `backoff_max` that gRPC is given as the longest gap of a fast channel
FAST_SHARE = 0.625
#: gRPC varies a gap by this share
GRPC_JITTER = 0.2

_DAY = 86_400.0
_YEAR = 365 * _DAY

# Field -> (least, whether least itself is allowed, greatest, whether None is allowed).
# Backoffs end at a day because gRPC takes them as milliseconds in 32 bits.
_LIMITS: dict[str, tuple[float, bool, float, bool]] = {
    "idle_threshold": (0.0, True, _YEAR, True),
    "probe_timeout": (0.0, False, _DAY, False),
    "connect_timeout": (0.0, False, _DAY, False),
    "first_connect_patience": (0.0, True, _YEAR, False),
    "recovery_budget": (0.0, False, _YEAR, False),
    "give_up_share": (0.0, True, 1.0, False),
    "max_waiting": (0, True, 10**9, True),
    "backoff_initial": (0.001, True, _DAY, False),
    "backoff_multiplier": (1.0, True, 100.0, False),
    "backoff_max": (0.001, True, _DAY, False),
    "backoff_patience": (0.0, True, _YEAR, False),
    "backoff_ceiling": (0.001, True, _DAY, False),
    "backoff_jitter": (0.0, True, 1.0, False),
    "linger": (0.0, True, _YEAR, True),
    "max_age": (0.0, False, _YEAR, True),
    "drain_timeout": (0.0, True, _YEAR, True),
    "channels": (1, True, 1000, False),
    "topology_refresh": (0.0, False, _YEAR, True),
}
_WHOLE = ("channels", "max_waiting")
_UNITLESS = (*_WHOLE, "backoff_multiplier", "backoff_jitter", "give_up_share")


class Pace(NamedTuple):
    """gRPC's reconnect backoff of a channel (seconds; it multiplies gaps by 1.6, varies them by
    20 % and takes no less than 0.1 s), and the age of an outage from which on another one is due.
    """

    initial: float
    longest: float
    until: float


@dataclasses.dataclass(frozen=True)
class LifecyclePolicy:
    """Durations in seconds; None, where it is accepted, means never.

    Attributes:
        idle_threshold: probe a connection idle longer than this; None: never because of idling.
        probe_timeout: how long one probe may take.
        connect_timeout: how long the first connect may take, unless the caller says otherwise.
        first_connect_patience: how long a first connect waits for a server that refuses it or says
            that it is not ready; 0: it fails with the first refusal.
        recovery_budget: how long one recovery may take, and the longest that a call waits.
        give_up_share: share of `recovery_budget`, from 0 to 1, that a call waits once a recovery
            has given up, until something answers; but at least for a probe and an attempt.
        max_waiting: how many calls may wait for one connection in an outage; one more fails at
            once. None: all.
        backoff_initial: first gap between two connection attempts.
        backoff_multiplier: growth of the gap, from 1 to 100.
        backoff_max: longest gap while the outage is younger than `backoff_patience`.
        backoff_patience: age of an outage at which the gaps go on growing.
        backoff_ceiling: longest gap of all.
        backoff_jitter: share, from 0 to below 1, by which gaps and ages vary at random.
        linger: close a connection that nobody has held or used for this long; None: keep it.
        max_age: replace a channel older than this; None: never because of its age.
        drain_timeout: how long a retired channel may finish its RPCs; None: as long as they take.
        channels: how many connections one endpoint gets, each with a channel and a life of its own;
            a call takes the one with the fewest RPCs of those that are well.
        topology_refresh: gap between topology fetches of a global cluster; None: only on failure.

    Raises:
        ConfigError: (a ValueError) names the field, the value and what is accepted.
    """

    idle_threshold: float | None = 30.0
    probe_timeout: float = 5.0
    connect_timeout: float = 10.0
    first_connect_patience: float = 0.0
    recovery_budget: float = 60.0
    give_up_share: float = 0.1
    max_waiting: int | None = None
    backoff_initial: float = 0.05
    backoff_multiplier: float = 1.6
    backoff_max: float = 0.4
    backoff_patience: float = 10.0
    backoff_ceiling: float = 10.0
    backoff_jitter: float = 0.2
    linger: float | None = 300.0
    max_age: float | None = None
    drain_timeout: float | None = 30.0
    channels: int = 1
    topology_refresh: float | None = 300.0

    def __post_init__(self) -> None:
        for name in _LIMITS:
            _check_range(name, getattr(self, name))
        if self.backoff_jitter >= 1.0:
            raise _refusal("backoff_jitter", self.backoff_jitter)
        for name, other in (("backoff_initial", "backoff_max"), ("backoff_max", "backoff_ceiling")):
            value, limit = getattr(self, name), getattr(self, other)
            if value > limit:
                raise ConfigError(
                    f"LifecyclePolicy: {name}={value!r} must not be greater than {other}={limit!r}",
                    field=name,
                )

    def gap(self, failures: int, outage_age: float, random: Callable[[], float]) -> float:
        """Return the seconds to wait before the next attempt of one outage.

        Args:
            failures: failed attempts of this outage so far; 0 means: go at once.
            outage_age: seconds since the outage began.
            random: returns a float in [0, 1), such as `random.random`.

        Total for every int and float, also NaN and infinity: the result is finite and >= 0.
        """
        if failures <= 0:
            return 0.0
        gap = self._grown(failures - 1)
        if outage_age > self.backoff_patience:
            gap = max(gap, self._late(outage_age))
        return gap * (1.0 + self.backoff_jitter * (2.0 * _unit(random) - 1.0))

    def pace(self, outage_age: float, unit: float) -> Pace:
        """Return how a channel opened now reconnects, and until which age of the outage it may.

        Within `backoff_patience` gaps grow to a share of `backoff_max`. After it they are in
        proportion to the age of the outage, `backoff_max` for one of `backoff_patience`, up to
        `backoff_ceiling`; a channel keeps its gap, so each serves until the outage is twice as
        old. `unit` in [0, 1) is drawn once per connection: clients that lost one server together
        change at different ages, and are out of step from then on.

        Total for every int and float, also NaN and infinity.
        """
        first = self.backoff_patience * 2.0**unit
        if not outage_age >= first:
            # The gap is not all of the delay that a call sees: gRPC's jitter (20 %), the connect
            # itself and the retry's own backoff come on top, and all of it is to fit backoff_max.
            longest = max(self.backoff_initial, self.backoff_max * FAST_SHARE)
            return Pace(self.backoff_initial, longest, first)
        if first < 0.001:
            return Pace(self.backoff_max, self.backoff_ceiling, math.inf)
        opened = first * 2.0 ** math.floor(math.log2(min(outage_age, _YEAR) / first))
        gap = self._late(opened) / (1.0 + GRPC_JITTER)
        if self._late(opened) >= self.backoff_ceiling:
            return Pace(self.backoff_ceiling, self.backoff_ceiling, math.inf)
        return Pace(gap, gap, 2.0 * opened)

    def aged(self, age: float, unit: float) -> bool:
        """Tell whether a channel `age` seconds old is due for replacement.

        `unit` in [0, 1) is drawn once per channel; it shortens `max_age` by up to
        `backoff_jitter`, so that channels opened together are not replaced together.
        """
        return self.max_age is not None and age > self.max_age * (1.0 - self.backoff_jitter * unit)

    def _late(self, outage_age: float) -> float:
        """Return the gap after `backoff_patience`: in proportion to the age of the outage."""
        if self.backoff_patience <= 0.0:
            return self.backoff_ceiling
        return min(self.backoff_max * outage_age / self.backoff_patience, self.backoff_ceiling)

    def _grown(self, steps: int) -> float:
        """Return backoff_initial * multiplier ** steps, at most backoff_max, without overflow."""
        if self.backoff_multiplier == 1.0:
            return self.backoff_initial
        ratio = math.log(self.backoff_max / self.backoff_initial)
        # Compared as numbers before the power is taken: `steps` may be huge.
        if steps >= ratio / math.log(self.backoff_multiplier):
            return self.backoff_max
        return min(self.backoff_initial * self.backoff_multiplier**steps, self.backoff_max)


#: No call lasts a century. gRPC's deadlines end in 2262, and what is later fails at once.
_ENDLESS = 100 * _YEAR


def parse_timeout(timeout: Any, name: str = "timeout") -> float | None:
    """Return a caller's own timeout (or what else ``name`` says) in seconds; None for no limit.

    Takes whatever `float` does, as pymilvus's users have it: numpy's numbers and fractions, True,
    "5". What goes on is a plain float: a float32 added to a clock is off by up to 64 seconds.

    Raises:
        ConfigError: names the value and what is accepted.
    """
    if timeout is None:
        return None
    try:
        seconds = float(timeout)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not seconds >= 0.0:
        raise ConfigError(
            f"{name}={_shown(timeout)} is not a number of seconds from 0 up, or None for no limit "
            "of the caller's own",
            field=name,
        )
    return None if seconds > _ENDLESS else seconds


def _check_range(name: str, value: object) -> None:
    least, inclusive, greatest, optional = _LIMITS[name]
    if value is None and optional:
        return
    # bool is an int to Python, and a mistake here.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _refusal(name, value)
    if name in _WHOLE and not isinstance(value, int):
        raise _refusal(name, value)
    # Written so that NaN fails, and an int too large for a float is compared as an int.
    if not least <= value <= greatest or (value == least and not inclusive):
        raise _refusal(name, value)


def _refusal(name: str, value: object) -> ConfigError:
    least, inclusive, greatest, optional = _LIMITS[name]
    unit = "" if name in _UNITLESS else " of seconds"
    lower = f"from {least:g}" if inclusive else f"greater than {least:g}"
    upper = "below 1" if name == "backoff_jitter" else f"up to {greatest:,.10g}"
    whole, never = ("whole ", "no limit") if name in _WHOLE else ("", "never")
    accepted = f"a {whole}number{unit} {lower} {upper}" + (
        f", or None for {never}" if optional else ""
    )
    return ConfigError(f"LifecyclePolicy: {name}={_shown(value)} is not {accepted}", field=name)


def _shown(value: object) -> str:
    try:
        shown = repr(value)
    except Exception:  # Python refuses to print an int of more than 4,300 digits
        return f"<{type(value).__name__}>"
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _unit(random: Callable[[], float]) -> float:
    """Return one draw, held inside [0, 1] whatever an injected source returns."""
    return min(max(random(), 0.0), 1.0)

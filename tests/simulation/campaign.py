"""Campaigns: many seeds, one after the other, up to the first that breaks a law."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from milvus_lifecycle.core import lifecycle as lifecycle_module
from milvus_lifecycle.core import maintenance as maintenance_module
from tests.simulation import laws
from tests.simulation.kernel import NEVER

if TYPE_CHECKING:
    from tests.simulation.schedules import World


def seed_of_the_day() -> int:
    """The first of the seeds that nobody has tried before today.

    ``MILVUS_LIFECYCLE_SEED_BASE`` brings another day's back.
    """
    return int(os.environ.get("MILVUS_LIFECYCLE_SEED_BASE", date.today().toordinal() * 10_000))


@dataclass
class Finding:
    """A seed whose run breaks a law, with the run."""

    flavour: str
    seed: int
    broken: BaseException
    trace: list[str]

    def __str__(self) -> str:
        return "\n".join(
            (
                f"seed {self.seed} ({self.flavour}): {self.broken!r}",
                *self.trace,
                f"replay: MILVUS_LIFECYCLE_SEED={self.seed} "
                f"pytest tests/simulation/test_schedules.py -k 'laws and {self.flavour}'",
            )
        )


@dataclass
class Campaign:
    """What came of many seeds."""

    schedules: int = 0
    moves: int = 0
    seconds: float = 0.0
    finding: Finding | None = None
    #: in how many of them a caller saw which error, or no limit of time was looked at
    reached: Counter[str] = field(default_factory=Counter)
    #: what happened in the last one
    last: list[str] = field(default_factory=list)


class _Ids:
    """Stands for the module ``uuid``: the same ids in every run."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def uuid4(self) -> Any:
        return SimpleNamespace(hex=f"{next(self._numbers):016x}")


@contextmanager
def replaced(*names: tuple[Any, str, Any]) -> Iterator[None]:
    """Names of modules (or attributes of classes) stand for something else for a while."""
    with ExitStack() as stack:
        for owner, name, value in names:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


@contextmanager
def collected_by_hand() -> Iterator[None]:
    """The collector runs when it is called, and looks only at what was made since."""
    collecting = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
        if collecting:
            gc.enable()


def play(flavour: type[World], seed: int) -> tuple[World, BaseException | None]:
    """Run one seed. Returns the world and what it found, if anything."""
    fire = laws.watched(vars(lifecycle_module)["fire"])
    ids = (lifecycle_module, "uuid", _Ids())
    complain = (maintenance_module, "complain", laws.complain)
    with replaced((lifecycle_module, "fire", fire), ids, complain):
        world = flavour(seed)
        try:
            world.run()
            world.check_over()
        except (Exception, laws.Broken) as error:
            return world, error
        finally:
            with suppress(Exception):
                world.end()
    return world, None


def campaign(flavour: type[World], seeds: Iterable[int]) -> Campaign:
    """Run the seeds, up to the first that breaks a law."""
    done, began = Campaign(), time.process_time()
    with collected_by_hand():
        for seed in seeds:
            world, broken = play(flavour, seed)
            done.schedules += 1
            done.moves += world.moves
            done.reached.update(world.errors)
            done.reached["unlimited slack"] += world.slack == NEVER
            done.last = world.trace
            if broken is not None:
                done.finding = Finding(flavour.flavour, seed, broken, world.trace)
                break
            if done.schedules % 100 == 0:
                gc.collect()
    done.seconds = time.process_time() - began
    return done

"""The search: every run of a set-up, breadth first, so that what it finds is shortest.

Processes cannot be copied, so a state is reached by replaying the moves that led to it. States
that were seen before are not gone on from.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from milvus_lifecycle import TransitionRecord
from tests.simulation import laws
from tests.simulation.canonical import Canon
from tests.simulation.kernel import EPOCH, LONGEST, Move
from tests.simulation.laws import Broken, crash
from tests.simulation.setup import Setup
from tests.simulation.world import World, simulated

#: (number of the process, 0 for time; its answer) of every move
Path = tuple[tuple[int, Any], ...]
#: (the run that came to a state first, another one) for all that are not gone on from
Merged = list[tuple[Any, Any]]
#: So many worlds wait as they are; the others are replayed when their turn comes.
WAITING = 3000
#: After so many worlds the collector runs: it is off while processes run.
SWEEP = 4000


@dataclass
class Outcome:
    """What a search found."""

    setup: Setup
    states: int = 0
    moves: int = 0
    ends: int = 0
    longest: int = 0
    generations: int = 0
    flights: int = 0
    #: runs that were not looked at to their end because of the bound on flights
    bounded: int = 0
    seconds: float = 0.0
    #: False if the ceiling or the time ran out first
    whole: bool = True
    broken: Broken | None = None
    path: Path = ()
    trace: str = field(default="", repr=False)

    def line(self) -> str:
        """The figures, on one line."""
        whole = "every" if self.whole else "NOT every"
        return (
            f"{self.setup.name}: {self.states} states, {self.moves} moves, {self.ends} ends, "
            f"longest run {self.longest}, {self.generations} generations, {self.flights} flights, "
            f"{whole} run, {self.seconds:.1f} s"
        )


def allowed(world: World) -> list[Any]:
    """The moves of a world within the set-up's bound on preemptions."""
    moves = world.kernel.moves()
    most, cut = world.setup.preemptions, world.kernel.cut
    if cut is not None and (most is None or world.kernel.preemptions >= most):
        moves = [move for move in moves if move.process is cut]
    return moves


def replay(setup: Setup, path: Path) -> World:
    """The world after the moves of ``path``."""
    world = World(setup)
    for _ in world.begin():
        pass
    for number, answer in path:
        world.kernel.again(number, answer)
    return world


def entry(move: Any) -> tuple[int, Any]:
    """A move as a path has it."""
    return (move.process.number if move.process is not None else 0, move.answer)


def search(setup: Setup, *, seconds: float = 600.0, merged: Merged | None = None) -> Outcome:
    """Look at every run of ``setup``; stops at the first broken law."""
    outcome, began = Outcome(setup), time.monotonic()
    with simulated(setup):
        try:
            _search(outcome, began + seconds, merged)
        except Broken as broken:
            outcome.broken = broken
        except Exception as error:  # where the engine's code runs in no process
            outcome.broken = crash("the engine", error)
    outcome.seconds = time.monotonic() - began
    if outcome.broken is not None:
        outcome.trace = narrate(setup, outcome.path, outcome.broken)
    return outcome


def _search(outcome: Outcome, deadline: float, merged: Merged | None) -> None:
    setup, worlds = outcome.setup, 0
    #: state -> the run that came to it first
    seen: dict[Any, Path] = {}
    frontier: deque[tuple[Path, World | None]] = deque([((), None)])
    waiting = 0
    while frontier:
        if outcome.states > setup.ceiling or time.monotonic() > deadline:
            outcome.whole = False
            return
        path, ready = frontier.popleft()
        waiting -= ready is not None
        world = ready if ready is not None else replay(setup, path)
        moves = allowed(world)
        for at in range(len(moves)):
            if at:
                world = replay(setup, path)
                moves = allowed(world)
            reached = _go(outcome, world, (*path, entry(moves[at])), moves[at])
            first = None if reached is None else seen.setdefault(Canon(world).state(), reached)
            if first is not reached and merged is not None:
                merged.append((first, reached))
            if first is reached is not None:
                outcome.states += 1
                keep = waiting < WAITING
                waiting += keep
                frontier.append((reached, world if keep else None))
                if keep:
                    continue
            world.end()
            worlds += 1
            if worlds % SWEEP == 0:
                gc.collect()


def _go(outcome: Outcome, world: World, path: Path, move: Any) -> Path | None:
    """One move, and those after it that are the only ones. None: the run has ended."""
    while True:
        outcome.path = path
        outcome.moves += 1
        world.kernel.take(move)
        laws.check(world)
        moves = allowed(world)
        outcome.longest = max(outcome.longest, len(path))
        for connection in world.connections:
            outcome.generations = max(outcome.generations, connection.generation)
            outcome.flights = max(outcome.flights, connection.lifecycle.flights)
            if connection.lifecycle.flights > world.setup.flights:
                outcome.bounded += 1
                return None
        if not moves:
            outcome.ends += 1
            laws.check_end(world)
            return None
        if len(path) > LONGEST:
            raise Broken(4, "a run that does not end")
        if len(moves) > 1 or moves[0].process is None:
            return path  # time can pass in a circle: that shows in the states
        path, move = (*path, entry(moves[0])), moves[0]


def futures(setup: Setup, path: Path) -> Counter[Any]:
    """The states that can come next after a run; None: it ends there. Not within ``simulated``."""
    found: Counter[Any] = Counter()
    with simulated(setup):
        for at in range(len(allowed(replay(setup, path)))):
            world = replay(setup, path)
            move = allowed(world)[at]
            ended = _go(Outcome(setup), world, (*path, entry(move)), move) is None
            found[None if ended else Canon(world).state()] += 1
            world.end()
    return found


def narrate(setup: Setup, path: Path, broken: Broken) -> str:
    """A run as the people of its lifecycle would tell it: who did what, and what was recorded."""
    lines = [f"{broken}, after {len(path)} moves of {setup.name!r}:"]
    records: list[Any] = []
    told = 0
    # The finding comes again, and ends the run.
    with simulated(setup), suppress(Broken, Exception):
        world = World(setup)
        records = world.records
        for at, move in _made(world, path):
            lines.extend(map(_in_words, records[told:]))
            told = len(records)
            who = move.process.name if move.process is not None else "time passes:"
            lines.append(f"{at:>4} {world.kernel.now - EPOCH:4g} s  {who} {move.label}")
    lines.extend(map(_in_words, records[told:]))
    if broken.__cause__ is not None:
        lines.extend(traceback.format_exception(broken.__cause__))
    return "\n".join(lines)


def _made(world: World, path: Path) -> Iterator[tuple[object, Move]]:
    """(its number, move) for every move of a run, before it is made. The prologue's have none."""
    for move in world.begin():
        yield "", move
    for at, made in enumerate(path, 1):
        move = next(move for move in allowed(world) if entry(move) == made)
        yield at, move
        world.kernel.take(move)
    laws.check(world)


def _in_words(record: TransitionRecord) -> str:
    return (
        f"{'':14}#{record.seq} {record.source} --{record.trigger}--> {record.dest}  "
        f"generation {record.generation}, clients {record.clients}"
    )

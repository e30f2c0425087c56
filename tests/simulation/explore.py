"""The search: every run of a set-up, breadth first, so that what it finds is shortest.

Processes cannot be copied, so a state is reached by replaying the moves that led to it. States
that were seen before are not gone on from.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tests.simulation import laws
from tests.simulation.canonical import Canon
from tests.simulation.kernel import LONGEST
from tests.simulation.laws import Broken
from tests.simulation.setup import Setup
from tests.simulation.world import World, simulated

#: (number of the process, 0 for time; its answer) of every move
Path = tuple[tuple[int, Any], ...]
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
    for number, answer in path:
        world.kernel.again(number, answer)
    return world


def entry(move: Any) -> tuple[int, Any]:
    """A move as a path has it."""
    return (move.process.number if move.process is not None else 0, move.answer)


def search(setup: Setup, *, seconds: float = 600.0) -> Outcome:
    """Look at every run of ``setup``; stops at the first broken law."""
    outcome, began = Outcome(setup), time.monotonic()
    with simulated(setup):
        try:
            _search(outcome, began + seconds)
        except Broken as broken:
            outcome.broken = broken
    outcome.seconds = time.monotonic() - began
    if outcome.broken is not None:
        outcome.trace = narrate(setup, outcome.path, outcome.broken)
    return outcome


def _search(outcome: Outcome, deadline: float) -> None:
    setup, seen, worlds = outcome.setup, set(), 0
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
            key = Canon(world).state() if reached is not None else None
            if reached is not None and key not in seen:
                seen.add(key)
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


def narrate(setup: Setup, path: Path, broken: Broken) -> str:
    """A run as the people of its lifecycle would tell it: who did what, and what was recorded."""
    lines = [f"{broken}, after {len(path)} moves of {setup.name!r}:"]
    with simulated(setup):
        world = World(setup)
        told = 0
        for at, (number, answer) in enumerate(path):
            move = next(m for m in allowed(world) if entry(m) == (number, answer))
            who = move.process.name if move.process is not None else "time passes:"
            lines.append(f"{at + 1:4} {world.kernel.now - 1000.0:4g} s  {who} {move.label}")
            with suppress(Broken):
                world.kernel.take(move)
            for record in world.records[told:]:
                lines.append(
                    f"{'':14}#{record.seq} {record.source} --{record.trigger}--> {record.dest}  "
                    f"generation {record.generation}, clients {record.clients}"
                )
            told = len(world.records)
        world.end()
    return "\n".join(lines)

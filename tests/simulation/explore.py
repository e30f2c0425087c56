"""The search: every run of a set-up, breadth first, so that what it finds is shortest.

Processes cannot be copied, so a state is reached by replaying the numbers of the moves that led
to it. States that were seen before are not gone on from.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from tests.simulation import laws
from tests.simulation.canonical import Canon
from tests.simulation.kernel import LONGEST
from tests.simulation.laws import Broken
from tests.simulation.model import World, simulated
from tests.simulation.setup import Setup

Path = tuple[int, ...]


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
    for number in path:
        world.kernel.take(allowed(world)[number])
    return world


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
    setup, seen = outcome.setup, set()
    frontier: deque[Path] = deque([()])
    while frontier:
        if outcome.states > setup.ceiling or time.monotonic() > deadline:
            outcome.whole = False
            return
        path = frontier.popleft()
        world = replay(setup, path)
        moves = allowed(world)
        for number in range(len(moves)):
            if number:
                world = replay(setup, path)
                moves = allowed(world)
            reached = _go(outcome, world, (*path, number), moves[number])
            if reached is not None:
                key = Canon(world).state()
                if key not in seen:
                    seen.add(key)
                    outcome.states += 1
                    frontier.append(reached)
            world.end()


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
            outcome.flights = max(outcome.flights, connection.flights)
            if connection.flights > world.setup.flights:
                outcome.bounded += 1
                return None
        if not moves:
            outcome.ends += 1
            laws.check_end(world)
            return None
        if len(path) > LONGEST:
            raise Broken(4, "a run that does not end")
        if len(moves) > 1:
            return path
        path, move = (*path, 0), moves[0]


def narrate(setup: Setup, path: Path, broken: Broken) -> str:
    """A run as the people of its lifecycle would tell it: who did what, and what was recorded."""
    lines = [f"{broken}, after {len(path)} moves of {setup.name!r}:"]
    with simulated(setup):
        world = World(setup)
        told = 0
        for at, number in enumerate(path):
            move = allowed(world)[number]
            who = move.process.name if move.process is not None else "time passes:"
            lines.append(f"{at + 1:4} {world.kernel.now - 1000.0:4g} s  {who} {move.label}")
            try:
                world.kernel.take(move)
            except Broken:
                pass
            for record in world.records[told:]:
                lines.append(
                    f"{'':14}#{record.seq} {record.source} --{record.trigger}--> {record.dest}  "
                    f"generation {record.generation}, clients {record.clients}"
                )
            told = len(world.records)
        world.end()
    return "\n".join(lines)

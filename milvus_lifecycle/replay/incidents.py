"""Outages of one endpoint that began together are one incident: what the endpoint went through."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from .outages import Outage

#: Outages belong together if one begins within this time of another one of the same endpoint.
TOGETHER = timedelta(seconds=5)
#: Incidents that are remembered; beyond, those with the least suffering are forgotten.
_KEPT = 2000


@dataclass
class Incident:
    """``outages`` of ``connections`` connections to one endpoint (some had several).

    ``seconds`` is the longest of them, ``suffered_s`` their sum (connection-seconds). An outage
    is counted when it begins, and its length, attempts and error once it is settled.
    """

    address: str
    began: datetime
    last_began: datetime
    connections: int = 0
    outages: int = 0
    seconds: float = 0.0
    suffered_s: float = 0.0
    attempts: int = 0
    give_ups: int = 0
    unfinished: int = 0
    unsettled: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    reason: str = ""

    def begin(self, outage: Outage, *, again: bool) -> None:
        """One more outage; ``again``: of a connection that had one in here before."""
        if outage.began <= self.began:
            self.began = outage.began
            self.reason = outage.reason
        self.last_began = max(self.last_began, outage.began)
        self.connections += int(not again)
        self.outages += 1
        self.unsettled += 1
        self.causes[outage.cause] += 1

    def end(self, outage: Outage) -> None:
        """One of its outages is settled."""
        self.unsettled -= 1
        self.seconds = max(self.seconds, outage.seconds)
        self.suffered_s += outage.seconds
        self.attempts += outage.attempts
        self.give_ups += outage.give_ups
        self.unfinished += int(outage.unfinished)
        if outage.error_code:
            self.errors[outage.error_code] += 1

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "address": self.address,
            "began": self.began.isoformat(),
            "connections": self.connections,
            "outages": self.outages,
            "seconds": round(self.seconds, 6),
            "suffered_s": round(self.suffered_s, 6),
            "attempts": self.attempts,
            "give_ups": self.give_ups,
            "unfinished": self.unfinished,
            "causes": dict(self.causes.most_common()),
            "errors": dict(self.errors.most_common()),
            "reason": self.reason,
        }


class IncidentBook:
    """Sorts outages, in the order in which they begin, into incidents."""

    def __init__(self) -> None:
        self._by_address: dict[str, list[Incident]] = {}
        self._count = 0
        self._room = 2 * _KEPT

    def begin(self, outage: Outage, last: object = None) -> Incident:
        """Count an outage that begins; returns its incident.

        ``last`` is the incident of the same connection's outage before, if there was one.
        """
        known = self._by_address.setdefault(outage.address, [])
        for incident in reversed(known):
            if incident.began - TOGETHER <= outage.began <= incident.last_began + TOGETHER:
                break
        else:
            if self._count >= self._room:
                self._forget()
                known = self._by_address.setdefault(outage.address, [])
            incident = Incident(outage.address, outage.began, outage.began)
            known.append(incident)
            self._count += 1
        incident.begin(outage, again=incident is last)
        return incident

    def worst(self, count: int) -> list[Incident]:
        """The incidents in which connections suffered longest, taken together."""
        everything = [incident for known in self._by_address.values() for incident in known]
        everything.sort(key=lambda one: (-one.suffered_s, one.began, one.address))
        return everything[:count]

    def _forget(self) -> None:
        order = self.worst(self._count)
        # What is not settled yet may still turn out to be the worst of all.
        kept = [one for rank, one in enumerate(order) if rank < _KEPT or one.unsettled]
        self._by_address, self._count = {}, len(kept)
        self._room = max(2 * _KEPT, 2 * len(kept))
        for incident in sorted(kept, key=lambda one: one.began):
            self._by_address.setdefault(incident.address, []).append(incident)

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

    ``seconds`` is the longest of them, ``suffered_s`` their sum (connection-seconds).
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
    causes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    reason: str = ""

    def add(self, outage: Outage, *, again: bool) -> None:
        """Count one more outage; ``again``: of a connection that had one in here before."""
        if outage.began <= self.began:
            self.began = outage.began
            self.reason = outage.reason
        self.last_began = max(self.last_began, outage.began)
        self.connections += int(not again)
        self.outages += 1
        self.seconds = max(self.seconds, outage.seconds)
        self.suffered_s += outage.seconds
        self.attempts += outage.attempts
        self.give_ups += outage.give_ups
        self.unfinished += int(outage.unfinished)
        self.causes[outage.cause] += 1
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
    """Sorts outages, in the order in which they end, into incidents."""

    def __init__(self) -> None:
        self._by_address: dict[str, list[Incident]] = {}
        self._count = 0

    def add(self, outage: Outage, last: object = None) -> Incident:
        """Count an outage that has ended (or is open when the log ends); returns its incident.

        ``last`` is the incident of the same connection's outage before, if there was one.
        """
        known = self._by_address.setdefault(outage.address, [])
        for incident in reversed(known):
            if incident.began - TOGETHER <= outage.began <= incident.last_began + TOGETHER:
                break
        else:
            incident = Incident(outage.address, outage.began, outage.began)
            known.append(incident)
            self._count += 1
        incident.add(outage, again=incident is last)
        if self._count > 2 * _KEPT:
            self._forget()
        return incident

    def worst(self, count: int) -> list[Incident]:
        """The incidents in which connections suffered longest, taken together."""
        everything = [incident for known in self._by_address.values() for incident in known]
        everything.sort(key=lambda one: (-one.suffered_s, one.began, one.address))
        return everything[:count]

    def _forget(self) -> None:
        kept = self.worst(_KEPT)
        self._by_address, self._count = {}, len(kept)
        for incident in sorted(kept, key=lambda one: one.began):
            self._by_address.setdefault(incident.address, []).append(incident)

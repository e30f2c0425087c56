"""Notices: what people are told of outages at WARNING, whoever watches the application's log.

One when an outage has lasted and calls wait for its end or failed of it, or when it takes a turn
that waiting does not mend; one when it is over. However many connections one address has, there are
no more than these two: what all of them go through is one outage to whoever is on call.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from operator import sub

from ..audit.records import WARNING
from ..audit.stream import Audit, Emission
from ..errors import Failure
from ..table import State
from .flight import Outage
from .lifecycle import Lifecycle
from .recording import record_outage

#: An outage that is shorter (seconds) is nobody's business but that of those who wait.
NOTICE_AFTER = 3.0
_MOST = 1000

_CAUSES = {
    Failure.TRANSIENT: "the server cannot be reached",
    Failure.DEADLINE: "the server does not answer",
    Failure.PERMANENT: "the server refuses this client",
    Failure.NOT_UP: "the server answers that it is not ready",
    Failure.REPLICATE_VIOLATION: "the cluster is not the primary any more",
}


@dataclass(slots=True, eq=False)
class _Trouble:
    """What the connections to one address go through at the same time, and since when."""

    began: float
    #: by connection id: those that are out of service, and the last outage of all that were
    down: dict[str, Lifecycle] = field(default_factory=dict)
    last: dict[str, Outage] = field(default_factory=dict)
    #: all there were (a connection may have several while another one is down); of more than
    #: ``_MOST`` that are over the oldest are forgotten
    outages: dict[Outage, None] = field(default_factory=dict)
    #: what was made to be told, and has the first of it been queued?
    made: dict[str, Emission] = field(default_factory=dict)
    told: bool = False

    def add(self, life: Lifecycle, outage: Outage) -> None:
        """``life`` is in an outage."""
        self.outages.setdefault(outage)
        self.last[life.id], self.down[life.id] = outage, life
        if len(self.outages) > len(self.last) + _MOST:
            goes_on = set(self.last.values())
            for oldest in [one for one in list(self.outages) if one not in goes_on][:1]:
                self.outages.pop(oldest, None)

    def so_far(self) -> tuple[int, ...]:
        """As of an outage, of all of them together, but for what was told before."""
        news = [map(sub, one.so_far(), one.told) for one in list(self.outages)]
        return tuple(map(sum, zip(*news, strict=True)))

    def over(self, now: float) -> bool:
        """A call has succeeded: are all the others back, too? One that has no call yet that says so
        is, once it has been in service for a while."""
        return all(
            life.flight is None
            and not life.suspect
            and life.state in (State.ACTIVE, State.IDLE)
            and now - life.state_since >= NOTICE_AFTER
            and self.last[life.id].flaps == self.last[life.id].told[-1]
            for life in list(self.down.values())
        )


def _calls(count: int, did: str) -> str:
    return f"{count} call{'' if count == 1 else 's'} {did}"


class Notices:
    """The outages of a pool. No lock: each change is one operation of a dict, and whoever is
    interrupted leaves it to somebody else, who begins anew; a record that is queued twice is read
    once."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        #: by address; empty while nothing is out of service
        self.troubles: dict[str, _Trouble] = {}

    def reset_after_fork(self) -> None:
        """In the child: outages are the parent's to tell of."""
        self.troubles = {}

    def look(self, life: Lifecycle, now: float) -> None:
        """A connection has taken a step: is there something to be told?"""
        address, outage = life.config.address, life.outage
        if outage is not None and life.state is not State.CLOSED:
            trouble = self.troubles.setdefault(address, _Trouble(now))
            trouble.add(life, outage)
            if not trouble.told:
                trouble.told = self._tell_beginning(trouble, life, outage, now)
        # Asked anew: it may have ended since, and whoever ended it may have looked before that.
        closed, ours = life.state is State.CLOSED, self.troubles.get(address)
        if ours is not None and life.id in ours.last and (closed or life.outage is None):
            ours.down.pop(life.id, None)
            if not ours.down or (not closed and ours.over(now)):
                if ours.told:
                    self._tell_end(ours, life, now)
                self.troubles.pop(address, None)

    def _tell_beginning(
        self, trouble: _Trouble, life: Lifecycle, outage: Outage, now: float
    ) -> bool:
        age, flaps = now - trouble.began, outage.flaps > outage.told[-1]
        if not (outage.given_up or flaps or age >= NOTICE_AFTER):
            return False
        down, budget = list(trouble.down.values()), life.policy.recovery_budget
        flights = [each.flight for each in down]
        waiting = sum(flight.waiting for flight in flights if flight is not None)
        _, _, failed, _ = trouble.so_far()
        failure = life.last_failure
        permanent = failure is not None and failure.kind is Failure.PERMANENT
        if outage.given_up and permanent:
            what = "the server refuses this client, and waiting does not mend that"
        elif outage.given_up:
            what = f"no channel within recovery_budget ({budget:g} s); each call tries again"
        elif flaps:
            what = "the server accepts connections and fails every call"
        elif waiting or failed:
            kind = Failure.OTHER if failure is None else failure.kind
            what = f"{_CAUSES.get(kind, 'there is no usable connection')}, for {age:.1f} s"
        else:
            return False
        parts = [what]
        if waiting:
            parts.append(_calls(waiting, "waits" if waiting == 1 else "wait"))
        if failed:
            parts.append(f"{failed} failed")
        if len(down) > 1:
            parts.append(f"{len(down)} connections")
        cause = "" if failure is None else f": {failure.text}"
        self._tell(trouble, life, "down", "; ".join(parts) + cause, age)
        return True

    def _tell_end(self, trouble: _Trouble, life: Lifecycle, now: float) -> None:
        age = now - trouble.began
        tries, waited, failed, _ = trouble.so_far()
        closed = life.state is State.CLOSED
        news, what = ("closed", "while it was down, ") if closed else ("back", "")
        plural = "" if tries == 1 else "s"
        what += f"after {age:.1f} s and {tries} attempt{plural}: "
        what += f"{_calls(waited, 'waited')}, {failed} failed"
        if len(trouble.last) > 1:
            what += f"; {len(trouble.last)} connections"
        self._tell(trouble, life, news, what, age)
        for one in list(trouble.outages):
            one.told = one.so_far()

    def _tell(self, trouble: _Trouble, life: Lifecycle, news: str, what: str, age: float) -> None:
        with life.lock, life.section:
            record = record_outage(life, news, what, age, trouble.last[life.id])
            if "down" in trouble.made:  # of a global cluster that has moved, too
                record = replace(record, address=trouble.made["down"].record.address)
            self._audit.queue(trouble.made.setdefault(news, Emission(record, WARNING)))
        self._audit.serve()

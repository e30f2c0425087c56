"""The set-ups that are searched: all of them in CI, deeper ones by option.

Every run of the tests searches all of them, too, some with less in them (``daily``).
"""

from __future__ import annotations

from dataclasses import replace

from tests.simulation.setup import Plan, Setup

CALLER = Plan(2, ("checkout", "call"))
GUEST = Plan(3, ("checkout", "call", "release"))
READY = Plan(1, ("call",), ready=True)
#: two of them have a connection each to one address
ALONE = Plan(1, ("rpc",), ready=True, dedicated=True)
_PAIR = (ALONE, ALONE)
LIMITED = Plan(2, ("call",), ready=True, limit=1.0)

#: Switches between any two moves of I/O: what asyncio does, and threads that are lucky.
SETUPS: tuple[Setup, ...] = (
    Setup("first connect", (Plan(1, ("checkout",)),) * 3),
    Setup(
        "first connect and close_all",
        (Plan(1, ("checkout",)),) * 2,
        ("close_all",),
        faults=1,
        daily={"faults": 0},
    ),
    Setup(
        "impatient first connect",
        (Plan(1, ("checkout",), timeout=0.5), CALLER),
        faults=2,
        daily={"faults": 1},
    ),
    Setup("outage", (READY, READY, READY), ("close_handler",), faults=1),
    Setup(
        "outage after outage", (READY, READY), ("close_handler",), daily={"kinds": ("unavailable",)}
    ),
    Setup("outage upon outage", (READY, READY), faults=3, daily={"kinds": ("unavailable",)}),
    Setup("outage and close_all", (READY, READY), ("close_all",), faults=1),
    Setup(
        "three callers",
        (CALLER, CALLER, CALLER),
        faults=1,
        daily={"actors": (CALLER, *(Plan(1, ("checkout",)),) * 2), "kinds": ("unavailable",)},
    ),
    Setup("two outages", (CALLER, CALLER), flights=5, daily={"actors": (CALLER, READY)}),
    Setup("come and go", (GUEST, GUEST), faults=1),
    Setup(
        "dead leaders",
        (CALLER, CALLER),
        kinds=("unavailable", "dead", "nothread"),
        daily={"faults": 1},
    ),
    Setup(
        "cancelled callers",
        (CALLER, CALLER),
        kinds=("unavailable", "cancelled"),
        daily={"faults": 1},
    ),
    Setup("refused", (CALLER, CALLER), kinds=("unavailable", "refused"), daily={"faults": 1}),
    Setup("deadlines", (LIMITED, READY), policy={"recovery_budget": 3.0}, daily={"faults": 1}),
    Setup(
        "idle",
        (Plan(2, ("call",), ready=True), Plan(2, ("checkout", "rpc"))),
        faults=1,
        policy={"idle_threshold": 0.5},
        stops=(1.0, 2.0),
        daily={"actors": (READY, Plan(1, ("checkout",))), "stops": (1.0,)},
    ),
    Setup("rotation", (READY,), faults=1, policy={"max_age": 1.0}, flights=3),
    Setup(
        "drain",
        (READY, READY),
        faults=2,
        policy={"drain_timeout": 1.0},
        stops=(1.5,),
        daily={"faults": 1},
    ),
    Setup(
        "dedicated",
        (replace(GUEST, dedicated=True), Plan(1, ("checkout",), dedicated=True)),
        faults=1,
        kinds=("unavailable",),
        daily={
            "actors": (
                replace(GUEST, moves=2, dedicated=True),
                Plan(1, ("checkout",), dedicated=True),
            )
        },
    ),
    Setup(
        "one address", (ALONE, replace(READY, dedicated=True)), faults=3, daily={"actors": _PAIR}
    ),
    Setup("one address, dead leader", _PAIR, faults=3, kinds=("unavailable", "dead")),
    Setup(
        "collected",
        (Plan(3, ("checkout", "call", "vanish")), CALLER),
        faults=1,
        daily={"actors": (Plan(2, ("checkout", "call", "vanish")), CALLER)},
    ),
    Setup(
        "collected inside a step",
        (Plan(1, ("vanish_in_step",), ready=True), Plan(2, ("call", "release"), ready=True)),
        ("close_handler",),
        faults=1,
    ),
    Setup(
        "finalizers inside a step",
        (
            Plan(1, ("vanish_in_step",), ready=True, anonymous=True, finalizer=True),
            replace(READY, moves=2),
        ),
        faults=1,
    ),
    Setup(
        "a finalizer in a landing",
        (
            Plan(
                2,
                ("call", "vanish_in_step"),
                ready=True,
                anonymous=True,
                finalizer=True,
                limit=1.0,
            ),
        ),
    ),
    Setup(
        "anonymous, cancelled",
        (replace(CALLER, anonymous=True), Plan(1, ("checkout",))),
        faults=1,
        kinds=("cancelled",),
    ),
    Setup(
        "anonymous",
        (replace(GUEST, anonymous=True), CALLER),
        faults=1,
        kinds=("unavailable", "cancelled"),
        daily={"kinds": ("unavailable",)},
    ),
    Setup(
        "fork",
        (READY, CALLER),
        ("fork",),
        faults=1,
        daily={"actors": (READY, Plan(1, ("checkout",)))},
    ),
)

#: One caller or two, in the corners of the table.
CORNERS: tuple[Setup, ...] = (
    Setup(
        "server away",
        (Plan(2, ("call", "release"), ready=True),),
        faults=5,
        flights=5,
        daily={"faults": 3},
    ),
    Setup(
        "doubt, and then a failure",
        (Plan(1, ("rpc",), ready=True, limit=0.5), Plan(1, ("rpc",), ready=True)),
        faults=2,
        stops=(0.25,),
    ),
    Setup("moved while idle", (Plan(1, ("release",), ready=True),), ("move",), strategy="compass"),
    Setup("nobody left", (Plan(2, ("rpc", "release"), ready=True),)),
    Setup("standby, nobody left", (Plan(2, ("rpc", "release"), ready=True),), strategy="keeper"),
    Setup(
        "dead probe",
        (READY,),
        faults=1,
        kinds=("dead", "nothread"),
        policy={"idle_threshold": 0.5},
        stops=(1.0,),
    ),
    Setup(
        "dedicated, dead leader",
        (Plan(3, ("rpc", "release"), ready=True, dedicated=True),),
        kinds=("unavailable", "dead"),
    ),
    Setup(
        "doubt, nobody left",
        (Plan(2, ("rpc", "release"), ready=True, limit=0.5),),
        faults=1,
        stops=(0.25,),
    ),
    Setup("fork early", (CALLER,), ("fork",), faults=1),
    Setup("close early", (CALLER,), ("close_all",), faults=1),
    Setup("cancelled early", (Plan(1, ("checkout",)),), kinds=("cancelled",)),
    Setup("fork while idle", (Plan(1, ("release",), ready=True),), ("fork",), faults=0),
    Setup("close while idle", (Plan(1, ("release",), ready=True),), ("close_all",), faults=0),
    Setup("probes", (READY, READY), faults=1, policy={"idle_threshold": 0.5}, stops=(1.0,)),
    Setup("first refusal", (Plan(1, ("checkout",)),), kinds=("unavailable", "refused")),
    Setup("refused in an outage", (READY,), kinds=("unavailable", "refused")),
    Setup("standby", (READY, READY), strategy="keeper"),
    Setup("linger", (GUEST, GUEST), faults=0, policy={"linger": 1.0}),
    Setup(
        "linger after an outage",
        (Plan(2, ("call", "release"), ready=True, limit=1.0),),
        faults=3,
        policy={"linger": 1.0},
    ),
    Setup("moved target", (READY, READY), ("move",), faults=1, strategy="compass"),
    Setup(
        "threads: rotation",
        (Plan(2, ("checkout", "release"), ready=True),),
        faults=0,
        preemptions=1,
        policy={"max_age": 1.0},
        flights=3,
        daily={"flights": 1},
    ),
)

#: Switches at every lock as well: what threads do.
BETWEEN_LOCKS: tuple[Setup, ...] = (
    Setup(
        "threads: first connect",
        (Plan(1, ("checkout",)),) * 2,
        faults=1,
        preemptions=1,
        daily={"faults": 0},
    ),
    Setup(
        "threads: close",
        (READY,),
        ("close_all",),
        faults=1,
        preemptions=1,
        daily={"kinds": ("unavailable",)},
    ),
    Setup("threads: outage", (READY, READY), faults=1, preemptions=2, daily={"preemptions": 1}),
    Setup(
        "threads: last one out",
        (Plan(1, ("release",), ready=True), Plan(1, ("checkout",))),
        faults=0,
        preemptions=2,
    ),
    Setup(
        "threads: dedicated",
        (Plan(2, ("call", "release"), ready=True, dedicated=True),),
        faults=1,
        preemptions=2,
        daily={"preemptions": 1},
    ),
    Setup(
        "threads: collected",
        (Plan(1, ("vanish_in_step",), ready=True), READY),
        faults=1,
        preemptions=1,
    ),
)

#: By option: hours rather than seconds.
DEEP: tuple[Setup, ...] = (
    Setup("deep: outage", (replace(READY, moves=2),) * 3, ("close_handler",), faults=3, flights=6),
    Setup("deep: callers", (CALLER,) * 3, ("close_all",), faults=2),
    Setup("deep: come and go", (GUEST,) * 3, ("close_handler",), faults=2),
    *(replace(setup, name=f"deep: {setup.name}", preemptions=3) for setup in BETWEEN_LOCKS),
)

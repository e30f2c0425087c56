"""Scenarios: leases, dedicated connections and lingering."""

from __future__ import annotations

from tests.conformance.scenario import (
    CONNECTED,
    CREATED,
    DOWN,
    FAILED,
    GAVE_UP,
    LOST,
    Lines,
    Scenario,
)

DEDICATED: Lines = ("A checkout dedicated", "register ok", "A ok")

SCENARIOS: dict[str, Scenario] = {
    "release": Scenario(
        "The last client that leaves makes the connection idle, not the others.",
        [CONNECTED, "B checkout", "B ok", "A release", "pool state=ACTIVE", "B release"],
        [CREATED, "release ACTIVE>IDLE g1 clients=0"],
    ),
    "released twice": Scenario(
        "A client that releases twice gives back its own lease, once.",
        [CONNECTED, "B checkout", "A release", "A release", "pool state=ACTIVE clients=1"],
        CREATED,
    ),
    "last lease lost in ACTIVE": Scenario(
        "A client that is collected gives its lease back.",
        [CONNECTED, "A vanishes", "pool state=IDLE clients=0"],
        [CREATED, "release ACTIVE>IDLE g1"],
    ),
    "last lease lost in PROBING": Scenario(
        "A probe lands in IDLE when nobody holds the connection any more.",
        [
            CONNECTED,
            "B borrows A",
            "advance 1",
            "B rpc timeout=5",
            "B gets fails DEADLINE_EXCEEDED",
            "A vanishes",
            "ping ok",
        ],
        [CREATED, "doubt ACTIVE>PROBING g1", "probe_passed PROBING>IDLE g1 clients=0"],
    ),
    "last lease lost in RECOVERING": Scenario(
        "A recovery lands in IDLE when nobody holds the connection any more.",
        [DOWN, "A vanishes", "register ok", "pool state=IDLE generation=2"],
        [FAILED, "recovered RECOVERING>IDLE g2 clients=0"],
    ),
    "last lease lost in an optional recovery": Scenario(
        "An optional recovery that stands down lands in IDLE when nobody holds the connection.",
        [CONNECTED, "advance 91", "A vanishes", "advance 60", "register fails UNAVAILABLE"],
        [CREATED, "recycle ACTIVE>RECOVERING g1", "stand_down RECOVERING>IDLE g1"],
        policy={"max_age": 100.0},
    ),
    "last lease lost in IDLE": Scenario(
        "After a give_up the last client may leave an idle connection, which then lingers.",
        [LOST, "A vanishes", "pool state=IDLE clients=0", "advance 301", "pool empty"],
        [GAVE_UP, "expire IDLE>CLOSED g1"],
        warnings=2,
    ),
    "last lease lost in CLOSED": Scenario(
        "Leases of a closed connection are nobody's concern.",
        [CONNECTED, "close all", "A vanishes", "pool empty"],
        [CREATED, "close ACTIVE>CLOSED g1"],
    ),
    "dedicated": Scenario(
        "A dedicated connection is shared with nobody and ends with its client.",
        [
            DEDICATED,
            "B checkout",
            "channels 2",
            "register ok",
            "B ok",
            "A release",
            "channel 1 closed",
            "channel 2 open",
        ],
        [
            CREATED,
            "2: created",
            "2: acquire IDLE>PROBING g0",
            "2: probe_passed PROBING>ACTIVE g1",
            "release ACTIVE>CLOSED g1",
        ],
    ),
    "dedicated, twice by one client": Scenario(
        "Concurrent first calls of one client share one dedicated connect.",
        [
            "A checkout dedicated",
            "B uses A",
            "B checkout dedicated",
            "channels 1",
            "register ok",
            "A ok",
            "B ok",
            "pool clients=1",
        ],
        CREATED,
    ),
    "dedicated and collected": Scenario(
        "A dedicated connection whose client is collected is closed.",
        [DEDICATED, "A vanishes", "pool empty", "channel 1 closed"],
        [CREATED, "release ACTIVE>CLOSED g1"],
    ),
    "dedicated and collected during a recovery": Scenario(
        "A dedicated connection that lands without its client is closed at once.",
        [
            DEDICATED,
            "A rpc",
            "A gets fails UNAVAILABLE",
            "A vanishes",
            "register ok",
            "pool empty",
            "channel 2 closed",
        ],
        [FAILED, "recovered RECOVERING>IDLE g2", "release IDLE>CLOSED g2"],
    ),
    "dedicated and released, then used": Scenario(
        "A released dedicated connection is not revived.",
        [DEDICATED, "A release", "A rpc", "A raises ConnectionClosed"],
        [CREATED, "release ACTIVE>CLOSED g1"],
    ),
    "expiry": Scenario(
        "A connection that nobody has held or used for linger is closed.",
        [
            CONNECTED,
            "A release",
            "advance 299",
            "pool state=IDLE",
            "advance 1",
            "pool empty",
            "channel 1 closed",
        ],
        [CREATED, "release ACTIVE>IDLE g1", "expire IDLE>CLOSED g1 dwell_s=300.0"],
    ),
    "expiry waits for the last RPC": Scenario(
        "linger begins when both the last lease and the last RPC have ended.",
        [
            CONNECTED,
            "B borrows A",
            "B rpc",
            "A release",
            "advance 301",
            "pool state=IDLE in_flight=1",
            "B gets ok",
            "advance 299",
            "pool state=IDLE",
            "advance 1",
            "pool empty",
        ],
        [CREATED, "release ACTIVE>IDLE g1", "expire IDLE>CLOSED g1"],
    ),
    "held again before it expired": Scenario(
        "A connection that was held meanwhile lingers anew.",
        [
            CONNECTED,
            "A release",
            "advance 20",
            "B checkout",
            "B ok",
            "advance 290",
            "B release",
            "advance 299",
            "pool state=IDLE",
            "advance 1",
            "pool empty",
        ],
        [
            CREATED,
            "release ACTIVE>IDLE g1",
            "acquire IDLE>ACTIVE g1",
            "release ACTIVE>IDLE g1",
            "expire IDLE>CLOSED g1",
        ],
    ),
}

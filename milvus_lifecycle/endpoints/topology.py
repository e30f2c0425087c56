"""The topology of a global cluster: model, parser, and which of two versions holds.

Pure: bytes in, a Topology or a TopologyError out. `topology_fetch` does the I/O. The format is
that of issue 4::

    {"code": 0, "data": {"version": "1", "clusters": [
        {"clusterId": "in01-x", "endpoint": "https://in01-x.example.com", "capability": 3}]}}

A non-zero code carries a `message`. Unknown fields are ignored; everything known is checked,
because a topology says to which server every write goes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from milvus_lifecycle.config import parse_endpoint
from milvus_lifecycle.errors import BRIEF_LIMIT, ConfigError, TopologyError, TopologyReason, redact

__all__ = ["MAX_BYTES", "WRITABLE", "Cluster", "Topology", "newer", "parse_topology"]

WRITABLE = 0b10
"""Bit of `Cluster.capability`. The primary is the writable cluster."""

MAX_BYTES = 1024 * 1024
"""Longest answer that is read: 1 MiB, some 8,000 clusters."""

_SCAN_LIMIT = 2048
_VERSION_DIGITS = 18  # fits 63 bits, and no int of a megabyte of digits is ever made


@dataclass(frozen=True)
class Cluster:
    """One cluster. `endpoint` is as the service wrote it; `parse_endpoint` takes it."""

    cluster_id: str
    endpoint: str
    capability: int

    @property
    def is_primary(self) -> bool:
        """Whether writes go here."""
        return bool(self.capability & WRITABLE)


@dataclass(frozen=True)
class Topology:
    """Which clusters there are. Holds exactly one primary; `version` only grows."""

    version: int
    clusters: tuple[Cluster, ...]

    @property
    def primary(self) -> Cluster:
        """The writable cluster."""
        return next(cluster for cluster in self.clusters if cluster.is_primary)

    def __post_init__(self) -> None:
        if not self.clusters:
            _fail(TopologyReason.EMPTY, "data.clusters is empty")
        primaries = sum(cluster.is_primary for cluster in self.clusters)
        if primaries == 0:
            _fail(TopologyReason.NO_PRIMARY, "none of the clusters is writable")
        if primaries > 1:
            _fail(TopologyReason.TWO_PRIMARIES, f"{primaries} clusters are writable, not one")


def parse_topology(payload: object) -> Topology:
    """Read the service's answer: its bytes or text, or what JSON made of them.

    Raises TopologyError and nothing else; its `reason` says what is wrong.
    """
    answer = _mapping("the answer", _decode(payload))
    code = answer.get("code", 0)  # absent means success, as pymilvus takes it
    if isinstance(code, bool) or not isinstance(code, int):
        _wrong("code", "an integer", code)
    if code != 0:
        _fail(TopologyReason.REFUSED, f"the service refused: {_refusal(code, answer)}")
    data = _field(answer, "", "data", "an object", dict)
    version = _version(_field(data, "data.", "version", "a whole number", str, int))
    clusters = _field(data, "data.", "clusters", "a list", list)
    return Topology(version, tuple(_cluster(at, entry) for at, entry in enumerate(clusters)))


def newer(current: Topology | None, candidate: Topology) -> Topology:
    """The topology to go by, once `candidate` has been fetched: the greater version.

    An equal one changes nothing, also when the contents differ: two replicas of the service that
    disagree must not make clients go back and forth. Raises TopologyError (OUTDATED) if the
    version went back.
    """
    if current is None or candidate.version > current.version:
        return candidate
    if candidate.version < current.version:
        _fail(
            TopologyReason.OUTDATED,
            f"version {candidate.version} is older than version {current.version}, already seen",
        )
    return current


def _decode(payload: object) -> object:
    if not isinstance(payload, (bytes, bytearray, str)):
        return payload
    if len(payload) > MAX_BYTES:
        _fail(TopologyReason.TOO_LARGE, f"the answer is longer than {MAX_BYTES:,} bytes")
    try:
        decoded: object = json.loads(payload)
    except (ValueError, RecursionError):
        # Not chained: a JSON error carries the whole document.
        raise TopologyError(TopologyReason.GARBAGE, "the answer is not JSON") from None
    return decoded


def _mapping(where: str, value: object) -> dict[object, object]:
    if not isinstance(value, dict):
        _wrong(where, "an object", value)
    return value


def _field(values: dict[Any, Any], where: str, name: str, expected: str, *kinds: type) -> Any:
    """A required field. True and False are no numbers here."""
    if name not in values:
        _fail(TopologyReason.MISSING, f"{where}{name} is missing")
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, kinds):
        _wrong(f"{where}{name}", expected, value)
    return value


def _version(value: str | int) -> int:
    """Accept 1 and "1": the service sends text, and may change its mind."""
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit() and len(value) <= _VERSION_DIGITS):
            _wrong("data.version", "a whole number", value)
        value = int(value)
    if not 0 <= value < 10**_VERSION_DIGITS:
        _fail(TopologyReason.WRONG_TYPE, "data.version is out of range")
    return value


def _cluster(at: int, entry: object) -> Cluster:
    where = f"data.clusters[{at}]"
    fields = _mapping(where, entry)
    cluster_id = _field(fields, f"{where}.", "clusterId", "a text", str)
    if not cluster_id:
        _wrong(f"{where}.clusterId", "a text", cluster_id)
    endpoint = _field(fields, f"{where}.", "endpoint", "a text", str)
    try:
        parse_endpoint(endpoint)
    except ConfigError as error:
        problem = f"{where}: {error.detail}"
        raise TopologyError(TopologyReason.WRONG_TYPE, problem) from None
    capability = _field(fields, f"{where}.", "capability", "a whole number", int)
    if capability < 0:
        _wrong(f"{where}.capability", "a whole number", capability)
    return Cluster(cluster_id, endpoint, capability)


def _refusal(code: int, answer: dict[object, object]) -> str:
    message = answer.get("message")
    text = " ".join(message.split()) if isinstance(message, str) else "no message"
    shown = str(code) if abs(code) < 10**_VERSION_DIGITS else "a huge number"
    # Redacted before it is cut: half a credential would not be recognized.
    return f"{redact(text[:_SCAN_LIMIT])[:BRIEF_LIMIT]} (code {shown})"


def _wrong(where: str, expected: str, value: object) -> NoReturn:
    given = "nothing" if value in (None, "") else type(value).__name__
    _fail(TopologyReason.WRONG_TYPE, f"{where} must be {expected}, not {given}")


def _fail(reason: TopologyReason, message: str) -> NoReturn:
    raise TopologyError(reason, message)

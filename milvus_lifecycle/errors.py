"""What can go wrong: the exception tree, and the classification of foreign errors.

::

    Exception
    └── LifecycleError             address, attempts, elapsed, last_error
        ├── ConfigError            also a ValueError: bad URI, token, TLS file, option, policy field
        ├── ConnectFailed          the first connect of a connection failed
        ├── RecoveryExhausted      a recovery spent `recovery_budget` without a working channel
        ├── PermanentFailure       the server or the TLS files refuse us: waiting will not help
        ├── DeadlineExceeded       the caller's own timeout ended before the engine was done
        ├── ConnectionClosed       the connection was closed under its user
        ├── Interrupted            an attempt taken back; callers never see it
        ├── UnknownHandler         a handler that this manager did not hand out
        ├── LoopMismatch           an asyncio connection used outside its event loop
        ├── TopologyError          a global cluster's topology is unusable; see TopologyReason
        └── IllegalTransition      a trigger arrived in a state where the table says: impossible

A message says what happened, to which address, and what to do. No message contains a token,
a password or a key: what came from outside goes through `redact` first.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import grpc

BRIEF_LIMIT = 200
"""Characters of `brief`: an error fits one line of a log."""

_SCAN_LIMIT = 2048
"""Characters of a foreign text that are looked at: servers send pages of debug output."""

_CODE_LIMIT = 64
_TAIL = 90

#: How gRPC begins to tell of any connect that failed.
_BOILERPLATE = re.compile(r"^failed to connect to all addresses; last error: (UNKNOWN: )?")

#: Where gRPC looks for a proxy; the first that is set counts.
PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")

#: What gRPC says of a connect that failed (a pattern) -> what to do about it. ``{proxy}`` is the
#: variable.
_ADVICE = (
    ("WRONG_VERSION_NUMBER", "The server speaks plaintext: use http://, or secure=False."),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "The certificate is not signed by an authority that is trusted here: give the authority's "
        "as server_pem_path or ca_pem_path.",
    ),
    (
        "Hostname Verification Check failed",
        "The certificate is for another name: use that one in the URI, or give it as server_name.",
    ),
    (
        "HTTP proxy returned",
        "It was refused by the proxy in {proxy}: if Milvus is to be reached directly, name its "
        "host in no_proxy.",
    ),
    (
        "UNAVAILABLE: errors resolving",
        "The name cannot be resolved: check the URI's host, and DNS.",
    ),
    (
        "UNAVAILABLE: .*Socket closed",
        "Check that Milvus listens there; if it wants TLS, the URI has to begin with https://.",
    ),
)

REPLICATE_VIOLATION_MARK = "STREAMING_CODE_REPLICATE_VIOLATION"
"""How Milvus says, inside a message, that a client writes to a secondary (issue 4)."""

NOT_READY_CODES = frozenset({101})
"""Milvus status codes of a collection that is not loaded. Milvus 2.3.5 answers 101 from 9 to 35 s
after a restart and loads by itself meanwhile, Milvus Lite 3.2.2 until somebody calls load()."""

_RATE_LIMIT = 8
#: Milvus 2.3.5, while it goes down, answers 65535 "failed to connect ..." where one of its parts
#: is gone already; while it comes up, "service not ready". It knows no flag for that.
_NOT_UP = re.compile(r"not ready|not healthy|failed to connect", re.IGNORECASE)
#: Codes of the service as a whole; those of 100 and up are about what a request asked for.
_ABOUT_SERVICE = frozenset({*range(100), 65535})
#: What a user wrote himself (a filter), to the end if that is cut off or lacks its closing quote.
_QUOTED = re.compile(r"([\"'`]).*?(?:\1|$)", re.DOTALL)

# Order matters: userinfo first, because a password may look like anything.
_SECRETS = (
    (re.compile(r"(?<=//)\S*@"), "***@"),
    (re.compile(r"\b(bearer|basic)\s+\S+", re.IGNORECASE), r"\1 ***"),
    (
        re.compile(
            r"\b(tokens?|passw(?:or)?d|secret|api[-_]?key|authorization)"
            r"(['\"]?\s*[=:]\s*)(?!(?:bearer|basic)\b)(?:'[^']*'|\"[^\"]*\"|[^\s,;'\"]+)",
            re.IGNORECASE,
        ),
        r"\1\2***",
    ),
)


#: makes an error what the SDK's users know; see ``for_callers``
_translator: list[Callable[[Any], Exception]] = []


def translate_by(translator: Callable[[Any], Exception]) -> None:
    """Have ``for_callers`` use ``translator``: the managers do, as they know the SDK."""
    _translator[:] = [translator]


def for_callers(error: LifecycleError) -> Exception:
    """The error as the SDK's users know errors.

    For what is raised with no manager at hand, whose transport knows its users.
    """
    return _translator[0](error) if _translator else error


def redact(text: str) -> str:
    """Cut what looks like a credential out of a text that came from outside."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class LifecycleError(Exception):
    """Root of everything that the engine raises of its own accord.

    Attributes:
        address: ``host:port`` of the connection, "" when the error is not about one.
        attempts: connection attempts that were made, 0 when none were.
        elapsed: seconds spent on them.
        last_error: what the last attempt failed with.
        detail: the message without these facts and without the advice.
    """

    headline: ClassVar[str] = "the connection engine failed"
    advice: ClassVar[str] = ""

    def __init__(
        self,
        message: str = "",
        *,
        address: str = "",
        attempts: int = 0,
        elapsed: float = 0.0,
        last_error: BaseException | None = None,
    ) -> None:
        self.address = address
        self.attempts = attempts
        self.elapsed = elapsed
        self.last_error = last_error
        self.detail = redact(message) or self.headline
        # Not super(): the integration derives classes from these and from MilvusException, whose
        # first argument is a code.
        Exception.__init__(self, self._compose(self.detail))

    @property
    def audit_code(self) -> str:
        """Short code for audit records; `error_code` returns it.

        Not `code`: a subclass that is also a MilvusException has an integer under that name.
        """
        return type(self).__name__

    def _compose(self, headline: str) -> str:
        facts = []
        if self.address:
            facts.append(f"address {self.address}")
        if self.attempts:
            plural = "" if self.attempts == 1 else "s"
            facts.append(f"{self.attempts} attempt{plural} in {self.elapsed:.1f} s")
        elif self.elapsed:
            facts.append(f"after {self.elapsed:.1f} s")
        if self.last_error is not None:
            facts.append(f"last error: {brief(self.last_error)}")
        text = f"{headline} ({'; '.join(facts)})" if facts else headline
        advice = self._advise(facts[-1]) if self.last_error is not None else self.advice
        return f"{text}. {advice}" if advice else text

    def _advise(self, cause: str) -> str:
        """What to do, by the cause if that is known to tell."""
        variable = next((name for name in PROXY_VARIABLES if os.environ.get(name)), "")
        for sign, advice in _ADVICE:
            if re.search(sign, cause):
                return advice.format(proxy=variable)
        if variable and "remote host" in cause:
            return f"{self.advice} gRPC goes through the proxy in {variable}.".strip()
        return self.advice

    def __reduce__(self) -> tuple[Any, ...]:
        # A gRPC error cannot be pickled; its text is in the message already, so that an error
        # of a worker process reaches its parent.
        state = {**self.__dict__, "last_error": None}
        return type(self).__new__, (type(self), *self.args), state


class ConfigError(LifecycleError, ValueError):
    """A URI, token, TLS file, option or policy field is unusable.

    `field` names it. The message says what is accepted.
    """

    headline = "unusable configuration"

    def __init__(self, message: str = "", *, field: str = "", address: str = "") -> None:
        self.field = field
        super().__init__(message, address=address)


class ConnectFailed(LifecycleError):
    """The first connect of a connection failed; nothing is pooled."""

    headline = "could not connect"
    advice = "Check that Milvus listens there and that the URI, credentials and TLS settings fit."


class RecoveryExhausted(LifecycleError):
    """No working channel within `recovery_budget`; the next call starts the next recovery."""

    headline = "could not reconnect within recovery_budget"
    advice = "Check the server; the next call tries again. LifecyclePolicy sets the budget."


class PermanentFailure(LifecycleError):
    """The server refuses the credentials, or the TLS files are unusable."""

    headline = "the server refuses this client for good"
    advice = "Waiting does not help: check token, user, password, permissions and TLS files."


class DeadlineExceeded(LifecycleError):
    """The caller's own timeout ended first; others may still be waiting."""

    headline = "the call's own timeout ended before the connection was usable"
    advice = "Give the call a longer timeout, or check the server."


class ConnectionClosed(LifecycleError):
    """The connection was closed: by its last client, by close_all or by uninstall."""

    headline = "the connection is closed"
    advice = "Create a new client."


class Interrupted(LifecycleError):
    """An attempt was taken back: the process forks, or the target has moved. Never seen outside."""

    headline = "the attempt was taken back"


class UnknownHandler(LifecycleError):
    """A handler that this manager did not hand out, or has already let go."""

    headline = "this handler does not belong to this connection manager"
    advice = "Release a handler once, to the manager that get_or_create was called on."


class LoopMismatch(LifecycleError):
    """An asyncio connection was used outside the event loop that it belongs to."""

    headline = "this connection belongs to another event loop"
    advice = "Use AsyncConnectionManager.get_instance() inside the running loop."


class TopologyReason(enum.Enum):
    """Why a topology could not be used. The values go into messages and audit records."""

    GARBAGE = "GARBAGE"  # not JSON, or not UTF-8
    MISSING = "MISSING"  # a required field is absent
    WRONG_TYPE = "WRONG_TYPE"  # a field has an unusable type or value
    EMPTY = "EMPTY"  # no clusters at all
    NO_PRIMARY = "NO_PRIMARY"  # no writable cluster
    TWO_PRIMARIES = "TWO_PRIMARIES"  # more than one writable cluster
    REFUSED = "REFUSED"  # the service answered with a non-zero code
    OUTDATED = "OUTDATED"  # the version went back
    TOO_LARGE = "TOO_LARGE"  # the answer is longer than the limit
    REDIRECT = "REDIRECT"  # a redirect, never followed with the token
    UNAUTHORIZED = "UNAUTHORIZED"  # HTTP 401 or 403
    HTTP_STATUS = "HTTP_STATUS"  # any other HTTP status than 200
    UNREACHABLE = "UNREACHABLE"  # no connection, or one that was cut short
    UNTRUSTED = "UNTRUSTED"  # the server's certificate does not verify
    DEADLINE = "DEADLINE"  # the caller's deadline ended first
    BAD_REQUEST = "BAD_REQUEST"  # endpoint, token or TLS files that no request can be made of


class TopologyError(LifecycleError):
    """A global cluster's topology could not be fetched or used; `reason` says why."""

    headline = "the topology of the global cluster is unusable"
    advice = (
        "Check endpoint, token and TLS settings of the global cluster; connections that exist "
        "stay on the last known primary."
    )

    def __init__(self, reason: TopologyReason, message: str = "", **facts: Any) -> None:
        self.reason = reason
        super().__init__(message, **facts)

    @property
    def audit_code(self) -> str:
        """Short code that names the reason, such as "TOPOLOGY_NO_PRIMARY"."""
        return f"TOPOLOGY_{self.reason.value}"


class IllegalTransition(LifecycleError):
    """A trigger arrived in a state where the table calls it impossible: an engine defect."""

    headline = "a trigger arrived in a state where the table says it is impossible"
    advice = "This is a defect of milvus_lifecycle: please report it with the audit log."


class Failure(enum.Enum):
    """What an error means to the engine."""

    TRANSIENT = "TRANSIENT"  # the connection is broken: recover
    DEADLINE = "DEADLINE"  # an RPC ran out of time: maybe a black hole, worth a probe
    PERMANENT = "PERMANENT"  # waiting will not help
    REPLICATE_VIOLATION = "REPLICATE_VIOLATION"  # wrote to a secondary of a global cluster
    NOT_UP = "NOT_UP"  # the server answers that it is not ready yet
    NOT_READY = "NOT_READY"  # not loaded: perhaps it is being loaded, see readiness
    OTHER = "OTHER"  # the caller's business


_GRPC_FAILURES = {
    grpc.StatusCode.UNAVAILABLE: Failure.TRANSIENT,
    grpc.StatusCode.DEADLINE_EXCEEDED: Failure.DEADLINE,
    grpc.StatusCode.UNAUTHENTICATED: Failure.PERMANENT,
    grpc.StatusCode.PERMISSION_DENIED: Failure.PERMANENT,
}


def classify(error: BaseException) -> Failure:
    """Return what `error` means to the engine. Total: it never raises.

    The engine's own errors are OTHER, so that it never recovers from itself; only
    ConfigError and PermanentFailure are PERMANENT.
    """
    if isinstance(error, LifecycleError):
        permanent = isinstance(error, (ConfigError, PermanentFailure))
        return Failure.PERMANENT if permanent else Failure.OTHER
    if isinstance(error, grpc.RpcError):
        return _kind_of(error, _status(error))
    # pymilvus is not imported here: its exceptions are told by `code` and `message`.
    message = _read(error, "message")
    if isinstance(message, str) and REPLICATE_VIOLATION_MARK in message:
        return Failure.REPLICATE_VIOLATION
    code = _read(error, "code")
    if isinstance(message, str) and isinstance(code, int):
        if code in NOT_READY_CODES:
            return Failure.NOT_READY
        if not_up(code, message, _read(error, "retriable")):
            return Failure.NOT_UP
    return Failure.OTHER


def not_up(code: int, reason: str, retriable: object) -> bool:
    """Does a status ask to try again later, by its flag or in words? Rate limits are another
    matter: pymilvus waits itself."""
    if code in (*NOT_READY_CODES, _RATE_LIMIT):
        return False
    words = code in _ABOUT_SERVICE and _NOT_UP.search(_QUOTED.sub("", reason)) is not None
    return retriable is True or words


def _kind_of(error: grpc.RpcError, status: grpc.StatusCode | None) -> Failure:
    if status is grpc.StatusCode.UNKNOWN and _NOT_UP.search(str(_read(error, "details"))):
        return Failure.NOT_UP
    return Failure.OTHER if status is None else _GRPC_FAILURES.get(status, Failure.OTHER)


def error_code(error: BaseException) -> str:
    """Return a short code for audit records, such as "UNAVAILABLE", "101" or a class name.

    Never a message, at most 64 characters. Total: it never raises.
    """
    if isinstance(error, LifecycleError):
        return error.audit_code
    if isinstance(error, grpc.RpcError):
        status = _status(error)
        return type(error).__name__ if status is None else status.name
    if classify(error) is Failure.REPLICATE_VIOLATION:
        return Failure.REPLICATE_VIOLATION.value
    code = _read(error, "code")
    if isinstance(code, grpc.StatusCode):
        return code.name
    if isinstance(code, int) and not isinstance(code, bool) and abs(code) < 10**9:
        return str(int(code))
    return type(error).__name__[:_CODE_LIMIT]


def brief(error: BaseException) -> str:
    """Return one line of at most 200 characters, without traceback and without secrets.

    A gRPC error becomes code and details, a Milvus status its code and message.
    Total: it never raises.
    """
    if isinstance(error, grpc.RpcError):
        name, text = error_code(error), _read(error, "details")
    elif isinstance(error, LifecycleError):
        name, text = type(error).__name__, error.args[0] if error.args else ""
    else:
        text = _read(error, "message")
        has_code = isinstance(text, str) and isinstance(_read(error, "code"), int)
        name = error_code(error) if has_code else type(error).__name__
        text = text if has_code else _read(error, "__str__")
    return _line(name, text, isinstance(error, grpc.RpcError))


def _line(name: str, text: object, of_rpc: bool) -> str:
    line = " ".join(redact(str(text)[:_SCAN_LIMIT]).split()) if isinstance(text, str) else ""
    line = line if line.isprintable() else "".join(filter(str.isprintable, line))
    line = _BOILERPLATE.sub("", line)
    line = f"{name}: {line}" if line else name
    if len(line) <= BRIEF_LIMIT:
        return line
    if of_rpc:
        # gRPC says last what happened ("... CERTIFICATE_VERIFY_FAILED: unable to get issuer ...").
        return line[: BRIEF_LIMIT - _TAIL - 5] + " ... " + line[-_TAIL:]
    return line[: BRIEF_LIMIT - 3] + "..."


def _status(error: grpc.RpcError) -> grpc.StatusCode | None:
    status = _read(error, "code")
    return status if isinstance(status, grpc.StatusCode) else None


def _read(error: BaseException, name: str) -> object:
    """Return an attribute, called when it can be; None when that fails.

    Errors come from anywhere: `code` may be a method, a property that raises, or absent.
    """
    try:
        value = getattr(error, name, None)
        return value() if callable(value) else value
    except Exception:
        return None


class RpcSummary(grpc.RpcError):
    """Code and details of an RPC's error; the details as `brief` shows them."""

    def __init__(self, code: str, line: str) -> None:
        self._code = grpc.StatusCode.__members__.get(code, grpc.StatusCode.UNKNOWN)
        self._details = line.removeprefix(code).removeprefix(": ")
        super().__init__(line)

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


@dataclass(frozen=True, slots=True)
class FailureSummary:
    """An error as the engine keeps it: enough to tell of it, and nothing that it would keep alive.

    An error's traceback holds the frames that it went through: with them the requests, and gRPC's
    call object, which keeps the socket of a channel open that was closed.
    """

    kind: Failure
    #: as `error_code` and `brief` give them
    code: str
    text: str
    _copy: BaseException | None

    @property
    def error(self) -> BaseException:
        """What users see as `last_error`: the error without traceback, cause and context."""
        return RpcSummary(self.code, self.text) if self._copy is None else self._copy


def shown(failure: FailureSummary | None) -> BaseException | None:
    """What users see of a failure."""
    return None if failure is None else failure.error


def summarize(error: BaseException) -> FailureSummary:
    """What to keep of `error`."""
    if isinstance(error, grpc.RpcError):
        status = _status(error)
        code = type(error).__name__ if status is None else status.name
        return FailureSummary(
            _kind_of(error, status), code, _line(code, _read(error, "details"), True), None
        )
    return FailureSummary(classify(error), error_code(error), brief(error), _bare(error))


def _bare(error: BaseException) -> BaseException:
    kind = type(error)
    try:
        # Not through __init__, which takes other arguments in each class.
        copy: BaseException = kind.__new__(kind, *error.args)
        copy.__dict__.update(error.__dict__)
    except Exception:  # better without its own traceback than not at all
        return error.with_traceback(None)
    return copy

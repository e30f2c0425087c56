"""Records to the application's own logging: structlog if configured, else ``logging``, else none.

A library never configures logging. Unconfigured structlog prints to stdout, so it is only
used when the application configured it. The logger ``milvus_lifecycle`` has a NullHandler:
with nothing configured, nothing is printed and nothing is built.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import Any

from .records import DEBUG, INFO, OUTAGE, WARNING, Sink, TransitionRecord

LOGGER_NAME = "milvus_lifecycle"

_logger = logging.getLogger(LOGGER_NAME)
_logger.addHandler(logging.NullHandler())
_METHODS = {DEBUG: "debug", INFO: "info", WARNING: "warning"}
#: attributes of logging.LogRecord that ``extra`` may not overwrite
_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def _structlog() -> Any:
    """structlog, once the application has configured it. Who never imported it has not done so,
    and importing it for nothing (rich and pygments with it) takes longer than all the rest."""
    module: Any = sys.modules.get("structlog")
    # Another thread may be importing it just now.
    return module if hasattr(module, "is_configured") and module.is_configured() else None


def _has_real_handler() -> bool:
    """Would a record of our logger reach a handler that does anything?"""
    logger: logging.Logger | None = _logger
    while logger is not None:
        for handler in logger.handlers:
            if type(handler) is not logging.NullHandler:
                return True
        logger = logger.parent if logger.propagate else None
    return False


class ApplicationLog(Sink):
    """One event per record through whatever the application has configured, asked each time."""

    def wants(self, level: int = WARNING) -> bool:
        """True once structlog is configured or a real handler of ``logging`` is reachable, and
        neither is deaf to that level."""
        structlog = _structlog()
        if structlog is None:
            return _logger.isEnabledFor(level) and _has_real_handler()
        wrapper = structlog.get_config()["wrapper_class"]
        # structlog's own filter knows before there is a logger; whatever else there is gets it all.
        filtering = getattr(wrapper, "__module__", "") == "structlog._native"
        ask = getattr(wrapper, "is_enabled_for", None) if filtering else None
        return ask is None or bool(ask(None, level))

    def write(self, record: TransitionRecord, level: int) -> None:
        """One line, no traceback."""
        fields = record.as_dict()
        event = str(fields.pop("event"))
        structlog = _structlog()
        bound: Any = sys.modules.get("structlog.contextvars")
        context = bound.get_contextvars() if hasattr(bound, "get_contextvars") else {}
        if structlog is not None:
            # A fresh logger each time: a cached one would keep a configuration of yesterday.
            logger: Any = structlog.get_logger(LOGGER_NAME)
            # Merged here, so that a request id is there whatever processors were configured.
            merged = {**{k: v for k, v in context.items() if k != "event"}, **fields}
            getattr(logger, _METHODS[level])(event, **merged)
        elif _logger.isEnabledFor(level):
            extra = {**{k: v for k, v in context.items() if k not in _RESERVED}, **fields}
            step = f"{fields['source'] or '-'} -> {fields['dest']} ({fields['trigger'] or 'new'})"
            if event == OUTAGE:
                step = str(fields["trigger"])
            line = f"{event} {fields['address']} {step}: {fields['reason']}"
            _logger.log(level, "%s", line, extra=extra)

    def note_lost(self, count: int) -> None:
        """One line at WARNING."""
        warn(f"the log was too slow: it missed {count} records")


def warn(message: str) -> None:
    """Say that something beside a call does not work."""
    with suppress(Exception):  # a log handler's failure is the application's business
        structlog = _structlog()
        if structlog is not None:
            structlog.get_logger(LOGGER_NAME).warning("audit.trouble", detail=message)
        elif _has_real_handler():
            _logger.warning("audit.trouble %s", message)

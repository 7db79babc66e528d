"""Logs: JSON lines on standard error, or a readable form on a terminal.

No token, code or query string gets into them: tornado's own access log, which has whole URLs, is switched off, and
tracebacks are rendered without local variables.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog

_QUIET = {
    # "Malformed HTTP message" at INFO can hold header lines, and those hold tokens.
    "tornado.general": logging.WARNING,
    "tornado.access": logging.CRITICAL,
    "traitlets": logging.ERROR,  # jupyter_client warns that a relay does not sign; the supervisor does
    "asyncio": logging.WARNING,
    "urllib3": logging.WARNING,
    "docker": logging.WARNING,
    "alembic": logging.WARNING,
    "sqlalchemy": logging.WARNING,
}


def configure_logs(stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
    """Send structlog's and the standard library's records to `stream` (standard error unless given)."""
    stream = stream or sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(stream)],
        )
    )
    # Not in any line, and a third of what a line costs.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name, quiet_level in _QUIET.items():
        logging.getLogger(name).setLevel(quiet_level)


def _renderers(stream: TextIO) -> list[structlog.typing.Processor]:
    """JSON lines, or colours on a terminal; neither shows local variables in a traceback."""
    if stream.isatty():
        return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=repr)]

"""Logs as JSON, one object a line."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from cloister_api.text import printable

FIELDS = "fields"
"""Name of what a record carries besides its message: `log.info(message, extra={FIELDS: {...}})`."""


def about_job(key: tuple[str, str]) -> dict[str, dict[str, str]]:
    """`extra` of a line about the job with this namespace and name."""
    return {FIELDS: {"namespace": key[0], "name": key[1]}}


class JsonFormatter(logging.Formatter):
    """Time, level, logger and message; nothing else of a record is repeated."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage(), keep="\n"),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def configure_logging(level: int) -> None:
    """Everything to standard error, in JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # one line for every event of every pod

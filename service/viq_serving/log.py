"""Log lines, as JSON for machines or as text for people. One event is one line, whatever callers put into it."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

# At level debug these write what passes through them: tags of images, headers.
_TALKATIVE = ("PIL", "python_multipart", "httpcore", "hpack")


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the record's own `fields`, a traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line = {**line, **{name: value for name, value in _fields(record).items() if name not in line}}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """Time, level, logger, message, then the fields as name=value; lines of a traceback are indented."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = "".join(f" {name}={_plain(str(value))}" for name, value in _fields(record).items() if value != "")
        line = f"{time} {record.levelname} {record.name}: {_plain(record.getMessage())}{fields}"
        if record.exc_info:
            traceback = self.formatException(record.exc_info).splitlines()
            line += "".join(f"\n    {_plain(part)}" for part in traceback)
        return line


def configure(level: str, form: Literal["json", "text"]) -> None:
    """Send every log line of this process to stderr in `form`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.INFO)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = getattr(record, "fields", {})
    return fields


def _plain(text: str) -> str:
    """`text` with everything escaped that could end a line or move a terminal's cursor."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)

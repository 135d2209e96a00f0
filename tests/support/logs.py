"""What is logged in a run."""

import logging


class LineHandler(logging.Handler):
    """Collects log records as "LEVEL logger: message" lines, each record once however many loggers it is added to: the
    frameworks' loggers do not propagate, so pytest's caplog cannot, but that of transformers does where CI is set."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []
        self._last: logging.LogRecord | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record is self._last:
            return
        self._last = record
        self.lines.append(f"{record.levelname} {record.name}: {record.getMessage()}")

"""What is logged in a run."""

import logging


class LineHandler(logging.Handler):
    """Collects log records as "LEVEL logger: message" lines. The frameworks' loggers do not propagate, so pytest's
    caplog cannot."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.name}: {record.getMessage()}")

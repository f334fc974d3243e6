"""The log file of a peer: warnings and tracebacks, in files of bounded size."""

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

LOG_BYTES_MAX = 4 << 20
LOGS_KEPT = 3  # full ones beside the one that is written


def log_to(path: Path) -> None:
    """Send all that this process logs into a file that goes on in a new one when it is full."""
    handler = RotatingFileHandler(path, maxBytes=LOG_BYTES_MAX, backupCount=LOGS_KEPT)
    layout = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(handlers=[handler], format=layout, level=logging.INFO, force=True)
    logging.raiseExceptions = False  # a full disk is told elsewhere, once

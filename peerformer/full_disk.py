"""What tells a disk without room from one that has failed: the first passes, and is waited for.

It knows nothing of who writes; a database, a file and a quota say the same thing in other words.
"""

import errno
import sqlite3

RETRY_SECONDS = 2.0  # between two tries to write what did not fit
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room: on the disk, in the quota, in the file."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    if isinstance(error, OSError):
        return error.errno in NO_ROOM
    # safetensors writes by itself, and has the system's words in an error of its own.
    return any(f"os error {number}" in str(error) for number in NO_ROOM)

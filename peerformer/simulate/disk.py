"""A disk that keeps what was written durably, and may fill up or tear.

A transaction is on it whole or not at all, as the node's store promises; what a crash interrupts
was never written. A torn disk cannot be read any more: whoever owns it must not vote with its key.
"""

from dataclasses import dataclass, field


class DiskFullError(Exception):
    """A transaction did not fit: nothing of it was written."""


class DiskTornError(Exception):
    """What was written cannot be read back."""


@dataclass(slots=True)
class Disk:
    """The protocol store of one host."""

    records: dict[str, bytes] = field(default_factory=dict)
    full: bool = False
    torn: bool = False

    def write(self, records: tuple[tuple[str, bytes], ...], deleted: tuple[str, ...]) -> None:
        """Write a transaction; raises DiskFullError."""
        if self.full:
            raise DiskFullError
        self.records.update(records)
        for key in deleted:
            self.records.pop(key, None)

    def load(self) -> dict[str, bytes]:
        """Return what was written; raises DiskTornError."""
        if self.torn:
            raise DiskTornError
        return dict(self.records)

"""What was read and what was left out: counts by format and by reason, and the first few of each.

It holds as much for a million broken lines as for five, and it is plain data: `to_json` and back.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

EXAMPLES_MAX = 5  # places that are named for a reason
REASONS_MAX = 1_000  # more are counted as one: a reason may quote what a file says
OTHER_REASON = "for other reasons"


@dataclass(slots=True)
class LeftOut:
    """How often something was left out for one reason, how many bytes of text, and where first."""

    count: int = 0
    bytes: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Tally:
    """Counts of a reading.

    Attributes:
        files: those that gave text, by format.
        documents: by format.
        bytes: of cleaned text, by format.
        left_out: files, records and documents that were not used, by reason.
        columns: what a record without the wanted column has instead.
    """

    files: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)

    def leave_out(self, where: str, reason: str, *, size_bytes: int = 0, count: int = 1) -> None:
        """Count something that is not used."""
        if reason not in self.left_out and len(self.left_out) >= REASONS_MAX:
            reason = OTHER_REASON
        entry = self.left_out.setdefault(reason, LeftOut())
        entry.count += count
        entry.bytes += size_bytes
        if where and len(entry.examples) < EXAMPLES_MAX:
            entry.examples.append(where)

    def wants_examples(self, reason: str) -> bool:
        """Tell whether more places would be named for a reason."""
        entry = self.left_out.get(reason)
        return entry is None or len(entry.examples) < EXAMPLES_MAX

    def become(self, other: "Tally") -> None:
        """Take over the counts of another one, and forget one's own."""
        for name in self.__slots__:
            setattr(self, name, getattr(other, name))

    @property
    def reasons(self) -> list[tuple[str, LeftOut]]:
        """The reasons, the most frequent first."""
        return sorted(self.left_out.items(), key=lambda item: (-item[1].count, item[0]))

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "files": dict(self.files),
            "documents": dict(self.documents),
            "bytes": dict(self.bytes),
            "left_out": {reason: asdict(entry) for reason, entry in self.left_out.items()},
            "columns": self.columns,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Tally":
        """Read what `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        left_out = {str(reason): LeftOut(**entry) for reason, entry in data["left_out"].items()}
        files, documents, sizes = (Counter(data[n]) for n in ("files", "documents", "bytes"))
        return cls(files, documents, sizes, left_out, list(data["columns"]))

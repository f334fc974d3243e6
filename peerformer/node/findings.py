"""What an examination finds: one line each, with a verdict and, where it is not good, the cure."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

OK, WARNING, NO = "ok", "warning", "no"
VOTER, GUEST, NOTHING = "voter", "guest", "nothing"  # as what this machine can join


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    measured: str
    verdict: str = OK
    cure: str = ""

    def __str__(self) -> str:
        line = f"{self.what:<11} {self.verdict:<8} {self.measured}"
        return f"{line}\n            try: {self.cure}" if self.cure else line


@dataclass(frozen=True, slots=True)
class Report:
    """All findings of an examination. Without a member to ask, nothing is said about reach."""

    findings: tuple[Finding, ...]
    asked_a_member: bool
    is_reached: bool | None = None  # by others; None: nobody tried

    @property
    def can(self) -> str:
        """As what this machine can join."""
        if any(finding.verdict == NO for finding in self.findings):
            return NOTHING
        return GUEST if self.is_reached is False else VOTER

    @property
    def sentence(self) -> str:
        """The verdict in a line."""
        bad = [finding for finding in self.findings if finding.verdict == NO]
        if bad:
            return "cannot join: " + "; ".join(f"{f.what}: {f.measured}" for f in bad)
        if not self.asked_a_member:
            return "this machine can train; a ticket tells more: peerformer doctor TICKET"
        if self.can == GUEST:
            return "can contribute as a guest (behind NAT): peerformer join TICKET --guest"
        return "can join as a voter: peerformer join TICKET"

    def to_json(self) -> dict[str, Any]:
        """Return one plain object."""
        findings = [asdict(finding) for finding in self.findings]
        return {"findings": findings, "can": self.can, "verdict": self.sentence}


def as_bytes(size: float) -> str:
    """Return a number of bytes in words, in SI units."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} bytes"


def lines_of(report: Report) -> Iterable[str]:
    """Return the lines that a person reads; the last one is the verdict."""
    return (*(str(finding) for finding in report.findings), report.sentence)

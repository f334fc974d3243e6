"""The failures a user may meet; each knows its cause, its remedy and its exit code.

A failure is shown as a few lines: what happened, where, why, and what to type next. Failures of
our own making are assertions, not these; a peer's misbehaviour is data, not an exception.
"""


class PeerformerError(Exception):
    """A failure shown to the user without a traceback.

    Args:
        what: one sentence that says what happened, without a full stop at its end.
        where: the file, field or peer concerned.
        why: the cause, if it is known and not obvious from `what`.
        hint: the command or the change that cures it, shown after `try:`.
        more: a command that shows more, shown after `more:`.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        why: str | None = None,
        hint: str | None = None,
        more: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what, self.where, self.why, self.hint, self.more = what, where, why, hint, more

    def __str__(self) -> str:
        lines = [f"error: {self.what.rstrip('.')}."]
        labelled = (
            ("where", self.where),
            ("why", self.why),
            ("try", self.hint),
            ("more", self.more),
        )
        lines += [f"  {label}: {text}" for label, text in labelled if text is not None]
        return "\n".join(lines)


class ConfigError(PeerformerError):
    """A setting or a command line that cannot be used."""

    exit_code = 2


class DataError(PeerformerError):
    """Documents, tokenizers or shards that cannot be read."""


class CheckpointError(PeerformerError):
    """A checkpoint that is missing, damaged, foreign or of another model."""


class DivergedError(PeerformerError):
    """Training whose loss is no longer finite."""

    exit_code = 3


class MemoryExhaustedError(PeerformerError):
    """A training that does not fit into this machine's memory."""


class SwarmError(PeerformerError):
    """A swarm that cannot be reached, or one without a quorum."""

    exit_code = 4


class NoQuorum(SwarmError):
    """A round that was not decided in time; nothing was applied."""


class ClusterError(PeerformerError):
    """A rank of a cluster that is gone, hangs or cannot be reached."""


class ToldElsewhere(PeerformerError):
    """Another rank has told what happened; this one ends without a word, with the same code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another rank has told why")
        self.exit_code = exit_code


class IdentityError(PeerformerError):
    """A key or a protocol store that must not be voted with."""


class EvictedError(PeerformerError):
    """This peer was evicted by the others."""

    exit_code = 5


class Interrupted(PeerformerError):
    """The user stopped the run; what was done is saved."""

    exit_code = 130

"""Where a text ends: at the first stop string, wherever tokens happen to be cut.

Text comes in pieces. What may yet become a stop string is held back until it is one or cannot be
one any more, so that nothing of it and nothing after it is ever emitted. What comes out does not
depend on where the pieces are cut: the stop string that is complete first ends the text.

Knows nothing about tokens.
"""

from collections.abc import Sequence

from peerformer.errors import ConfigError

STOPS_MAX = 64  # each is looked for in every piece
CHARACTERS_MAX = 1_000  # of one stop string, all of which may have to be held back


class StopStrings:
    """Text on its way out, up to the first stop string.

    Args:
        stops: the strings that end the text; none of them, and the text never ends here.

    Raises:
        ConfigError: an empty stop string, a longer one than is allowed, or too many.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if len(stops) > STOPS_MAX:
            raise ConfigError(f"there are {len(stops)} stop strings, and at most {STOPS_MAX} count")
        for stop in stops:
            if not 0 < len(stop) <= CHARACTERS_MAX:
                raise ConfigError(
                    f"a stop string has {len(stop)} characters, but must have 1 to"
                    f" {CHARACTERS_MAX:,}",
                    hint='--stop "END"',
                )
        self._stops = tuple(stops)
        self._held = ""
        self._found: str | None = None

    @property
    def found(self) -> str | None:
        """The stop string that ended the text; None while there was none."""
        return self._found

    def feed(self, piece: str) -> str:
        """What may be emitted now that this piece has come."""
        if self._found is not None:
            return ""
        text, self._held = self._held + piece, ""
        matches = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if (start := text.find(stop)) >= 0
        ]
        if matches:
            _, start, self._found = min(matches)
            return text[:start]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back, where no more comes: it was no stop string."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The longest end of the text that is a beginning of the stop string, but not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

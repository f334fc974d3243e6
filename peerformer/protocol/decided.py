"""The decided rounds that are kept, oldest first: the newest as objects, those before as bytes.

A long run keeps 25,000 of them, for sleepers and newcomers, and hardly looks at any again: encoded
they take less than half the memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

from peerformer.protocol.codec import decode, encode
from peerformer.protocol.messages import Certified

UNPACKED = 64  # at least so many of the newest are objects


@dataclass(slots=True)
class Decided(Sequence[Certified]):
    """Certified headers of consecutive rounds; an older one is decoded whenever it is asked for."""

    packed: list[bytes] = field(default_factory=list)
    recent: list[Certified] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.packed) + len(self.recent)

    @overload
    def __getitem__(self, place: int) -> Certified: ...
    @overload
    def __getitem__(self, place: slice) -> list[Certified]: ...
    def __getitem__(self, place: int | slice) -> Certified | list[Certified]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(f"{place} of {len(self)} decided rounds")
        place = place % len(self) - len(self.packed)
        return self.recent[place] if place >= 0 else decode(Certified, self.packed[place])

    def append(self, item: Certified) -> None:
        """Take the next round in; now and then some of those before it are encoded."""
        self.recent.append(item)
        if len(self.recent) >= 2 * UNPACKED:
            self.packed += map(encode, self.recent[:UNPACKED])
            del self.recent[:UNPACKED]

    def forget(self, count: int) -> None:
        """Drop the oldest."""
        in_recent = max(0, count - len(self.packed))
        del self.packed[:count]
        del self.recent[:in_recent]

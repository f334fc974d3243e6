"""A document: a piece of cleaned text that is held out or trained on as a whole.

Where it comes from is remembered, and where the loss counts on a part of it only, which part. How
files become documents is told in `files.py`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from peerformer.data.tally import Tally

Ranges = tuple[tuple[int, int], ...]  # (start, end) of characters, in order


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of cleaned text and where it came from.

    Attributes:
        source: a path, or what stands for one.
        text: the text.
        learned: the characters on which the loss counts; None: on all.
        control: the characters that are special tokens, not text.
    """

    source: str
    text: str
    learned: Ranges | None = None
    control: Ranges = ()

    @property
    def special_tokens(self) -> set[str]:
        """The special tokens that it holds, as they are written."""
        return {self.text[start:end] for start, end in self.control}

    @property
    def key(self) -> str:
        """The text that decides whether it is held out: of pairs and chats what comes first.

        So a prompt with several completions is on one side only.
        """
        return (self.learned and self.text[: self.learned[0][0]]) or self.text


def counted(documents: Iterable[Document], name: str, tally: Tally) -> Iterator[Document]:
    """Yield documents, counting them and their bytes under the name of a format."""
    for number, document in enumerate(documents):
        tally.files[name] += number == 0
        tally.documents[name] += 1
        tally.bytes[name] += len(document.text.encode())
        yield document

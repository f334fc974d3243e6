"""Text of our own making, where there is none: small stories from a grammar, the same for a seed.

The sentences have agreement, recurring actors and little plots within a document, so a model has
something to learn beyond letter counts; nothing in them is anybody's text.
"""

from collections.abc import Iterator
from random import Random

from peerformer.data.documents import Document

_NAMES = "Ada Boris Chen Dora Emil Fatima Goran Hana Ivo Jun Kira Leo Mina Noor Otto Priya".split()
_PLACES = "harbour library market mountain orchard river station tower valley workshop".split()
_THINGS = "basket clock compass key lantern letter map mirror rope seed stone violin".split()
_KINDS = "broken bright empty golden heavy hidden old quiet small strange".split()
_MOTIONS = "hurried ran sailed strolled walked wandered".split()
_FINDS = "discovered found noticed saw spotted".split()
_GIFTS = "gave lent offered showed sold".split()
_TIMES = ("in the morning", "at noon", "late at night", "before the storm", "after the feast")


def synthetic_documents(seed: int, count: int) -> Iterator[Document]:
    """Yield `count` short stories; the same seed gives the same stories."""
    for index in range(count):
        random = Random(f"peerformer story {seed} {index}")
        yield Document(f"synthetic:{seed}/{index}", _story(random))


def _story(random: Random) -> str:
    hero, friend = random.sample(_NAMES, 2)
    home, away = random.sample(_PLACES, 2)
    thing, kind = random.choice(_THINGS), random.choice(_KINDS)
    lines = [f"The {kind} {thing}", "", f"{hero} lived near the {home}, and {friend} was a friend."]
    for chapter in range(random.randint(4, 9)):
        time = random.choice(_TIMES)
        mover, other = (hero, friend) if random.random() < 0.6 else (friend, hero)
        match random.randrange(4):
            case 0:
                lines.append(
                    f"{time.capitalize()}, {mover} {random.choice(_MOTIONS)} to the {away}."
                )
            case 1:
                lines.append(f"There {mover} {random.choice(_FINDS)} a {kind} {thing}.")
            case 2:
                lines.append(f"{mover} {random.choice(_GIFTS)} {other} the {thing}.")
            case _:
                number = random.randint(2, 99)
                lines.append(
                    f'"{number} and {number} is {2 * number}," said {mover} to {other} '
                    f"in chapter {chapter + 1}."
                )
    lines.append(f"So the {thing} came back to the {home}, and {hero} kept it there.")
    return "\n".join(lines) + "\n"

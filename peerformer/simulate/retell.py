"""A path of the exploration in words: who heard what, and what it did."""

from peerformer.simulate.lone_voter import QUORUM, Voter
from peerformer.simulate.news import (
    NO_LOCK,
    Ended,
    GaveUp,
    Lock,
    Locked,
    News,
    Proposed,
    Restarted,
    TimerFired,
)

Voters = tuple[Voter, ...]
DIGEST_NAMES = "AB"


def move_in_words(voters: Voters, position: int, news: News, after: Voter) -> str:
    """Tell what one of the voters hears and does."""
    heard = _news_in_words(voters, position, news)
    return f"voter {position} {heard}: {_deeds_in_words(voters[position], after)}"


def fork_in_words(voters: Voters, decisions: tuple[Lock, ...]) -> list[str]:
    """Tell how two voters come to decide differently."""
    of_digest = {lock[1]: lock for lock in decisions}
    return [
        f"voter {index} hears COMMIT{_slot(lock)} of {_quorum_of(voters, 'commit', lock)}: "
        f"decides {DIGEST_NAMES[digest]}"
        for index, (digest, lock) in enumerate(of_digest.items())
    ]


def _slot(lock: Lock) -> str:
    return f"({lock[0]}, {DIGEST_NAMES[lock[1]]})"


def _lock(lock: Lock) -> str:
    return "no lock" if lock == NO_LOCK else f"lock {_slot(lock)}"


def _quorum_of(voters: Voters, kind: str, lock: Lock) -> str:
    """Name a quorum that signed, with the liar if the honest ones do not suffice."""
    view, digest = lock
    signed = [str(i) for i, it in enumerate(voters) if getattr(it.said[view], kind) == digest]
    return ", ".join([*signed, "the liar"][:QUORUM])


def _news_in_words(voters: Voters, position: int, news: News) -> str:
    match news:
        case TimerFired():
            return "runs out of time"
        case Restarted():
            return "restarts"
        case Proposed(view, digest, justify):
            proof = "" if justify is None else f", justified by timeouts with {_lock(justify)}"
            return f"hears proposal {_slot((view, digest))}{proof}"
        case Locked(lock):
            return f"hears PREPARE{_slot(lock)} of {_quorum_of(voters, 'prepare', lock)}"
        case GaveUp(view, claims):
            said = {i: it.said[view].timeout for i, it in enumerate(voters) if i != position}
            who = [i for i, claim in said.items() if claim in claims][: len(claims)]
            words = [f"{i}'s with {_lock(said[i] or NO_LOCK)}" for i in who]
            return f"hears TIMEOUT({view}): {', '.join(words)}, the liar's with no lock"
        case Ended(view, lock):
            return f"hears of a quorum's TIMEOUT({view}), the highest with {_lock(lock)}"


def _deeds_in_words(before: Voter, after: Voter) -> str:
    deeds = [f"holds {_lock(after.high)}"] if after.high != before.high else []
    for view, (was, now) in enumerate(zip(before.said, after.said, strict=True)):
        if now.prepare is not None and now.prepare != was.prepare:
            deeds.append(f"signs PREPARE{_slot((view, now.prepare))}")
        if now.commit is not None and now.commit != was.commit:
            deeds.append(f"signs COMMIT{_slot((view, now.commit))}")
        if now.timeout is not None and now.timeout != was.timeout:
            deeds.append(f"signs TIMEOUT({view}) with {_lock(now.timeout)}")
        if now.proposal is not None and now.proposal != was.proposal:
            deeds.append(f"proposes {_slot((view, now.proposal[0]))}")
    deeds += [f"is in view {after.view}"] if after.view != before.view else []
    return ", ".join(deeds) or "signs nothing new"

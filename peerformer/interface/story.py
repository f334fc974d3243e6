"""The story of `peerformer demo`, told by what really happens: no step of it decides an outcome.

Seven peers train. One poisons from the start; an honest one is killed in the middle of a round
and comes back; when it has caught up, another votes for two headers in one slot. The story
watches the same status files and journals that anybody can read, gives orders as `peerformer peer
…` would, and judges at the end what came of it.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from peerformer import events
from peerformer.errors import SwarmError
from peerformer.journal import read_journal
from peerformer.node.overview import overview
from peerformer.node.supervisor import Supervisor

LOOK_SECONDS = 0.25
KILL_AFTER_ROUND = 2
ROUNDS_MIN = 10  # the loss must have time to fall
ROUNDS_MAX = 40  # a story that takes longer has gone wrong
SECONDS_MAX = 900.0
FALL_MIN = 0.5  # bits per byte; below it the model has not learned


@dataclass(slots=True)
class Cast:
    """Who plays which part."""

    poisoner: str
    victim: str
    equivocator: str

    @property
    def adversaries(self) -> dict[str, str]:
        """Name -> attack."""
        return {self.poisoner: "sign-flip", self.equivocator: "equivocate"}


def cast_of(names: list[str]) -> Cast:
    """Give the parts to the last three by name: the first ones measure and stay honest."""
    return Cast(*sorted(names)[-3:])


@dataclass(slots=True)
class Story:
    """The running story."""

    supervisor: Supervisor
    cast: Cast
    show: Callable[[dict[str, Any]], None]
    note: Callable[[str], None]
    began: float = field(default_factory=time.monotonic)
    killed_at_round: int | None = None
    restarted_at_round: int | None = None
    caught_up_seconds: float | None = None
    lied_from_round: int | None = None

    def tell(self) -> int:
        """Run until the story is over; returns the round at which all honest peers ended."""
        cast, first = self.cast, self._until(lambda now: now["round"] >= KILL_AFTER_ROUND)
        self.note(
            f"round {first['round']}: killing {cast.victim} (SIGKILL) in the middle of a round"
        )
        killing = self._until(lambda now: self._row(now, cast.victim)["state"] == "training")
        self.killed_at_round = killing["round"]
        self.supervisor.kill(cast.victim)
        target = self.killed_at_round + 2
        self._until(lambda now: now["round"] >= target)
        self._bring_back()
        number = self._now()["round"]
        self.lied_from_round = number + 1
        self.note(f"round {number}: {cast.equivocator} begins to vote for two headers at once")
        self.supervisor.order(cast.equivocator, "lie", "equivocate")
        self._until(self._is_told)
        return self._settle()

    def _bring_back(self) -> None:
        victim = self.cast.victim
        self.restarted_at_round = self._now()["round"]
        self.note(f"round {self.restarted_at_round}: starting {victim} again")
        child = self.supervisor.start(victim)
        restarted = time.monotonic()
        self.supervisor.await_listening([child])

        def caught_up(now: dict[str, Any]) -> bool:
            row = self._row(now, victim)
            fresh = row["round"] >= now["round"] and row["state_round"] == row["round"]
            return row["state"] != "down" and fresh and row["round"] > (self.killed_at_round or 0)

        self._until(caught_up)
        self.caught_up_seconds = time.monotonic() - restarted
        self.note(f"{victim} holds the agreed state again after {self.caught_up_seconds:.1f} s")

    def _is_told(self, now: dict[str, Any]) -> bool:
        poisoner = self._row(now, self.cast.poisoner)
        evicted = self._row(now, self.cast.equivocator)["state"] == "evicted"
        quarantined = any(
            isinstance(event, events.PeerQuarantined) and event.name == self.cast.poisoner
            for event in self._journal()
        )
        return bool(poisoner and evicted and quarantined and now["round"] >= ROUNDS_MIN)

    def _settle(self) -> int:
        """Let all honest peers reach one round, and somebody measure it; returns it."""
        target = int(self._now()["round"])
        honest = self.honest()
        self._until(
            lambda now: (
                all(self._row(now, name)["state_round"] >= target for name in honest)
                and max(map(int, now["bits_per_byte"]), default=0) >= target
            )
        )
        return target

    def honest(self) -> list[str]:
        """Return the names of those that never lie."""
        return [name for name in self.supervisor.children if name not in self.cast.adversaries]

    def _journal(self, name: str | None = None) -> list[events.Event]:
        reader = name or self.honest()[0]
        return list(read_journal(self.supervisor.swarm.peer(reader).journal))

    @staticmethod
    def _row(now: dict[str, Any], name: str) -> dict[str, Any]:
        return next(row for row in now["peers"] if row["name"] == name)

    def _now(self) -> dict[str, Any]:
        now = overview(self.supervisor.swarm)
        self.show(now)
        return now

    def _until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            now = self._now()
            if condition(now):
                return now
            if now["round"] > ROUNDS_MAX or time.monotonic() - self.began > SECONDS_MAX:
                raise SwarmError(
                    f"the story is not over at round {now['round']}",
                    where=str(self.supervisor.swarm.path),
                    more="peerformer log --evidence",
                )
            if not any(child.alive for child in self.supervisor.children.values()):
                raise SwarmError("no peer runs any more", where=str(self.supervisor.swarm.path))
            time.sleep(LOOK_SECONDS)

    # --- the end -------------------------------------------------------------------------------

    def summary(self, last_round: int, checkpoint: str, parameters: int) -> dict[str, Any]:
        """Return the facts, from journals and status files."""
        now = self._now()
        journal = self._journal()
        measured = sorted((int(number), bits) for number, bits in now["bits_per_byte"].items())
        bits = [bits for number, bits in measured if number <= last_round]
        peers = [self._facts(now, journal, name, last_round) for name in self.supervisor.children]
        sent = {row["name"]: row["bytes_sent"] for row in now["peers"]}
        typical = sorted(sent[name] for name in self.honest() if name != self.cast.victim)
        others = len(self.supervisor.children) - 1
        return {
            "rounds": last_round,
            "validation_bits_per_byte": bits,
            "peers": peers,
            "bytes_sent_per_peer": typical[len(typical) // 2],
            "bytes_if_float32": 4 * parameters * others * last_round,
            "seconds": round(time.monotonic() - self.began, 1),
            "checkpoint": checkpoint,
            "refusals": self._refusals(journal),
        }

    def _facts(
        self, now: dict[str, Any], journal: list[events.Event], name: str, last_round: int
    ) -> dict[str, Any]:
        row = self._row(now, name)
        roots = [
            event.state_root
            for event in self._journal(name)
            if isinstance(event, events.RoundCommitted) and event.round == last_round
        ]
        mine = [event for event in journal if getattr(event, "name", None) == name]
        evicted = next((e for e in mine if isinstance(e, events.PeerEvicted)), None)
        is_victim = name == self.cast.victim
        return {
            "name": name,
            "role": row["role"],
            "state_root": roots[0] if roots else None,
            "adversary": self.cast.adversaries.get(name),
            "contributed": row["contributed"],
            "accepted": row["accepted"],
            "quarantined": any(isinstance(e, events.PeerQuarantined) for e in mine),
            "evicted": evicted is not None,
            "evidence": evicted.evidence if evicted else None,
            "restarted_at_round": self.restarted_at_round if is_victim else None,
            "caught_up_seconds": self.caught_up_seconds if is_victim else None,
        }

    @staticmethod
    def _refusals(journal: list[events.Event]) -> dict[str, dict[str, int]]:
        refusals: dict[str, Counter[str]] = {}
        for event in journal:
            if isinstance(event, events.ContributionRefused):
                refusals.setdefault(event.name, Counter())[event.reason] += 1
        return {name: dict(reasons) for name, reasons in refusals.items()}


def failures(summary: dict[str, Any], cast: Cast) -> list[str]:
    """Return in words what went wrong; an empty list is a story that held."""
    wrong = []
    peers = {peer["name"]: peer for peer in summary["peers"]}
    honest = [peer for peer in summary["peers"] if not peer["adversary"]]
    roots = {peer["state_root"] for peer in honest}
    if len(roots) != 1 or None in roots:
        wrong.append("the honest peers do not hold one state")
    if peers[cast.poisoner]["accepted"]:
        wrong.append(f"poison got in {peers[cast.poisoner]['accepted']} times")
    if not peers[cast.poisoner]["quarantined"]:
        wrong.append("the poisoner was not quarantined")
    if not peers[cast.equivocator]["evicted"]:
        wrong.append("the equivocator was not evicted")
    wrong += [f"the honest {peer['name']} was evicted" for peer in honest if peer["evicted"]]
    if peers[cast.victim]["caught_up_seconds"] is None:
        wrong.append("the killed peer did not come back")
    bits = summary["validation_bits_per_byte"]
    if len(bits) < 2 or bits[0] - bits[-1] < FALL_MIN:
        wrong.append("the loss did not fall")
    return wrong

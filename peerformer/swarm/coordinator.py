"""`peerformer.Coordinator`: agreement on gradients alone, for those who apply them themselves.

Each round is one step: every peer gives its gradients, all get the same bits back, with the
certificate of the round. What a round came to is the whole agreed state (its root is in the
header), so whoever holds the genesis can check gradients and certificate without believing anybody.

*In order.* Rounds are handed out one after the other, each once, whether or not this peer's own
gradients were in time for it. So all who apply what they get hold the same parameters, also one
that was late: it applies what the others agreed on, and tries again with the next.

*In time, or not at all.* Where no round is decided in time nothing is handed out, so nothing is
applied. Gradients that had been sent by then belong to their round: if it is decided later, the
next call returns it. Gradients that had not been sent never are: they are not kept for a later
round, since they belong to parameters that will have changed. What comes from another peer after
the others have shown theirs is not counted in that round, nor in any other.
"""

from collections.abc import Mapping
from math import ceil, log2
from pathlib import Path
from typing import Self, TypeAlias, Unpack

import torch
from torch import Tensor, nn

from peerformer.errors import ConfigError, DivergedError, SwarmError
from peerformer.gradients.compress import VALUE_MAX
from peerformer.gradients.fixed_point import FRACTION_BITS, AgreedState, to_float
from peerformer.gradients.sparse import Sparse
from peerformer.node.directory import SwarmDirectory
from peerformer.protocol.light_client import RoundCertificate
from peerformer.swarm.beginning import arrive, config_of, found_here, recipe_here
from peerformer.swarm.description import Description, describe_tensors, trained
from peerformer.swarm.handover import Handover, Offer, Reached
from peerformer.swarm.hosting import Known
from peerformer.swarm.membership import TIMEOUT_SECONDS, Membership, Own, directory_of, note
from peerformer.swarm.opinion import Opinion
from peerformer.train.recipe import GRADIENTS, ModuleRecipe

LARGEST = 3.9  # clipped gradients have no larger value; the finest step is then 2^-21
LARGEST_MAX = 2.0**20
FIXED = {"inner_steps": 1, "staleness": 0, "feedback": 0.0}
CODEC = "none"  # exact to a step; dense-int8 is a quarter as long

Like: TypeAlias = nn.Module | Mapping[str, Tensor]


class ConsensusGradients(dict[str, Tensor]):
    """What a round came to, by name: float32, the same bits on every honest peer.

    Attributes:
        round: which.
        certificate: more than two thirds of the voters signed its header.
        included: whether this peer's own gradients are part of it.
        state: the bytes whose root the header has: `state_root(state)` of `protocol.merkle`.
    """

    def __init__(
        self,
        gradients: Mapping[str, Tensor],
        certificate: RoundCertificate,
        *,
        included: bool,
        state: bytes,
    ) -> None:
        """Join the gradients and what vouches for them."""
        super().__init__(gradients)
        self.round = certificate.header.round
        self.certificate, self.included, self.state = certificate, included, state


class _Overtaken(Exception):
    """A round was decided while gradients for it were still to be given."""


class Coordinator(Membership):
    """A peer that agrees on gradients; made by `found`, `join` or `resume`."""

    def __init__(self, directory: SwarmDirectory, like: Like, own: Own, known: Known = ()) -> None:
        """Use `found`, `join` or `resume`."""
        description = _describe(like)
        if "score" in own:
            raise ConfigError("gradients alone have no score", hint="check= judges them")
        recipe = recipe_here(directory, description, GRADIENTS)
        self.scale, layout = recipe.scale, description.layout
        opinion = Opinion(layout, own.get("check"), scale=recipe.scale)
        state = _nothing_yet(description)
        handover = Handover(recipe.config, GRADIENTS, layout, state, opinion)
        super().__init__(directory, handover, own, known)
        with handover.changed:
            self._handed_out = handover.round
            handover.reached.clear()
        self._given_for = 0  # the round that this peer's gradients were last given for

    @classmethod
    def found(
        cls,
        directory: str | Path,
        *,
        like: Like,
        largest: float = LARGEST,
        settings: Mapping[str, object] | None = None,
        **own: Unpack[Own],
    ) -> Self:
        """Found a swarm that agrees on gradients.

        Args:
            directory: where its files go.
            like: a module, or tensors by name, of the gradients' shapes.
            largest: values beyond are cut; the finest step that is told is about a 2^23rd of it.
            settings: names of `SwarmConfig`, such as codec, rule, admission or contributions_min.
            **own: what is this peer's alone.

        Raises:
            ConfigError: a setting that agreement on gradients cannot have.
            SwarmError: if there is a swarm in the directory already.
        """
        given = dict(settings or {})
        for name in FIXED.keys() & given.keys():
            raise ConfigError(f"{name} is always {FIXED[name]} where gradients are agreed on")
        if given.get("codec") == Sparse.name:
            raise ConfigError(
                f"{Sparse.name} leaves most of an update for later ones, and each of these"
                " gradients belongs to its own round",
                hint="codec dense-int8, dense-int4 or none",
            )
        if not 0 < largest <= LARGEST_MAX:
            raise ConfigError(f"largest must be between 0 and {LARGEST_MAX:g}, not {largest:g}")
        config = config_of({"codec": CODEC, **given, **FIXED})
        description = _describe(like)
        scale = 2 ** max(0, ceil(log2(largest / (VALUE_MAX / 2**FRACTION_BITS))))
        recipe = ModuleRecipe(GRADIENTS, config, description.digest, scale)
        swarm = SwarmDirectory(Path(directory))
        found_here(swarm, recipe, description, _nothing_yet(description))
        return cls(swarm, like, own)

    @classmethod
    def join(
        cls,
        ticket: str,
        *,
        like: Like,
        directory: str | Path | None = None,
        **own: Unpack[Own],
    ) -> Self:
        """Join by a ticket or by host:port; the parameters must be those after `agreed_round`.

        Raises:
            ConfigError: a ticket that is none, or gradients of other shapes than the swarm's.
            SwarmError: if nobody can be reached in time.
        """
        seconds = own.get("timeout_seconds", TIMEOUT_SECONDS)
        swarm, known = arrive(ticket, directory_of(directory), note, seconds)
        return cls(swarm, like, own, known)

    @classmethod
    def resume(cls, directory: str | Path, *, like: Like, **own: Unpack[Own]) -> Self:
        """Go on where this peer stopped; what was agreed on since must be had from others.

        Raises:
            SwarmError: if there is no swarm in the directory.
            IdentityError: if the store is in use, or must not be voted with.
        """
        return cls(SwarmDirectory(Path(directory)), like, own)

    # --- the primitive ---------------------------------------------------------------------------

    def coordinate_training_step(
        self, local_gradients: Mapping[str, Tensor | None], *, timeout_seconds: float | None = None
    ) -> ConsensusGradients:
        """Give this peer's gradients, and return what the next round came to.

        Args:
            local_gradients: by name; None counts as zeros. They are not changed.
            timeout_seconds: the longest wait; without it, this peer's own.

        Raises:
            NoQuorum: if no round is decided in time; nothing was handed out.
            ConfigError: gradients of other names or shapes than the swarm's.
            DivergedError: gradients that are not finite; they are not sent.
            SwarmError: if rounds went by whose gradients cannot be had any more, or this peer was
                closed, or its node has stopped.
            EvictedError: if the others evicted this peer.
        """
        self._check_open()
        offer = Offer(self._flattened(local_gradients), float("nan"))
        wait = self._patience("no gradients were agreed on", timeout_seconds)

        def wait_in_order() -> None:
            if self._handover.reached:
                raise _Overtaken
            wait()

        while (found := self._next()) is None:
            try:
                if self._handover.round >= self._given_for:  # none given, or to a round of nothing
                    self._given_for = self._handover.give(lambda: offer, wait_in_order).round
                with self._handover.changed:
                    wait_in_order()
            except _Overtaken:
                continue
        return found

    def _next(self) -> ConsensusGradients | None:
        """Return the first round that was not handed out, if it is decided."""
        while True:
            with self._handover.changed:
                if not self._handover.reached:
                    return None
                first = self._handover.reached.popleft()
            if first.round <= self._handed_out:
                continue
            passed = [self.certificate(n) for n in range(self._handed_out + 1, first.round + 1)]
            certificate = passed[-1]
            missed = [c for c in passed[:-1] if c is None or c.header.contributions]
            if missed or certificate is None:
                self._give_up()
            self._handed_out = first.round
            if certificate is not None and certificate.header.contributions:
                return self._result(first, certificate)

    def _give_up(self) -> None:
        before = self._handed_out
        with self._handover.changed:
            self._handover.reached.clear()
            self._handed_out = self._handover.round
        raise SwarmError(
            f"rounds after {before} were decided without this peer, and their gradients are gone",
            where=str(self.directory),
            hint=f"take the parameters after round {self._handed_out} from another peer and call"
            " again; peerformer.Swarm agrees on parameters, and fetches them by itself",
        )

    def _result(self, reached: Reached, certificate: RoundCertificate) -> ConsensusGradients:
        told_P = to_float(reached.state.theta_P) * self.scale
        me = self._host.ask(lambda running: running.peer.machine.me)
        return ConsensusGradients(
            self._handover.layout.split(told_P),
            certificate,
            included=any(entry.peer == me for entry in certificate.header.contributions),
            state=reached.state.to_bytes(),
        )

    def _flattened(self, gradients: Mapping[str, Tensor | None]) -> Tensor:
        layout = self._handover.layout
        other = sorted(gradients.keys() ^ set(layout.names))
        if other:
            raise ConfigError(
                f"the gradients' names are not those of the swarm: {other[0]}",
                hint=f"{len(layout.names)} tensors, the first one {layout.names[0]}",
            )
        pieces = []
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            gradient = gradients[name]
            if gradient is not None and tuple(gradient.shape) != shape:
                given = tuple(gradient.shape)
                raise ConfigError(f"the gradient of {name} has shape {given}, not {shape}")
            piece = torch.zeros(shape) if gradient is None else gradient.detach().float().cpu()
            pieces.append(piece.reshape(-1) / self.scale)
        update_P = torch.cat(pieces)
        if not bool(torch.isfinite(update_P).all()):
            raise DivergedError("the gradients are not finite", why="nothing of them was sent")
        return update_P


def _describe(like: Like) -> Description:
    return describe_tensors(trained(like) if isinstance(like, nn.Module) else like)


def _nothing_yet(description: Description) -> AgreedState:
    """Return the state of round 0: no gradients."""
    zeros_P = torch.zeros(description.layout.size, dtype=torch.int32)
    return AgreedState(zeros_P, zeros_P, ())

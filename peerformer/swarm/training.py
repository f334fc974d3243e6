"""`peerformer.Swarm`: any torch module, trained by its user's own loop, agreed on by a swarm.

Of H inner steps the peer keeps the sum (start minus end of the trained parameters); that is its
contribution to a round, and the module goes on from what all agreed on (DiLoCo, arXiv 2311.08105).
The algebra, with and without training ahead of the vote, is that of `train.agreed`; only who takes
the steps is another. The module changes when it is opened and in `step` and `adopt`, on the
caller's thread, and never behind anybody's back.
"""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol, Self, Unpack

import torch
from torch import Tensor, nn

from peerformer.errors import DivergedError
from peerformer.gradients.fixed_point import AgreedState, to_float
from peerformer.node.directory import SwarmDirectory
from peerformer.swarm.beginning import arrive, config_of, found_here, recipe_here
from peerformer.swarm.description import Description, describe_module, trained
from peerformer.swarm.handover import Handover, Offer
from peerformer.swarm.hosting import Known
from peerformer.swarm.membership import TIMEOUT_SECONDS, Membership, Own, directory_of, note
from peerformer.swarm.opinion import Opinion
from peerformer.train.agreement import STEPS_AGE_MAX, Local, first_state, flat, load
from peerformer.train.recipe import MODULE, ModuleRecipe


class Steps(Protocol):
    """What is asked of an optimizer: torch's have it."""

    def step(self) -> Any:
        """Take one step along the gradients."""

    def zero_grad(self) -> Any:
        """Drop the gradients."""


class Swarm(Membership):
    """A peer that trains a user's module; made by `found`, `join` or `resume`."""

    def __init__(
        self,
        directory: SwarmDirectory,
        model: nn.Module,
        optimizer: Steps,
        own: Own,
        known: Known = (),
    ) -> None:
        """Use `found`, `join` or `resume`."""
        description = describe_module(model)
        recipe = recipe_here(directory, description, MODULE)
        handover = _handover(recipe, description, model, own)
        self.model, self.optimizer = model, optimizer
        self.inner_steps = recipe.config.swarm.inner_steps
        self.ahead = recipe.config.swarm.staleness
        super().__init__(directory, handover, own, known)
        self._owed = 0  # a round that this peer contributed to and did not see decided in time
        self._dropped = 0  # inner steps that came to nothing
        self._moves = 0  # of the agreed state, since the steps in hand began
        self._followed: AgreedState = handover.state
        self._local: Local
        self._steps = 0
        self.adopt()

    @classmethod
    def found(
        cls,
        directory: str | Path,
        *,
        model: nn.Module,
        optimizer: Steps,
        settings: Mapping[str, object] | None = None,
        **own: Unpack[Own],
    ) -> Self:
        """Found a swarm that agrees on the parameters of `model`, as they are now.

        Args:
            directory: where its files go.
            model: its trained parameters (`requires_grad`) are agreed on.
            optimizer: takes the inner steps.
            settings: names of `SwarmConfig`, such as inner_steps, codec, rule, admission, staleness
                or outer_learning_rate; and `steps`, how long the outer schedule lasts.
            **own: what is this peer's alone.

        Raises:
            ConfigError: a setting or a module that a swarm cannot have.
            SwarmError: if there is a swarm in the directory already.
        """
        swarm, description = SwarmDirectory(Path(directory)), describe_module(model)
        recipe = ModuleRecipe(MODULE, config_of(settings or {}), description.digest)
        found_here(swarm, recipe, description, first_state(trained(model)))
        return cls(swarm, model, optimizer, own)

    @classmethod
    def join(
        cls,
        ticket: str,
        *,
        model: nn.Module,
        optimizer: Steps,
        directory: str | Path | None = None,
        **own: Unpack[Own],
    ) -> Self:
        """Join a swarm by a ticket, or by host:port; the module takes the agreed parameters.

        Args:
            ticket: what `invite` returned; or an address, whose key is trusted on first use.
            model: as the founder's was made.
            optimizer: takes the inner steps.
            directory: where the files go; without one, under runs/. If it has been used for this
                swarm before, the peer goes on there.
            **own: what is this peer's alone.

        Raises:
            ConfigError: a ticket that is none, or a module that is another than the swarm's.
            SwarmError: if nobody can be reached in time.
        """
        seconds = own.get("timeout_seconds", TIMEOUT_SECONDS)
        swarm, known = arrive(ticket, directory_of(directory), note, seconds)
        return cls(swarm, model, optimizer, own, known)

    @classmethod
    def resume(
        cls, directory: str | Path, *, model: nn.Module, optimizer: Steps, **own: Unpack[Own]
    ) -> Self:
        """Go on where this peer stopped: same key, newest state on its disk, then caught up.

        Raises:
            SwarmError: if there is no swarm in the directory.
            ConfigError: if the module is another than the swarm's.
            IdentityError: if the store is in use, or must not be voted with.
        """
        return cls(SwarmDirectory(Path(directory)), model, optimizer, own)

    # --- training --------------------------------------------------------------------------------

    def step(self, loss: float | Tensor | None = None) -> bool:
        """Take one inner step; every H-th contributes, and adopts what was agreed.

        The gradients are used and dropped. Where peers do not train ahead of the vote, the H-th
        step waits until the round is decided.

        Args:
            loss: of this step, for the journal and `status`.

        Returns:
            Whether this step contributed.

        Raises:
            NoQuorum: if no round is decided in time. The steps so far are kept, the module stays as
                it was, and the next `step` tries again.
            DivergedError: if the steps led to values that are not finite; nothing of them was sent,
                and the module is at the agreed state again.
            SwarmError: if this peer was closed, or its node has stopped.
            EvictedError: if the others evicted this peer.
        """
        self._check_open()
        if self._owed:  # the gradients are of parameters that are about to change
            self.optimizer.zero_grad()
            self._await(self._owed)
            return True
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss = loss.detach() if isinstance(loss, Tensor) else loss
        self._local.losses.append(float("nan") if loss is None else float(loss))
        self._steps += 1
        with self._handover.changed:
            self._follow()
        if self._steps < self.inner_steps:
            return False
        if self._moves > STEPS_AGE_MAX:
            note(f"{self._steps} inner steps came too late for {self._moves} rounds: dropped")
            self._dropped += self._steps
            self.adopt()
            return False
        self._contribute()
        return True

    def adopt(self) -> None:
        """Take the newest agreed parameters, and drop the inner steps in hand."""
        self._check_open()
        with self._handover.changed:
            number, state = self._handover.round, self._handover.state
            theta_P = to_float(state.theta_P)
            load(self.model, self._handover.layout, theta_P)
            self._depart(number, state, theta_P)

    def _depart(self, number: int, state: AgreedState, start_P: Tensor) -> None:
        self._local = Local(number + 1, number, number, start_P)
        self._followed, self._moves, self._steps = state, 0, 0

    def _follow(self) -> None:
        """Move the module along with the agreed state, holding `changed`."""
        number, state = self._handover.round, self._handover.state
        self._moves += state is not self._followed
        self._followed = state
        self._local.follow(self.model, self._handover.layout, number, state.theta_P)

    def _contribute(self) -> None:
        wait = self._patience("no round took this peer's contribution")
        try:
            given = self._handover.give(self._offer, wait)
        except DivergedError:
            self.adopt()
            raise
        if given.held_back:
            note("an update far longer than the last ones was held back")
            self._dropped += self._steps
        self._owed = given.round - self.ahead
        if given.held_back or not self.ahead:
            self._await(self._owed)
            return
        self._await(self._owed, go_on=True)

    def _offer(self) -> Offer:
        self._follow()
        update_P = self._local.start_P - flat(trained(self.model))
        if not bool(torch.isfinite(update_P).all()):
            raise DivergedError(
                f"the last {self._steps} inner steps led to values that are not finite",
                why="nothing of them was sent; the module is at the agreed state again",
                hint="a smaller learning rate, or torch.nn.utils.clip_grad_norm_",
            )
        opinion = self._handover.opinion
        if opinion.scorer is not None:
            opinion.buffers = {name: b.detach().clone() for name, b in self.model.named_buffers()}
        losses = self._local.losses
        return Offer(update_P, sum(losses) / max(1, len(losses)))

    def _await(self, number: int, *, go_on: bool = False) -> None:
        """Wait for a round's outcome; then go on from it, or with own work on top of it."""
        wait = self._patience(f"round {number} was not decided")
        with self._handover.changed:
            while self._handover.round < number:
                wait()
            self._owed = 0
            if go_on:
                self._follow()
                here_P = flat(trained(self.model))
                self._depart(self._handover.round, self._handover.state, here_P)
            else:
                self.adopt()

    def status(self) -> dict[str, Any]:
        """Return how this peer and the swarm are doing; see `Membership.status`."""
        own = {"inner_steps_in_hand": self._steps, "inner_steps_dropped": self._dropped}
        return {**super().status(), **own}


def _handover(
    recipe: ModuleRecipe, description: Description, model: nn.Module, own: Own
) -> Handover:
    score = own.get("score")
    opinion = Opinion(
        description.layout,
        own.get("check"),
        score,
        deepcopy(model) if score is not None else None,
    )
    state = first_state(trained(model))  # stands in until that of the swarm is there
    return Handover(recipe.config, MODULE, description.layout, state, opinion)

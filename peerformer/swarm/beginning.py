"""How a swarm of a user's own tensors begins, and how a newcomer comes to one.

Founding fixes in a genesis what must be alike: the description of the tensors, codec, rule, steps a
round, outer schedule, and the first values. A newcomer fetches that, by a ticket or from an
address, and is refused before it sends anything if its tensors are others.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peerformer.errors import ConfigError, SwarmError
from peerformer.gradients.compress import encoded_size
from peerformer.gradients.fixed_point import AgreedState
from peerformer.journal import Journal
from peerformer.node.anchor import anchor
from peerformer.node.assemble import wall_clock
from peerformer.node.directory import SwarmDirectory
from peerformer.node.founding import (
    check_rule,
    file_hash,
    founders_of,
    lay_down,
    limits_of,
    refuse_second,
)
from peerformer.node.joining import fetch_invited, fetch_swarm
from peerformer.node.keyring import load_or_create_key
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.merkle import state_root
from peerformer.protocol.ticket import PREFIX, Invitation, Ticket, read_ticket
from peerformer.settings import resolve
from peerformer.swarm.description import Description, refuse_other
from peerformer.swarm.hosting import Known, run_apart
from peerformer.train.outer import factors_of
from peerformer.train.recipe import GRADIENTS, ModuleRecipe, rule_of

NO_TEXT = b"-"  # in the place of a held-out set
ME = "me"  # the name of a peer's directory, as `peerformer node` has it
# What only a swarm that trains on text can have, and the value that means without.
NEEDS_TEXT = {"audits": 0.0, "privacy_noise": 0.0, "texts": "alike"}


def config_of(settings: Mapping[str, object]) -> Any:
    """Return a configuration from names of `SwarmConfig`, and `steps` for the outer schedule.

    Raises:
        ConfigError: if there is no such setting, or a swarm of this kind cannot have it.
    """
    overrides = {
        "training.steps" if name == "steps" else f"swarm.{name}": value
        for name, value in settings.items()
    }
    config = resolve(size="nano", overrides={"swarm.peers": 1, **overrides}).config
    for name, without in NEEDS_TEXT.items():
        value = getattr(config.swarm, name)
        if value != without:
            raise ConfigError(
                f"swarm.{name} is {value}, which a swarm of a module of its own cannot have",
                where=f"swarm.{name}",
                why="only the user knows how the module is trained, and on what",
                hint=f"leave {name} out",
            )
    factors_of(config)
    rule_of(config)
    check_rule(config, config.swarm.peers)
    return config


def found_here(
    swarm: SwarmDirectory, recipe: ModuleRecipe, description: Description, state: AgreedState
) -> None:
    """Found a swarm with the key in this directory as its only voter; others join.

    Raises:
        SwarmError: if there is a swarm in the directory already.
    """
    refuse_second(swarm)
    seed = load_or_create_key(swarm.peer(ME).make().key)
    described, first = description.to_bytes(), state.to_bytes()
    genesis = Genesis(
        version=1,
        name=swarm.path.name.encode()[:64],
        recipe=recipe.to_bytes(),
        tokenizer_hash=file_hash(described),
        tokenizer_size=len(described),
        validation_hash=file_hash(NO_TEXT),
        validation_size=len(NO_TEXT),
        state_root=state_root(first),
        state_size=len(first),
        blob_size_max=encoded_size(len(state.theta_P), recipe.config.swarm.codec),
        limits=limits_of(recipe.config),
        founders=founders_of([seed]),
    )
    run = {"kind": recipe.kind, "chain_id": genesis.chain_id.hex()}
    lay_down(swarm, genesis, described, NO_TEXT, first, run)


def arrive(
    where: str, directory: Path | None, note: Callable[[str], None], timeout_seconds: float
) -> tuple[SwarmDirectory, Known]:
    """Come to a swarm by a ticket or by host:port; returns where it lies here, and whom to dial.

    Raises:
        ConfigError: if the ticket is none, or the directory has another swarm.
        SwarmError: if nobody can be reached in time.
    """
    ticket = _ticket(where) if where.startswith(PREFIX) else None
    invitation = ticket.invitation if ticket is not None else None
    swarm = SwarmDirectory(directory or Path("runs") / _name_for(where, invitation))
    if invitation and swarm.genesis_file.exists():
        if swarm.genesis().chain_id != invitation.chain_id:
            raise ConfigError(
                "the ticket is for another swarm than the one in this directory",
                where=str(swarm.path),
                hint="give another directory=",
            )
    seed = load_or_create_key(swarm.peer(ME).make().key)

    async def fetch() -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                if ticket is not None:
                    await fetch_invited(swarm, swarm.peer(ME), seed, [ticket], note)
                    with Journal(swarm.peer(ME).journal, wall_clock) as journal:
                        genesis = swarm.genesis()
                        given = (ticket.invitation, note, journal)
                        await anchor(swarm.peer(ME), genesis, *given, seed=seed)
                elif not swarm.genesis_file.exists():
                    await fetch_swarm(swarm, seed, where, note)
        except TimeoutError as error:
            raise SwarmError(
                f"nobody led to the swarm within {timeout_seconds:g} s",
                where=where if len(where) < 80 else "the ticket",
                hint="check that whoever invited is running, or ask for a new ticket",
            ) from error

    run_apart(fetch)
    if invitation is None:
        return swarm, [(where, None)]
    return swarm, [(place.address.decode(), place.peer) for place in invitation.places]


def _ticket(line: str) -> Ticket:
    try:
        return read_ticket(line, time.time())
    except MalformedError as error:
        raise ConfigError(
            str(error), where="the ticket", hint="ask for a new one: swarm.invite()"
        ) from error


def _name_for(where: str, invitation: Invitation | None) -> str:
    if invitation is not None:
        return f"swarm-{invitation.chain_id.hex()[:8]}"
    return "swarm-at-" + "".join(c if c.isalnum() else "-" for c in where)


def recipe_here(swarm: SwarmDirectory, mine: Description, kind: str) -> ModuleRecipe:
    """Return how the swarm in a directory trains, if these tensors are what it agrees on.

    Raises:
        ConfigError: if they are not, naming the first, or the swarm is of another kind.
        SwarmError: if its files cannot be read.
    """
    recipe = ModuleRecipe.from_bytes(swarm.genesis().recipe)
    if recipe.kind != kind:
        alone = "gradients alone" if recipe.kind == GRADIENTS else "the parameters of a module"
        other = "Coordinator" if recipe.kind == GRADIENTS else "Swarm"
        raise ConfigError(f"this swarm agrees on {alone}", hint=f"peerformer.{other}.join(...)")
    try:
        theirs = Description.from_bytes(swarm.tokenizer.read_bytes())
    except OSError as error:
        raise SwarmError(
            "the description of the swarm's tensors is gone",
            where=str(swarm.tokenizer),
            hint="join again in another directory",
        ) from error
    if theirs.digest != recipe.description:
        raise SwarmError(
            "the description of the swarm's tensors is not the one that it was founded on",
            where=str(swarm.tokenizer),
        )
    refuse_other(mine, theirs)
    return recipe

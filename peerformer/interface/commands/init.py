"""`peerformer init`: found a swarm for others to join, and start nothing."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from peerformer.config import Config
from peerformer.errors import ConfigError
from peerformer.interface import passphrase
from peerformer.interface.commands.node import note
from peerformer.interface.options import ConfigOptions, resolve_options
from peerformer.interface.passphrase import PassphraseFile
from peerformer.interface.progress import si
from peerformer.node import founding
from peerformer.node.directory import SwarmDirectory
from peerformer.node.keyring import KEY_SIZE_BYTES, save_key
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.identity import KeyPair, name_of
from peerformer.protocol.membership import tolerated_faults
from peerformer.settings import DEFAULT, Resolved
from peerformer.train.recipe import recipe_config
from peerformer.train.start import settings_of_base

FOUNDERS_MAX = 64
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ADMITS = {
    "open": "open: the voters let anybody in who asks",
    "invite": "by invitation: a voter lets in whom it gave a ticket, and no more than that",
    "closed": "closed: the founders are all its members, for good",
}


def init(
    target: Annotated[str, Parameter(help="Name of the swarm, or NAME.json with its settings.")],
    /,
    *,
    admission: Annotated[
        str | None, Parameter(help="Who may join: open, invite, or closed.")
    ] = None,
    founders: Annotated[
        int | None, Parameter(help="First voters, with their keys here: 1.")
    ] = None,
    data: Annotated[Path | None, Parameter(help="File or folder of the founder's text.")] = None,
    seed: Annotated[int | None, Parameter(help="Seed of the initial weights.")] = None,
    base: Annotated[
        str | None, Parameter(name="--from", help="Model whose weights the swarm starts from.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    options: ConfigOptions = ConfigOptions(),
) -> None:
    """Found a swarm for others to join, without starting it: genesis, first state, the key.

    Give the settings as flags, as for `train`, or as a file: see `peerformer config show --json`.
    """
    if founders is not None and not 1 <= founders <= FOUNDERS_MAX:
        raise ConfigError(
            f"--founders must be between 1 and {FOUNDERS_MAX}", why=f"given: {founders}"
        )
    name, options = _named(target, options)
    swarm = SwarmDirectory(Path("runs") / name)
    if swarm.path.exists():
        raise ConfigError(
            f"there is a run called {name} already",
            where=str(swarm.path),
            hint=f"choose another name, or go on with it: peerformer node --run {name}",
        )
    overrides = {
        "swarm.admission": admission,
        "swarm.peers": founders,
        "data.path": str(data) if data else None,
        "training.seed": seed,
        "training.base": base,
    }
    resolved = resolve_options(options, overrides, settings_of_base)
    if resolved.origins["swarm.peers"] == DEFAULT:
        resolved = resolve_options(options, {**overrides, "swarm.peers": 1}, settings_of_base)
    _check(resolved)
    is_protected = passphrase.is_given(passphrase_file)
    word = passphrase.new(passphrase_file) if is_protected else None
    with _all_or_nothing(swarm) as made:
        genesis, names = _found(made, resolved.config, word)
    for line in told(swarm, genesis, names):
        print(line)


def _named(target: str, options: ConfigOptions) -> tuple[str, ConfigOptions]:
    """Return the name of the swarm, and the options with the file that was given for it."""
    name = target
    if target.endswith(".json"):
        path = Path(target)
        name = path.stem
        if not path.is_file():
            raise ConfigError(
                f"there is no file {target}",
                hint=f"peerformer init {name}, with settings as flags; or write the file:"
                f" peerformer config show --json > {target}",
            )
        options = ConfigOptions(
            options.size, (path, *options.files), options.settings, options.family
        )
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r:.80} is no name for a swarm",
            hint="letters, digits, dot, dash and underscore, 64 at most: peerformer init my-run",
        )
    return name, options


def _check(resolved: Resolved) -> None:
    """Refuse a swarm that nobody could ever join and that is none without others."""
    swarm = resolved.config.swarm
    if swarm.admission == "closed" and swarm.peers == 1:
        raise ConfigError(
            "nobody could ever join its only founder",
            where=f"swarm.admission, from {resolved.origins['swarm.admission']}",
            hint="--admission invite, or --founders 4",
        )


@contextmanager
def _all_or_nothing(swarm: SwarmDirectory) -> Iterator[SwarmDirectory]:
    """Give a directory of the same name elsewhere, which takes its place when all went well."""
    runs = swarm.path.parent
    had_runs = runs.exists()
    work = runs / f".init-{secrets.token_hex(4)}"
    work.mkdir(parents=True)
    try:
        made = SwarmDirectory(work / swarm.path.name)
        yield made
        os.rename(made.path, swarm.path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if not had_runs and not any(runs.iterdir()):
            runs.rmdir()


def _found(swarm: SwarmDirectory, config: Config, word: str | None) -> tuple[Genesis, list[str]]:
    """Write a swarm and the keys of its founders; returns the peers' names there."""
    seeds = [secrets.token_bytes(KEY_SIZE_BYTES) for _ in range(config.swarm.peers)]
    genesis = founding.found(swarm, config, seeds, note)
    names = ["me"]
    if len(seeds) > 1:
        names = [name_of(KeyPair.from_seed(seed).peer_id) for seed in seeds]
        names = [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names)]
    for name, seed in zip(names, seeds, strict=True):
        save_key(swarm.peer(name).make().key, seed, word)
    return genesis, names


def told(swarm: SwarmDirectory, genesis: Genesis, names: Sequence[str]) -> list[str]:
    """Return what is fixed now, and what to type next."""
    config = recipe_config(genesis.recipe, threads=1, data=None)
    agreed, count = config.swarm, len(genesis.founders)
    faults = tolerated_faults(count)
    size = f"{config.model.num_layers} layers, {config.model.hidden_size} wide"
    parameters = f"{genesis.state_size / 8e6:.1f} M"
    tolerance = (
        f"{faults} of {count} voters may lie or be away"
        if faults
        else f"{count} of {count} voters are needed, and none may lie; 4 tolerate one"
    )
    lines = [
        f"founded     {swarm.path}, chain {genesis.chain_id.hex()[:16]}",
        f"model       {size}, {parameters} parameters, {agreed.inner_steps} steps a round",
        f"rule        {agreed.rule}, codec {agreed.codec}:"
        f" at most {si(genesis.blob_size_max)}B a contribution",
        f"admission   {ADMITS[agreed.admission]}",
        f"tolerance   {tolerance}",
        "all of this is fixed by the genesis; the swarm is not running yet",
    ]
    run = swarm.path.name
    if len(names) == 1:
        lines.append(f"start it    peerformer node --run {run} --host 0.0.0.0")
    else:
        lines.append(f"start it    peerformer up --run {run}     (all {count} founders, here)")
    if agreed.admission != "closed":
        uses = " --uses 3" if agreed.admission == "invite" else ""
        lines.append(f"invite      peerformer invite {run} --expires 24h{uses}")
    return lines

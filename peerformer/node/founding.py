"""Founding a swarm: prepare the text, shape the model, fix everything in a genesis.

The founder ships what must be alike as bytes: tokenizer, held-out set, initial parameters; the
genesis names each by its hash. Weights are never a seed: random numbers differ between machines.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from peerformer.config import Config
from peerformer.data.prepare import Prepared, prepare
from peerformer.errors import ConfigError, SwarmError
from peerformer.gradients.compress import encoded_size
from peerformer.node.directory import SwarmDirectory, write_durably
from peerformer.protocol.genesis import (
    ADMISSION_CLOSED,
    ADMISSION_INVITE,
    ADMISSION_OPEN,
    Founder,
    Genesis,
    Limits,
)
from peerformer.protocol.identity import HashChain, KeyPair, hash_of
from peerformer.protocol.merkle import state_root
from peerformer.settings import to_json
from peerformer.train.agreed import initial_state
from peerformer.train.outer import factors_of
from peerformer.train.privacy import check_accountant
from peerformer.train.recipe import check_recipe, recipe_bytes, rule_of
from peerformer.train.start import start_of

ADMISSIONS = {"closed": ADMISSION_CLOSED, "open": ADMISSION_OPEN, "invite": ADMISSION_INVITE}
AUDITS_LEAST = 0.001
RECORD_BYTES_MAX = 256 << 20


def file_hash(data: bytes) -> bytes:
    """Return the hash by which a genesis names a file."""
    return hash_of("file", data)


def prepare_text(
    config: Config, directory: SwarmDirectory, report: Callable[[str], None] = lambda _: None
) -> Prepared:
    """Prepare this machine's own text under the swarm's directory."""
    return prepare(config.data, directory.path / "data", report=report)


def found(
    directory: SwarmDirectory,
    config: Config,
    seeds: Sequence[bytes],
    report: Callable[[str], None] = lambda _: None,
) -> Genesis:
    """Found a swarm whose first voters hold the keys of `seeds`.

    Raises:
        SwarmError: if there is a swarm in the directory already.
        DataError: if there is nothing to learn from.
        ConfigError: if the rule needs more contributions than there are founders.
    """
    refuse_second(directory)
    check_rule(config, len(seeds))
    factors_of(config)
    check_recipe(config)
    _check_audits(config)
    _check_masks(config)
    directory.path.mkdir(parents=True, exist_ok=True)
    start = start_of(config, directory.path, report)
    prepared = prepare_text(replace(config, data=start.data), directory, report)
    vocab_size = prepared.tokenizer.vocab_size  # less than asked for where there is little text
    model, audits = start.model(vocab_size), config.swarm.audits
    config = replace(
        config,
        model=model.config,
        data=replace(config.data, vocab_size=vocab_size),
        training=replace(config.training, base=None),  # shipped as weights; the path is our affair
        swarm=replace(
            config.swarm,
            text_digest=prepared.train.digest if audits else "",
            sources=prepared.sources,
        ),
    )
    state = initial_state(model).to_bytes()
    tokenizer, validation = prepared.tokenizer.to_bytes(), prepared.validation.to_bytes()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if audits and 2 * len(state) > RECORD_BYTES_MAX:
        raise ConfigError(
            f"an auditor would fetch up to {2 * len(state) >> 20} MiB to repeat one training",
            where="swarm.audits",
            why=f"at most {RECORD_BYTES_MAX >> 20} MiB are fetched in the time of a round",
            hint="--swarm.audits 0, or a smaller model",
        )
    genesis = Genesis(
        version=1,
        name=directory.path.name.encode()[:64],
        recipe=recipe_bytes(config),
        tokenizer_hash=file_hash(tokenizer),
        tokenizer_size=len(tokenizer),
        validation_hash=file_hash(validation),
        validation_size=len(validation),
        state_root=state_root(state),
        state_size=len(state),
        blob_size_max=encoded_size(parameters, config.swarm.codec),
        limits=limits_of(config),
        founders=founders_of(seeds),
    )
    run = {"kind": "swarm", "config": to_json(config), "chain_id": genesis.chain_id.hex()}
    lay_down(directory, genesis, tokenizer, validation, state, run)
    return genesis


def lay_down(
    directory: SwarmDirectory,
    genesis: Genesis,
    tokenizer: bytes,
    validation: bytes,
    state: bytes,
    run: Mapping[str, object],
) -> None:
    """Write what a genesis names, and the genesis last: where it is, all of it is."""
    directory.path.mkdir(parents=True, exist_ok=True)
    write_durably(directory.tokenizer, tokenizer)
    write_durably(directory.validation, validation)
    write_durably(directory.first_state, state)
    write_durably(directory.path / "run.json", json.dumps(run, indent=1).encode())
    write_durably(directory.genesis_file, genesis.to_bytes())


def refuse_second(directory: SwarmDirectory) -> None:
    """Refuse to found where a swarm was founded; raises SwarmError."""
    if directory.genesis_file.exists():
        raise SwarmError("a swarm was founded here already", where=str(directory.path))


def check_rule(config: Config, founders: int) -> None:
    """Refuse a rule that so few cannot feed."""
    least = rule_of(config).contributions_least
    if founders < least:
        raise ConfigError(
            f"the rule {config.swarm.rule} needs {least} contributions, and there are"
            f" {founders} founders",
            where="swarm.rule",
            hint=f"--peers {least}, or --swarm.rule robust",
        )
    if config.swarm.contributions_min < least:
        raise ConfigError(
            f"the rule {config.swarm.rule} needs {least} contributions, and a round may have"
            f" {config.swarm.contributions_min}",
            where="swarm.contributions_min",
            hint=f"--swarm.contributions-min {least}: with fewer, nothing changes in a round",
        )


def _check_audits(config: Config) -> None:
    """Refuse audits that nobody can do."""
    swarm = config.swarm
    if swarm.audits and swarm.staleness:
        raise ConfigError(
            "a training that ran ahead of the vote cannot be repeated",
            where="swarm.audits",
            hint="--swarm.audits 0, or --swarm.staleness 0",
        )
    if swarm.audits and swarm.privacy_noise:
        raise ConfigError(
            "a training whose update is hidden by noise cannot be repeated",
            where="swarm.audits",
            why="auditors would need the noise, and the optimizer's state tells what it hides",
            hint="--swarm.audits 0, or --swarm.privacy_noise 0",
        )
    if swarm.privacy_noise:
        check_accountant()
    if 0 < swarm.audits < AUDITS_LEAST:
        raise ConfigError(
            f"a share of {swarm.audits} is less than the least",
            where="swarm.audits",
            hint=f"--swarm.audits {AUDITS_LEAST}, or 0 for none",
        )


def _check_masks(config: Config) -> None:
    """Refuse a way to train that the genesis does not bind."""
    if config.data.document_masks:
        raise ConfigError(
            "a swarm trains without document masks",
            where="data.document_masks",
            why="each peer reads its own settings of data, and all must train alike",
            hint="--data.document_masks false",
        )


def limits_of(config: Config) -> Limits:
    """Return the genesis' limits of a configuration."""
    swarm = config.swarm
    return Limits(
        contributions_min=swarm.contributions_min,
        contributions_max=swarm.contributions_max,
        harm_micronats=swarm.harm_micronats,
        admission=ADMISSIONS[swarm.admission],
        vouchers=swarm.vouchers,
        joins_per_epoch=swarm.joins_per_epoch,
        joins_per_voucher=swarm.joins_per_voucher,
        idle_rounds_max=swarm.idle_rounds_max,
        train_milliseconds_max=int(swarm.train_seconds_max * 1_000),
        staleness=swarm.staleness,
        audit_permille=round(swarm.audits * 1_000),
    )


def founders_of(seeds: Sequence[bytes]) -> tuple[Founder, ...]:
    """Return the founders that hold these keys, sorted."""
    pairs = sorted(
        (KeyPair.from_seed(seed).peer_id, HashChain.from_seed(seed).links[0]) for seed in seeds
    )
    return tuple(Founder(peer, anchor) for peer, anchor in pairs)


def run_name(today: str, name: str | None, seed: bytes) -> str:
    """Return the name of a new swarm: the one given, or a dated one of two words."""
    from peerformer.protocol.identity import name_of

    return name or f"{today}-{name_of(hash_of('run name', seed))}"


def new_directory(name: str, root: Path = Path("runs")) -> SwarmDirectory:
    """Return the directory of a new swarm."""
    return SwarmDirectory(root / name)

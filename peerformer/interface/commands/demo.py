"""`peerformer demo`: seven peers, two of them liars, train one model while you watch."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from peerformer.errors import SwarmError
from peerformer.gradients.fixed_point import parameters_of
from peerformer.interface.commands.up import open_swarm, serve_orders, start_all
from peerformer.interface.options import ConfigOptions
from peerformer.interface.story import Cast, Story, cast_of, failures
from peerformer.interface.swarm_view import SwarmView
from peerformer.node.directory import write_durably

SIZE = "nano"
# What the demonstration runs with unless --set says otherwise: short rounds, a few megabytes.
SETTINGS = ("swarm.peers=7", "swarm.inner_steps=16", "data.max_bytes=3000000")
PROMPT = "The function returns"
SAMPLE_TOKENS = 80
WIDTH_MIN = 120  # where no terminal says how wide it is


def demo(
    *,
    data: Annotated[Path | None, Parameter(help="File or folder of text.")] = None,
    json_output: Annotated[
        bool, Parameter(name="--json", negative=(), help="Print summary.json too.")
    ] = False,
    options: ConfigOptions = ConfigOptions(),
) -> None:
    """Watch a swarm train, lose a peer and get it back, and deal with two liars."""
    options = replace(options, settings=(*SETTINGS, *options.settings))
    overrides = {"size": options.size or SIZE, "data.path": str(data) if data else None}
    name = f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    with SwarmView() as view:
        supervisor = open_swarm(name, options, overrides, view.note)
        cast = cast_of([directory.name for directory in supervisor.swarm.peers()])
        story = Story(supervisor, cast, view.show, view.note)
        try:
            view.note(
                f"cast        {cast.poisoner} flips the sign of what it trained, from the start"
            )
            start_all(supervisor, view.note, {cast.poisoner: "sign-flip"})
            serve_orders(supervisor)
            last_round = story.tell()
            checkpoint = supervisor.save_checkpoint(story.honest()[0])
            parameters = parameters_of(supervisor.swarm.genesis().state_size)
            summary = story.summary(last_round, str(checkpoint), parameters)
        finally:
            supervisor.stop()
    path = supervisor.swarm.path / "summary.json"
    write_durably(path, json.dumps(summary, indent=1).encode())
    wrong = failures(summary, cast)
    _show(summary, cast, supervisor.swarm.path, _sample(checkpoint))
    if json_output:
        print(json.dumps(summary))
    print(path)
    if wrong:
        raise SwarmError("the demonstration failed", why="; ".join(wrong), where=str(path))


def _sample(checkpoint: Path) -> str:
    from peerformer.data.tokenizer import load_tokenizer
    from peerformer.generate.engine import generate
    from peerformer.generate.sampling import Sampling
    from peerformer.model.convert import load_model

    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    tokens = generate(
        model,
        tokenizer.encode(PROMPT),
        sampling=Sampling(temperature=0.7, top_k=40),
        tokens_max=SAMPLE_TOKENS,
        stop_ids={tokenizer.end_of_text_id},
        seed=1,
    )
    return PROMPT + tokenizer.decode(list(tokens))


def _show(summary: dict[str, Any], cast: Cast, directory: Path, sample: str) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.width = max(console.width, WIDTH_MIN)
    bits = summary["validation_bits_per_byte"]
    ratio = summary["bytes_if_float32"] / max(summary["bytes_sent_per_peer"], 1)
    console.print()
    console.print(f"rounds      {summary['rounds']} in {summary['seconds']} s")
    console.print(f"held out    {bits[0]:.3f} -> {bits[-1]:.3f} bits per byte")
    console.print(
        f"traffic     {summary['bytes_sent_per_peer'] / 1e6:.1f} MB sent per peer, all told; "
        f"float32 contributions alone: {summary['bytes_if_float32'] / 1e6:.1f} MB ({ratio:.1f}×)"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("peer", "part", "accepted", "what became of it", "state root"):
        table.add_column(column)
    for peer in summary["peers"]:
        part = peer["adversary"] or (
            "killed, restarted" if peer["restarted_at_round"] else "honest"
        )
        fate = _fate(peer, summary["refusals"].get(peer["name"], {}))
        root = (peer["state_root"] or "–")[:16]
        table.add_row(peer["name"], part, f"{peer['accepted']}/{peer['contributed']}", fate, root)
    console.print(table)
    console.print()
    console.print(sample, markup=False)
    console.print()
    console.print(f"model       {summary['checkpoint']}")
    console.print(f"journals    {directory}/peers/*/journal.jsonl")
    name = directory.name
    console.print("next        peerformer log " + name + " --evidence")
    console.print(f'            peerformer generate "{PROMPT}" --from {name}')
    console.print(f"            peerformer up --run {name}")


def _fate(peer: dict[str, Any], refusals: dict[str, int]) -> str:
    words = []
    if peer["evicted"]:
        words.append(f"evicted: {peer['evidence']}")
    if peer["quarantined"]:
        words.append("quarantined")
    if peer["caught_up_seconds"] is not None:
        words.append(
            f"back in round {peer['restarted_at_round']}, "
            f"caught up in {peer['caught_up_seconds']:.1f} s"
        )
    if peer["adversary"]:
        words += [f"refused {count}×: {reason}" for reason, count in refusals.items()]
    return "; ".join(words) or "–"

"""`peerformer status`: how a swarm is doing, from the peers' status files."""

import json
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from peerformer.interface.swarm_view import advice, by_source, headline, table_of
from peerformer.node.directory import bytes_under, find_swarm
from peerformer.node.overview import overview


def status(
    run: Annotated[
        str | None, Parameter(help="Name or path; without it, the swarm used last.")
    ] = None,
    *,
    json_output: Annotated[
        bool, Parameter(name="--json", negative=(), help="One JSON object.")
    ] = False,
) -> None:
    """Show the peers of a swarm: round, contributions, standing, what each is doing."""
    swarm = find_swarm(run)
    now = {**overview(swarm), "disk_bytes": bytes_under(swarm.path)}
    if json_output:
        print(json.dumps(now))
        return
    console = Console(highlight=False)
    console.print(f"swarm {now['name']}   chain {now['chain_id'][:16]}")
    console.print(table_of(now))
    console.print(headline(now))
    if sources := by_source(now):
        console.print(sources, soft_wrap=True)
    console.print(f"state root {now['state_root']}")
    console.print(f"on disk    {now['disk_bytes'] / 1e6:.1f} MB in {swarm.path}", soft_wrap=True)
    if hint := advice(now):
        console.print(hint, soft_wrap=True)

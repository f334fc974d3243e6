"""`peerformer doctor [TICKET]`: what keeps this machine from joining a swarm, and how to cure it.

Imported with the command line itself, so what takes long is imported when it runs.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from peerformer.node.findings import Report


def doctor(
    ticket: Annotated[
        str | None, Parameter(help="That of an invitation; without it, this machine alone.")
    ] = None,
    *,
    host: Annotated[str, Parameter(help="Address that the peer would listen on.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port that it would listen on.")] = 8_888,
    run: Annotated[str | None, Parameter(help="Where its files would be, under runs/.")] = None,
    json_output: Annotated[
        bool, Parameter(name="--json", negative=(), help="One JSON object.")
    ] = False,
) -> int:
    """Look at what this machine can do for a swarm: one line for each finding, then a verdict."""
    from peerformer.errors import ConfigError
    from peerformer.node.findings import NOTHING, Report, lines_of
    from peerformer.node.own_checkup import look_at_this_machine

    if not 0 <= port <= 65_535:
        raise ConfigError("--port must be between 0 and 65535", why=f"given: {port}")
    directory = Path("runs") / (run or f"node-{port}")
    if ticket is None:
        report = Report(tuple(look_at_this_machine(directory)), asked_a_member=False)
    else:
        report = _by_ticket(ticket, host, port, directory)
    print(json.dumps(report.to_json()) if json_output else "\n".join(lines_of(report)))
    return 1 if report.can == NOTHING else 0


def _by_ticket(text: str, host: str, port: int, directory: Path) -> "Report":
    import secrets

    from peerformer.errors import ConfigError
    from peerformer.node.member_checkup import Checkup
    from peerformer.node.process import run_loop
    from peerformer.protocol.codec import MalformedError
    from peerformer.protocol.ticket import parse_ticket

    try:
        ticket = parse_ticket(text)
    except MalformedError as error:
        raise ConfigError(
            str(error), where="the ticket", hint="ask for a new one: peerformer invite"
        ) from error
    checkup = Checkup(ticket, secrets.token_bytes(32), host, port, directory)
    report: Report = run_loop(checkup.report())
    return report

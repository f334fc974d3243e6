"""Orders to a swarm that runs on this machine, from another terminal: its supervisor's socket."""

import json
import socket
from typing import Any

from peerformer.errors import SwarmError
from peerformer.node.directory import SwarmDirectory

ANSWER_SECONDS_MAX = 120.0  # a peer that is added may take as long to come up


def request(swarm: SwarmDirectory, message: dict[str, Any]) -> dict[str, Any]:
    """Ask the supervisor of a running swarm; returns its answer.

    Raises:
        SwarmError: if none runs, or it refuses.
    """
    try:
        note = json.loads(swarm.supervisor.read_bytes())
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_SECONDS_MAX)
            connection.connect(note["socket"])
            with connection.makefile("rwb") as stream:
                stream.write(json.dumps(message).encode() + b"\n")
                stream.flush()
                answer: dict[str, Any] = json.loads(stream.readline())
    except (OSError, ValueError, KeyError) as error:
        raise SwarmError(
            "no swarm is running here",
            where=str(swarm.path),
            hint=f"peerformer up --run {swarm.path.name}",
        ) from error
    if "error" in answer:
        raise SwarmError(answer["error"], why=answer.get("why"), hint=answer.get("hint"))
    return answer

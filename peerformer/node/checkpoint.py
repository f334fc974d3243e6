"""An agreed state as an ordinary loadable checkpoint, with the certificate that vouches for it."""

import json
import os
import shutil
from pathlib import Path

from blake3 import blake3

from peerformer.model.convert import save_model
from peerformer.node.assemble import Assembled
from peerformer.node.directory import SwarmDirectory, write_durably
from peerformer.protocol.chain import Chain
from peerformer.protocol.codec import encode
from peerformer.train.agreed import AgreedReplica


def save_agreed(swarm: SwarmDirectory, chain: Chain, parts: Assembled) -> Path:
    """Save the agreed model under checkpoints/, whole or not at all; returns its directory.

    Called on the worker's thread, between two works, so that the state does not move meanwhile.
    """
    replica, tokenizer = parts.bench.replica, parts.tokenizer
    assert isinstance(replica, AgreedReplica) and tokenizer, "a user's own module is theirs to save"
    number = replica.round
    checkpoints = swarm.path / "checkpoints"
    final = checkpoints / f"step-{number:08d}"
    temporary = checkpoints / f".step-{number:08d}.{os.getpid()}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_model(temporary, replica.agreed_model(), tokenizer.to_bytes())  # type: ignore[arg-type]
    files = {
        path.name: blake3(path.read_bytes()).hexdigest() for path in sorted(temporary.iterdir())
    }
    item = chain.item(number)
    state = {
        "kind": "swarm",
        "round": number,
        "step": number,
        "chain_id": chain.chain_id.hex(),
        "state_root": (item.header.state_root if item else chain.genesis.state_root).hex(),
        "certified": encode(item).hex() if item else None,
        "files": files,
    }
    write_durably(temporary / "state.json", json.dumps(state, indent=1).encode())
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if final.exists():
        shutil.rmtree(temporary)
    else:
        temporary.rename(final)
    write_durably(swarm.path / "latest", f"checkpoints/{final.name}\n".encode())
    return final

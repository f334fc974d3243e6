"""Train small transformers alone, on a cluster, or peer to peer among strangers.

Importing this package is cheap: the public names below load their modules, and with them torch,
only when they are first used. This module knows the names of the public functions and where they
live; it knows nothing about what they do.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> the module that defines it.
_PUBLIC = {
    "Coordinator": "peerformer.swarm.coordinator",
    "NoQuorum": "peerformer.errors",
    "Swarm": "peerformer.swarm.training",
    "complete": "peerformer.generate.completion",
    "complete_by_beams": "peerformer.generate.completion",
    "load_model": "peerformer.model.convert",
    "load_tokenizer": "peerformer.data.tokenizer",
    "stream": "peerformer.generate.completion",
    "train": "peerformer.cluster.training",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Load a public name on its first use (PEP 562).

    Raises:
        AttributeError: `name` is not a public name of this package.
    """
    if name not in _PUBLIC:
        raise AttributeError(f"module 'peerformer' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted(__all__)

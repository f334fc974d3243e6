"""`peerformer export`: write a model in the field's formats, and check that others read it.

The directory appears whole or not at all: it is written and checked under another name beside
its place, and renamed. The check loads it with Hugging Face's transformers, where that is
installed, and compares logits.
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter

from peerformer.data.tokenizer import load_tokenizer
from peerformer.errors import CheckpointError, ConfigError
from peerformer.model.convert import load_model, save_model
from peerformer.model.find import resolve_checkpoint
from peerformer.model.transformer import Transformer

FILES = {
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
CHECKED_TOKENS_MAX = 64
# As a share of the largest logit, at least of 1: two orders of summation differ by less in
# float32, and another model by more.
DIFFERENCE_MAX = 1e-3


def export(
    source: str,
    /,
    *,
    to: Path,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Write a model as safetensors with its configuration and tokenizer, as Hugging Face reads it.

    Args:
        source: A run, the end of its name, or the directory of a checkpoint.
        to: The directory to make.
        overwrite: Replace an earlier export in that directory.
    """
    _refuse_occupied(to, overwrite=overwrite)
    checkpoint = resolve_checkpoint(source)
    model = load_model(checkpoint)
    tokenizer_path = checkpoint / "tokenizer.json"
    has_tokenizer = tokenizer_path.exists()
    tokenizer_bytes = load_tokenizer(tokenizer_path).to_bytes() if has_tokenizer else None
    to = to.absolute()
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=to.parent) as scratch:
            made = Path(scratch) / to.name
            made.mkdir()
            save_model(made, model, tokenizer_bytes)
            verdict = _check(made, model)
            _put(made, to, Path(scratch) / "replaced")
    except OSError as error:
        raise ConfigError(
            "the export cannot be written", where=str(to), why=error.strerror or str(error)
        ) from error
    size_megabytes = sum(path.stat().st_size for path in to.iterdir()) / 1e6
    print(f"Wrote {to} ({size_megabytes:.1f} MB, float32).")
    if not has_tokenizer:
        print("It has no tokenizer, because the checkpoint has none.")
    print(verdict)


def _refuse_occupied(to: Path, *, overwrite: bool) -> None:
    """Refuse a place that is taken; even --overwrite removes only what an export writes."""
    if not to.exists() and not to.is_symlink():
        return
    if not to.is_dir() or to.is_symlink():
        raise ConfigError("this is not a directory", where=str(to), hint="--to ANOTHER_DIRECTORY")
    present = sorted(path.name for path in to.iterdir())
    if present and not overwrite:
        raise ConfigError("the directory is not empty", where=str(to), hint="--overwrite")
    if others := [name for name in present if name not in FILES]:
        raise ConfigError(
            f"the directory holds what is no export ({others[0]}), and is left alone",
            where=str(to),
            hint="--to ANOTHER_DIRECTORY",
        )


def _put(made: Path, to: Path, replaced: Path) -> None:
    """Rename `made` to `to`, whose earlier content goes to `replaced`, or comes back."""
    if to.exists():
        os.replace(to, replaced)
    try:
        os.replace(made, to)
    except OSError:
        if replaced.exists():
            os.replace(replaced, to)
        raise


def _check(directory: Path, model: Transformer) -> str:
    """Load an export with transformers and compare logits; the sentence that says how it went.

    Raises:
        CheckpointError: transformers computes something else.
    """
    try:
        import transformers
    except ImportError:
        return "Not checked: transformers is not installed (pip install transformers)."
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True
    )
    length = min(CHECKED_TOKENS_MAX, model.config.max_positions)
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(model.config.vocab_size, (2, length), generator=generator)
    with torch.inference_mode():
        ours_BTV, theirs_BTV = model(tokens_BT), theirs(tokens_BT).logits
    difference = (theirs_BTV - ours_BTV).abs().max().item()
    if not difference <= DIFFERENCE_MAX * max(1.0, ours_BTV.abs().max().item()):
        raise CheckpointError(
            f"transformers {transformers.__version__} gives other logits (by {difference:.3g})",
            why="this is an error in Peerformer, or in that version; nothing was written",
        )
    return (
        "Checked: transformers loads it and gives the same logits"
        f" (max difference {difference:.2g})."
    )

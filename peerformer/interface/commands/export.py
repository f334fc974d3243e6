"""`peerformer export`: write a model in the field's formats, and check that others read it.

The directory appears whole or not at all: it is written and checked under another name beside
its place, and renamed. The check loads it with Hugging Face's transformers, where that is
installed, and compares logits. With `--gguf` it is one file instead, see `gguf_export`.
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import Parameter

from peerformer.data.chat import TEMPLATE_FILE
from peerformer.data.tokenizer import RUN_FOLDER, load_tokenizer
from peerformer.errors import CheckpointError, ConfigError
from peerformer.interface.gguf_export import export_gguf
from peerformer.model.convert import load_model, save_model
from peerformer.model.find import resolve_checkpoint
from peerformer.model.formats import refuse_export
from peerformer.model.transformer import Transformer
from peerformer.model.weights import INDEX_FILE
from peerformer.train.sharded_checkpoint import consolidate, is_sharded

FILES = {
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    TEMPLATE_FILE,
    INDEX_FILE,
}
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
SHARD_MEGABYTES = 5_000  # as Hugging Face's tools do; larger files are hard to copy
CHECKED_TOKENS_MAX = 64
# As a share of the largest logit, at least of 1: two orders of summation differ by less in
# float32, and another model by more.
DIFFERENCE_MAX = 1e-3


def export(
    source: str,
    /,
    *,
    to: Path | None = None,
    gguf: Literal["f16", "q8_0", "q4_0"] | None = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    shard_megabytes: int = SHARD_MEGABYTES,
    base: str | None = None,
) -> None:
    """Write a model as safetensors with its configuration and tokenizer, as Hugging Face reads it.

    Args:
        source: A run, the end of its name, or the directory of a checkpoint.
        to: The directory to make; with --gguf the file, which may be left to its default name.
        gguf: Write one GGUF file for llama.cpp instead, its matrices in this type.
        overwrite: Replace an earlier export there.
        shard_megabytes: The largest file of weights; more are split into several with an index.
        base: The model that an adapter from elsewhere belongs to; it is merged into it.
    """
    if gguf is not None:
        export_gguf(source, gguf, to, overwrite=overwrite)
        return
    if to is None:
        raise ConfigError("an export needs a place", where="command line", hint="--to DIRECTORY")
    if shard_megabytes < 1:
        raise ConfigError("--shard-megabytes must be at least 1", why=f"given: {shard_megabytes}")
    _refuse_occupied(to, overwrite=overwrite)
    checkpoint = resolve_checkpoint(source)
    if is_sharded(checkpoint):
        consolidate(checkpoint)
    model = load_model(checkpoint, base)
    refuse_export(model.config, str(checkpoint))
    tokenizer_path = checkpoint / "tokenizer.json"
    if base is not None and not tokenizer_path.exists():
        tokenizer_path = resolve_checkpoint(base) / "tokenizer.json"
    has_tokenizer = tokenizer_path.exists()
    tokenizer_bytes = load_tokenizer(tokenizer_path).to_bytes() if has_tokenizer else None
    to = to.absolute()
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=to.parent) as scratch:
            made = Path(scratch) / to.name
            made.mkdir()
            save_model(made, model, tokenizer_bytes, shard_bytes_max=shard_megabytes * 1_000_000)
            template = checkpoint.parent.parent / RUN_FOLDER / TEMPLATE_FILE
            if has_tokenizer and template.is_file():  # the run learned chats
                (made / TEMPLATE_FILE).write_bytes(template.read_bytes())
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
    if others := [n for n in present if n not in FILES and not SHARD.fullmatch(n)]:
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

"""A model as one GGUF file: written beside its place, read back, and renamed once it is right."""

import os
import tempfile
from collections import Counter
from pathlib import Path

from peerformer.errors import ConfigError
from peerformer.model.convert import load_model
from peerformer.model.find import resolve_checkpoint
from peerformer.model.gguf_file import architecture, check_gguf, package, write_gguf
from peerformer.model.gguf_vocabulary import vocabulary_of

SUFFIX = ".gguf"


def export_gguf(source: str, kind: str, to: Path | None, *, overwrite: bool) -> None:
    """Write a model as a GGUF file, and say how it went.

    Args:
        source: as `resolve_checkpoint` takes it.
        kind: `f16`, `q8_0` or `q4_0`.
        to: the file; None names it after the source and the kind, in the current directory.
        overwrite: replace an earlier one.

    Raises:
        ConfigError: the place is taken or cannot be written, or gguf is not installed.
        CheckpointError: GGUF cannot express the model or its tokenizer.
    """
    package()
    name = Path(source).resolve().name
    to = (to or Path(f"{name}-{kind}{SUFFIX}")).absolute()
    _refuse_occupied(to, overwrite=overwrite)
    checkpoint = resolve_checkpoint(source)
    model = load_model(checkpoint)
    form = architecture(model.config)
    tokenizer = checkpoint / "tokenizer.json"
    has_tokenizer = tokenizer.exists()
    vocabulary = None
    if has_tokenizer:
        vocabulary = vocabulary_of(tokenizer.read_bytes(), model.config.vocab_size)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=to.parent) as scratch:
            made = Path(scratch) / to.name
            stored = write_gguf(made, model, kind, vocabulary, name)
            error = check_gguf(made, model, stored)
            os.replace(made, to)
    except OSError as failure:
        raise ConfigError(
            "the export cannot be written", where=str(to), why=failure.strerror or str(failure)
        ) from failure
    counts = Counter(stored.values()).most_common()
    types = ", ".join(f"{count} tensors {type_name.lower()}" for type_name, count in counts)
    print(f"Wrote {to} ({to.stat().st_size / 1e6:.1f} MB, {form}: {types}).")
    if not has_tokenizer:
        print("It has no tokenizer, because the checkpoint has none.")
    print(f"Checked: read back, every value is within its type's error ({error:.2%} in all).")


def _refuse_occupied(to: Path, *, overwrite: bool) -> None:
    if to.is_dir():
        raise ConfigError(
            "a GGUF export is a file, and this is a directory",
            where=str(to),
            hint=f"--to {to / 'model'}{SUFFIX}",
        )
    if to.is_symlink() or (to.exists() and not overwrite):
        raise ConfigError("the file is there already", where=str(to), hint="--overwrite")

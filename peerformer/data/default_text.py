"""The documentation that this machine carries: real English technical prose wherever this can run.

Python, NumPy and PyTorch bring some megabytes of docstrings and reference pages. They are read
from source without importing anything, cleaned, kept once each, and cached: nothing is downloaded,
and the text is the same at every call on the same installation.
"""

import ast
import importlib.util
import json
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from importlib import metadata
from itertools import chain
from pathlib import Path

from blake3 import blake3
from platformdirs import user_cache_path

from peerformer.data.cleaning import clean, cut
from peerformer.data.documents import Document
from peerformer.errors import DataError

DOCSTRING_CHARACTERS_MIN = 120  # shorter ones are mostly signatures
CACHE_VARIABLE = "PEERFORMER_CACHE"
_SEPARATOR = "\x00"


def default_documents(*, max_bytes: int) -> Iterator[Document]:
    """Yield the documentation that Python, NumPy and PyTorch carry here, without duplicates.

    The order is the same at every call: Python's language reference first, then docstrings, module
    by module. The first reading takes some seconds for each few megabytes and is cached, as far
    as it went.

    Raises:
        DataError: if this machine carries none.
    """
    cache = default_text_cache()
    known = _cached(cache, max_bytes)
    kept: list[Document] = []
    taken, complete = 0, True
    for document in _extract() if known is None else known:
        taken += len(document.text.encode())
        kept.append(document)
        yield document
        if taken >= max_bytes:
            complete = False
            break
    if known is None:
        _keep(cache, kept, taken, complete=complete)
    if not kept:
        raise DataError(
            "no documentation of Python, NumPy or PyTorch was found here",
            why="their sources are not installed as files",
            hint="give a text file, or a folder with text files: --data PATH",
        )


def default_text_cache() -> Path:
    """Return the file that keeps the extracted documentation of these very versions."""
    versions = [sys.version, str(_version_of("numpy")), str(_version_of("torch"))]
    name = blake3("|".join(versions).encode()).hexdigest()[:16]
    chosen = os.environ.get(CACHE_VARIABLE)
    root = Path(chosen) if chosen else user_cache_path("peerformer")
    return root / f"documentation-{name}.txt"


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cached(cache: Path, max_bytes: int) -> Iterator[Document] | None:
    """Return what was kept, unless it is damaged or does not reach so far."""
    try:
        first, _, body = cache.read_bytes().partition(b"\n")
        header = json.loads(first)
        reaches = header["complete"] or header["bytes"] >= max_bytes
        if not reaches or header["digest"] != blake3(body).hexdigest():
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    pieces = body.decode().split(_SEPARATOR)
    return (Document(pieces[i], pieces[i + 1]) for i in range(0, len(pieces) - 1, 2))


def _keep(cache: Path, documents: list[Document], size: int, *, complete: bool) -> None:
    body = "".join(f"{d.source}{_SEPARATOR}{d.text}{_SEPARATOR}" for d in documents).encode()
    header = {"complete": complete, "bytes": size, "digest": blake3(body).hexdigest()}
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(json.dumps(header).encode() + b"\n" + body)
        temporary.replace(cache)
    except OSError:
        return  # a cache that cannot be written only costs time


def _extract() -> Iterator[Document]:
    seen: set[bytes] = set()
    for source, text in chain(_language_reference(), _installed()):
        for piece in cut(clean(text)):
            digest = blake3(piece.encode()).digest()
            if digest not in seen:
                seen.add(digest)
                yield Document(source, piece)


def _language_reference() -> Iterator[tuple[str, str]]:
    try:
        from pydoc_data import topics
    except ImportError:  # some distributions leave it out
        return
    for name in sorted(topics.topics):
        yield f"python: {name}", topics.topics[name]


def _installed() -> Iterator[tuple[str, str]]:
    yield from _docstrings("python", Path(sysconfig.get_paths()["stdlib"]), skip_packages=True)
    for package in ("numpy", "torch"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            yield from _docstrings(package, Path(spec.origin).parent, skip_packages=False)


def _docstrings(label: str, root: Path, *, skip_packages: bool) -> Iterator[tuple[str, str]]:
    """Yield the docstrings of each module under a folder, read from its source without import."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(
            name
            for name in folders
            if name not in ("site-packages", "test", "tests", "__pycache__", "lib2to3", "idlelib")
            or not skip_packages
            and name not in ("test", "tests", "__pycache__")
        )
        for name in sorted(names):
            if name.endswith(".py"):
                path = Path(folder) / name
                found = _module_docstrings(path)
                if found:
                    yield f"{label}: {path.relative_to(root)}", found


def _module_docstrings(path: Path) -> str:
    try:
        source = path.read_text(encoding="utf-8")
        if '"""' not in source:
            return ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    longer = [text for text in texts if text and len(text) >= DOCSTRING_CHARACTERS_MIN]
    return "\n\n\n".join(longer)

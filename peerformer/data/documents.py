"""Text files, folders, and the documentation that this machine carries, as cleaned documents.

A document is a piece of text that is held out or trained on as a whole, so a big file is cut at
blank lines. What cannot be read is skipped and noted, never guessed at; if nothing is left, that
is an error. The default text is the documentation of Python, NumPy and PyTorch found here: real
English technical prose on every machine that can run this, and nothing is downloaded.
"""

import ast
import codecs
import importlib.util
import json
import os
import re
import sys
import sysconfig
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path

from blake3 import blake3
from platformdirs import user_cache_path

from peerformer.errors import DataError

DOCUMENT_CHARACTERS_MAX = 65_536  # a longer file is cut, so that a share of it can be held out
DOCSTRING_CHARACTERS_MIN = 120  # shorter ones are mostly signatures
CACHE_VARIABLE = "PEERFORMER_CACHE"
_SEPARATOR = "\x00"

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_TRAILING = re.compile(r"[ \t]+\n")
_BLANK_LINES = re.compile(r"\n{4,}")


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of cleaned text and where it came from."""

    source: str
    text: str


Skipped = list[tuple[str, str]]  # (path, reason), appended to by the readers


def clean(text: str) -> str:
    """Return text with one kind of line end, no control characters, no trailing space.

    Composes characters (NFC) and keeps at most two blank lines in a row; all else stays.
    """
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _TRAILING.sub("\n", unicodedata.normalize("NFC", text) + "\n")
    return _BLANK_LINES.sub("\n\n\n", text).strip("\n") + "\n" if text.strip() else ""


def cut(text: str, characters_max: int = DOCUMENT_CHARACTERS_MAX) -> Iterator[str]:
    """Yield pieces of at most so many characters, cut at blank lines where there are any."""
    start = 0  # pieces are taken by position: what remains is never copied
    while len(text) - start > characters_max:
        most = start + characters_max
        end = text.rfind("\n\n", start + characters_max // 2, most)
        end = text.rfind("\n", start + 1, most) if end < 0 else end + 1
        end = most if end < 0 else end + 1
        yield text[start:end]
        start = end
    if text[start:].strip():
        yield text[start:]


def read_documents(
    path: Path, *, max_bytes: int, skipped: Skipped | None = None
) -> Iterator[Document]:
    """Yield the documents of a text file, or of a folder's files in order of their names.

    Args:
        path: a file or a folder; hidden files are passed over.
        max_bytes: stop after so many bytes of text.
        skipped: what could not be used is appended here, with the reason.

    Raises:
        DataError: if the path does not exist, cannot be read, or holds no text at all.
    """
    skipped = [] if skipped is None else skipped
    taken = 0
    for file in text_files(path, skipped):
        # Read no further than needed, and one document more so that the limit is reached.
        text, fault = _read_text(file, max_bytes - taken + DOCUMENT_CHARACTERS_MAX)
        if fault is not None:
            skipped.append((str(file), fault))
            continue
        for piece in cut(clean(text)):
            taken += len(piece.encode())
            yield Document(str(file), piece)
            if taken >= max_bytes:
                return
    if not taken:
        reasons = "; ".join(f"{Path(name).name}: {reason}" for name, reason in skipped[:3])
        raise DataError(
            f"no text was found in {path}",
            where=str(path),
            why=reasons or "it is empty",
            hint="give a text file, or a folder with text files: --data PATH",
        )


def text_files(path: Path, skipped: Skipped | None = None) -> list[Path]:
    """Return the files that `read_documents` would try, in its order.

    Raises:
        DataError: if there is no such file or folder, or it cannot be looked into.
    """
    try:
        if path.is_file():
            return [path]
        os.listdir(path)
    except FileNotFoundError as error:
        raise DataError(
            f"there is no {path}",
            where=str(path.absolute()),
            why=error.strerror,
            hint="check the path of --data",
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read",
            where=str(path),
            why=getattr(error, "strerror", None) or str(error),
            hint="give a text file or a folder that you may read: --data PATH",
        ) from error
    noted = [] if skipped is None else skipped

    def note(error: OSError) -> None:
        noted.append((str(error.filename), f"cannot be read: {error.strerror}"))

    found = []
    for folder, folders, names in os.walk(path, onerror=note):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder) / name for name in sorted(names) if not name.startswith(".")]
    return found


def _read_text(file: Path, bytes_max: int) -> tuple[str, str | None]:
    try:
        if not file.is_file():
            return "", "not a regular file"
        with file.open("rb") as opened:
            data = opened.read(bytes_max)
            whole = not opened.read(1)
    except OSError as error:
        return "", f"cannot be read: {error.strerror}"
    if b"\x00" in data:
        return "", "binary"
    try:
        # Where the reading stopped may be the middle of a character: only a whole file must end.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=whole)
    except UnicodeDecodeError:
        return "", "not UTF-8 text"
    return (text, None) if text.strip() else ("", "empty")


# --- the documentation found on this machine -----------------------------------------------------


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

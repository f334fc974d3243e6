"""C beside a Python module, compiled at first use for this very processor, and never needed.

The system's C compiler makes a library of a source file once, in the user's cache; where there is
none, or anything is odd, the caller does the same in NumPy or Python. `PEERFORMER_NATIVE=0` turns
it off.

Knows compilers and folders, and nothing of what is computed.
"""

import ctypes
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

from blake3 import blake3
from platformdirs import user_cache_path

SWITCH = "PEERFORMER_NATIVE"
CACHE_VARIABLE = "PEERFORMER_CACHE"
COMPILE_SECONDS_MAX = 120.0  # it takes two; a compiler that hangs is none
# No contraction of a product and a sum: a float is rounded as often as in NumPy.
FLAGS = ("-O3", "-march=native", "-std=c11", "-ffp-contract=off", "-fwrapv", "-fPIC", "-shared")


@cache
def library_of(source: Path) -> ctypes.CDLL | None:
    """Return the functions of a C file, compiling it if need be; None where that cannot be."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        path = _compiled(source)
        return ctypes.CDLL(str(path)) if path is not None else None
    except (OSError, subprocess.SubprocessError):
        return None


def _compiled(source: Path) -> Path | None:
    """Return the library's file in a folder that nobody else may write to."""
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        return None
    chosen = os.environ.get(CACHE_VARIABLE)
    folder = (Path(chosen) if chosen else user_cache_path("peerformer")) / "native"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        return None
    kind = f"{platform.machine()} {_processor()} {FLAGS} {compiler}".encode()
    name = blake3(source.read_bytes() + kind).hexdigest()[:16]
    path = folder / f"{name}.so"
    if not path.exists():
        temporary = folder / f".{name}.{os.getpid()}"
        command = [compiler, *FLAGS, "-o", str(temporary), str(source), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS_MAX)
        temporary.replace(path)
    return path


def _processor() -> str:
    """Return what the compiler's choice of instructions depends on, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")

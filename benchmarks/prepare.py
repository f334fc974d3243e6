"""How fast text becomes shards, and in how much memory: `python benchmarks/prepare.py --quick`.

The text is made here and streamed to disk: words of a made-up language whose frequencies fall as
Zipf's law has it, in sentences, and a number that comes once in each paragraph. `--data PATH`
measures a text of your own instead. The preparation runs in
a process of its own by the command line; its resident memory and that of its workers are sampled.
Where the machine has other work to do, look at the megabytes a second of one core's time.

    python benchmarks/prepare.py --bytes 2e9
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

SYLLABLES = "ba de fi go hu ka le mi no pu ra se ti vo wu ja ne lo sha tri ster ing on er".split()
WORDS = 60_000
SENTENCES = 100_000  # made once; paragraphs put them together, each with a number of its own
SENTENCE_WORDS = (5, 26)
PARAGRAPH_SENTENCES = 6
FILE_BYTES = 64_000_000
SAMPLE_SECONDS = 0.1
SEED = 7


def make_text(folder: Path, size: int) -> None:
    """Write files of made text, `size` bytes together."""
    random = np.random.default_rng(SEED)
    sentences = sentences_of(random)
    folder.mkdir(parents=True)
    written = number = 0
    while written < size:
        with (folder / f"{number:05d}.txt").open("w") as file:
            while file.tell() < min(FILE_BYTES, size - written):
                chosen = random.integers(0, SENTENCES, (2_000, PARAGRAPH_SENTENCES)).tolist()
                numbers = random.integers(0, 10_000_000, len(chosen)).tolist()
                for rows, sign in zip(chosen, numbers, strict=True):
                    paragraph = " ".join([sentences[row] for row in rows])
                    file.write(f"{paragraph} Sign {sign}.\n\n")
            written += file.tell()
        number += 1


def sentences_of(random: np.random.Generator) -> list[str]:
    """Return sentences of words whose frequencies fall as Zipf's law has it."""
    counts = random.integers(1, 5, WORDS)
    vocabulary = ["".join(random.choice(SYLLABLES, count)) for count in counts]
    shares = 1.0 / np.arange(2, WORDS + 2)
    lengths = random.integers(*SENTENCE_WORDS, SENTENCES)
    words = random.choice(WORDS, lengths.sum(), p=shares / shares.sum()).tolist()
    found, start = [], 0
    for length in lengths.tolist():
        chosen = words[start : start + length]
        found.append(" ".join(vocabulary[word] for word in chosen).capitalize() + ".")
        start += length
    return found


def resident_bytes(process: psutil.Process) -> int:
    """Return the memory of a process and its children that is no shared file."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def measure(text: Path, target: Path, settings: list[str]) -> dict[str, float]:
    """Prepare a text; returns seconds, megabytes a second and the most memory."""
    command = [
        sys.executable,
        "-m",
        "peerformer",
        "data",
        "prepare",
        str(text),
        "--to",
        str(target),
    ]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--json", *settings], stdout=subprocess.PIPE, text=True)
    watched, most, alone = psutil.Process(process.pid), 0, 0
    while process.poll() is None:
        try:
            most = max(most, resident_bytes(watched))
            alone = max(alone, watched.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(SAMPLE_SECONDS)
    assert process.stdout is not None
    said = process.stdout.read()
    if process.wait():
        raise SystemExit(process.returncode)
    seconds, made = time.perf_counter() - began, json.loads(said)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # the workers' as well
    cpu_seconds = used.ru_utime + used.ru_stime
    size = made["train_bytes"] + made["held_out_bytes"]
    return {
        "text_mb": size / 1e6,
        "tokens": made["train_tokens"] + made["held_out_tokens"],
        "seconds": seconds,
        "mb_per_second": size / 1e6 / seconds,
        "cpu_seconds": cpu_seconds,
        "mb_per_cpu_second": size / 1e6 / cpu_seconds,
        "resident_mb_max": most / 1e6,
        "resident_mb_max_of_the_main_process": alone / 1e6,
    }


def main() -> None:
    """Make text, prepare it, report, and delete both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=float, default=200e6, help="of made text")
    parser.add_argument("--quick", action="store_true", help="20 MB")
    parser.add_argument("--data", type=Path, help="a text of your own instead")
    parser.add_argument("--folder", type=Path, help="where there is room; none: a temporary one")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("settings", nargs="*", help="settings, such as --data.vocab_size=8192")
    options, settings = parser.parse_known_args()
    folder = Path(tempfile.mkdtemp(prefix="peerformer-prepare-", dir=options.folder))
    try:
        text = options.data or folder / "text"
        if options.data is None:
            make_text(text, int(20e6 if options.quick else options.bytes))
        found = measure(text, folder / "prepared", [*options.settings, *settings])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps(found | {"cores": os.cpu_count()}))
        return
    for name, value in found.items():
        print(f"{name:<36} {value:>12,.1f}")


if __name__ == "__main__":
    main()

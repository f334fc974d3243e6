"""A preparation that is killed goes on where it was, and ends with the same bytes."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from peerformer.config import DataConfig
from peerformer.data import spool
from peerformer.data.looking import look
from peerformer.data.prepare import WORK, prepare
from peerformer.data.synthetic import synthetic_documents
from peerformer.data.tally import Tally

# Kills itself, as a pulled plug would, when it has told so many times of progress in a step.
DRIVER = """
import os, signal, sys
from pathlib import Path
from peerformer.config import DataConfig
from peerformer.data import spool, workers
from peerformer.data.prepare import prepare

text, target, last, left = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
spool.PART_BYTES = 5_000

def tell(step, done, total):
    global left
    left -= step == last
    if step == last and left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

# Or, where it is named after a file of the spool, before it has written so many of them.
write_file = spool.write_file

def write(path, data):
    global left
    left -= path.name.endswith(last)
    if path.name.endswith(last) and left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    write_file(path, data)

if last in ("documents", "facts.npy", "spool.json"):
    spool.write_file = write

prepare(
    DataConfig(path=text, vocab_size=300, deduplicate="near", workers=2),
    Path(target),
    on_progress=tell,
)
"""


def corpus(folder: Path) -> Path:
    """Stories in text files, one of them damaged, and a table with a broken row in the middle."""
    (folder / "more").mkdir(parents=True)
    stories = [document.text for document in synthetic_documents(4, 120)]
    for index in range(0, 60, 20):
        (folder / f"{index}.txt").write_text("\n\n".join(stories[index : index + 20]))
    (folder / "more" / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    rows = [f'{number},"{text}"\n' for number, text in enumerate(stories[60:])]
    rows[30:30] = ["broken\n", rows[5]]
    (folder / "more" / "table.csv").write_text("number,text\n" + "".join(rows))
    return folder


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run_driver(text: Path, target: Path, step: str = "", count: int = 0) -> int:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(text), str(target), step, str(count)],
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system knows no such signal")
def test_a_kill_before_any_file_of_a_part_is_written_loses_nothing(tmp_path: Path) -> None:
    text = corpus(tmp_path / "text")
    assert run_driver(text, tmp_path / "whole") == 0
    for name in ("documents", "facts.npy", "spool.json"):
        assert run_driver(text, tmp_path / name, name, 3) == -signal.SIGKILL
        assert run_driver(text, tmp_path / name) == 0
        assert content_of(tmp_path / name) == content_of(tmp_path / "whole"), name


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system knows no such signal")
def test_kills_in_every_step_leave_the_bytes_of_an_unbroken_run(tmp_path: Path) -> None:
    text = corpus(tmp_path / "text")
    assert run_driver(text, tmp_path / "whole") == 0
    expected = content_of(tmp_path / "whole")
    assert {"train/index.json", "tokenizer.json", "prepared.json"} <= set(expected)
    steps = ("reading", 2), ("comparing", 3), ("training the tokenizer", 1), ("encoding", 4)
    for step, count in (*steps, ("writing", 1)):
        assert run_driver(text, tmp_path / "broken", step, count) == -signal.SIGKILL, step
    assert run_driver(text, tmp_path / "broken") == 0
    assert content_of(tmp_path / "broken") == expected


def test_a_reading_goes_on_at_the_document_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "PART_BYTES", 4_000)
    text = corpus(tmp_path / "text")
    config = DataConfig(path=str(text), characters_min=400)
    quiet: Callable[[str, int, int], None] = lambda step, done, total: None  # noqa: E731
    whole = look(config, tmp_path / "whole", samples=0, on_progress=quiet)

    class PulledPlug(BaseException):
        pass

    def pull_at(count: int) -> Callable[[str, int, int], None]:
        def tell(step: str, done: int, total: int) -> None:
            nonlocal count
            count -= 1
            if count < 0:
                raise PulledPlug

        return tell

    for count in (0, 1, 0):
        with pytest.raises(PulledPlug):
            look(config, tmp_path / "broken", samples=0, on_progress=pull_at(count))
    again = look(config, tmp_path / "broken", samples=0, on_progress=quiet)
    assert again == whole and again.tally.left_out
    assert content_of(tmp_path / "broken") == content_of(tmp_path / "whole")


def test_workers_make_the_shards_that_one_process_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "PART_BYTES", 5_000)
    text = corpus(tmp_path / "text")
    made = [
        prepare(DataConfig(path=str(text), vocab_size=300, workers=count), tmp_path / str(count))
        for count in (1, 3)
    ]
    assert made[0].train.digest == made[1].train.digest
    assert made[0].validation.digest == made[1].validation.digest
    assert content_of(tmp_path / "1") == content_of(tmp_path / "3")
    assert not (tmp_path / "1" / WORK).exists()


def test_parts_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(path=str(corpus(tmp_path / "text")), vocab_size=300)
    one = prepare(config, tmp_path / "one")
    monkeypatch.setattr(spool, "PART_BYTES", 5_000)
    many = prepare(config, tmp_path / "many")
    assert (one.train.digest, one.validation.digest) == (many.train.digest, many.validation.digest)


def test_work_on_another_text_is_not_gone_on_with(tmp_path: Path) -> None:
    text = corpus(tmp_path / "text")
    config = DataConfig(path=str(text), vocab_size=300)
    expected = prepare(config, tmp_path / "clean").train.digest
    work = tmp_path / "run" / WORK
    (work / "text").mkdir(parents=True)
    (work / "fingerprint").write_text("of something else")
    (work / "text" / "000000.tokens.npz").write_bytes(b"stale")
    (work / "tokenizer.json").write_text("stale")
    assert prepare(config, tmp_path / "run").train.digest == expected


def test_counts_survive_being_written_down() -> None:
    tally = Tally()
    for number in range(9):
        tally.leave_out(f"a:{number}", "no JSON", size_bytes=2)
    tally.files["text"] += 1
    again = Tally.from_json(tally.to_json())
    assert again == tally and again.left_out["no JSON"].count == 9
    assert len(again.left_out["no JSON"].examples) == 5
    for number in range(2_000):
        tally.leave_out("x", f"reason {number}")
    assert len(tally.left_out) <= 1_001

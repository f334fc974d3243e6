"""`plot`: what is drawn, and what cannot be."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from peerformer.interface.cli import main

HEADER = "step,loss,learning_rate,validation_bits_per_byte,memory_bytes\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with two runs, one of them of a day."""
    monkeypatch.chdir(tmp_path)
    for name, start in (("2026-11-29-calm-otter", 6.0), ("mine", 5.0)):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        rows = [
            f"{step},{start - step / 40},{1 / step},{2.0 if step % 10 == 0 else ''},\n"
            for step in range(1, 61)
        ]
        (run / "metrics.csv").write_text(HEADER + "".join(rows) + "61,4.2")  # torn
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *words: str, code: int = 1) -> str:
    assert main(["plot", *words]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("error:") and "Traceback" not in captured.err
    return captured.err


def points_of(svg: Path) -> list[int]:
    """How many points each curve of a picture has that was drawn in a colour of its own."""
    paths = ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}path")
    curves = [p for p in paths if "stroke-width: 1.5" in (p.get("style") or "")]
    return [p.get("d", "").count("L") + 1 for p in curves if p.get("d", "").count("L") > 3]


def test_two_runs_and_two_metrics_become_a_picture(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["otter", "mine", "--metric", "loss", "--metric", "validation_bits_per_byte"]
    assert main(["plot", *words, "--to", "both.svg"]) == 0
    assert capsys.readouterr().out == "both.svg\n"
    text = (here / "both.svg").read_text()
    assert "<!-- 2026-11-29-calm-otter -->" in text and "<!-- mine -->" in text
    assert "<!-- held-out bits per byte -->" in text
    assert points_of(here / "both.svg") == [60, 60, 6, 6], "all whole rows, and the validations"
    assert main(["plot", "mine", "--smooth", "10", "--to", "one.png"]) == 0
    assert (here / "one.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_said_with_what_could_be(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "runs there: 2026-11-29-calm-otter, mine" in refused(capsys, "yours")
    found = refused(capsys, "mine", "--metric", "lost")
    assert "there is no such column" in found and "step, loss, learning_rate" in found
    assert "it was never measured" in refused(capsys, "mine", "--metric", "memory_bytes")
    assert "--to loss.png, or loss.svg" in refused(capsys, "mine", "--to", "loss.jpg", code=2)
    assert "no axis" in refused(capsys, "mine", "--against", "time", code=2)
    assert "no number of steps" in refused(capsys, "mine", "--smooth", "0", code=2)
    assert "cannot be written" in refused(capsys, "mine", "--to", "nowhere/loss.png")
    (here / "runs" / "mine" / "metrics.csv").write_text("")
    assert "there are no steps" in refused(capsys, "mine")
    assert not list(here.glob("*.png"))


def test_without_matplotlib_it_says_what_to_install(here: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from peerformer.interface.cli import main\n"
        "sys.exit(main(['plot', 'mine']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'peerformer[plot]'" in done.stderr

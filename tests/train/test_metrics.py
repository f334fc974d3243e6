"""metrics.csv: a row a step, whatever the file looked like before."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest

from peerformer.errors import DataError
from peerformer.model.transformer import flops_per_token
from peerformer.train.loop import train
from peerformer.train.metrics import COLUMNS, metrics_file, read_metrics
from tests.train.test_loop import small


def test_rows_of_steps_that_are_made_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    with metrics_file(path, 0, ("step", "loss")) as write:
        for step in (1, 2, 3):
            write({"step": step, "loss": step / 2})
    path.write_text(path.read_text() + "4,1.")  # killed while writing
    with metrics_file(path, 2, ("step", "loss")) as write:
        write({"step": 3, "loss": 9.0})
    assert path.read_text() == "step,loss\n1,0.5\n2,1.0\n3,9.0\n"


def test_a_file_with_other_columns_is_kept_and_gains_the_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,old,loss\n1,7,0.5\n2,8,0.4\n3,9,0.3\n")
    with metrics_file(path, 2, ("step", "loss", "new")) as write:
        write({"step": 3, "loss": 0.2, "new": math.nan})
        write({"step": 4, "loss": 0.1, "new": 1.5})
    assert path.read_text().splitlines() == [
        "step,loss,new,old", "1,0.5,,7", "2,0.4,,8", "3,0.2,,", "4,0.1,1.5,",
    ]  # fmt: skip
    table = read_metrics(path)
    assert table["loss"] == [0.5, 0.4, 0.2, 0.1] and math.isnan(table["new"][0])


@pytest.mark.parametrize("text", ["", "step,loss\n", "a,b\n1,2\n", "\0\0\n\n", "step\nx\n"])
def test_what_is_no_table_of_steps_is_begun_anew_and_refused_by_readers(
    text: str, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    if text != "step\nx\n":
        with pytest.raises(DataError):
            read_metrics(path)
    with metrics_file(path, 5, ("step", "loss")) as write:
        write({"step": 6, "loss": 1.0})
    assert read_metrics(path)["step"] == [6.0]


def test_what_a_run_measures_is_what_it_says(tmp_path: Path) -> None:
    config = small(**{"training.peak_gflops": 2.0, "optimizer.sharpness": "sam"})
    seen: list = []
    train(config, run="one", root=tmp_path, on_event=seen.append)
    with (tmp_path / "one" / "metrics.csv").open() as file:
        assert next(csv.reader(file)) == list(COLUMNS)
    table = read_metrics(tmp_path / "one" / "metrics.csv")
    assert table["step"] == [float(step) for step in range(1, 13)]
    assert table["tokens"] == [128.0 * step for step in range(1, 13)]
    assert [not math.isnan(v) for v in table["validation_loss"]] == ([False] * 5 + [True]) * 2
    validated = [event for event in seen if type(event).__name__ == "Validated"]
    assert table["validation_bits_per_byte"][11] == validated[1].bits_per_byte
    ratio = [b / n for b, n in zip(table["bits_per_byte"], table["loss"], strict=True)]
    held_out = validated[1].bits_per_byte / validated[1].loss
    assert all(0.7 * held_out < r < 1.4 * held_out for r in ratio), "the same tokenizer"
    assert all(5e7 < memory < 1e11 for memory in table["memory_bytes"])
    assert table["seconds_left"][11] == 0.0 < table["seconds_left"][0]
    model = small().model
    flops = 2 * flops_per_token(replace(model, vocab_size=300), 32)  # SAM passes twice
    for rate, share in zip(table["tokens_per_second"], table["flop_utilisation"], strict=True):
        assert math.isclose(share, flops * rate / 2e9, rel_tol=0.02)

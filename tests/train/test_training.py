"""What a run does between its steps: it stops early, samples, and names what is not finite."""

import json
import math
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peerformer.config import Config
from peerformer.data.tokenizer import load_tokenizer
from peerformer.errors import CheckpointError, ConfigError, DivergedError
from peerformer.journal import read_journal
from peerformer.model.convert import load_model
from peerformer.train.diagnosis import first_not_finite
from peerformer.train.hardware import keep_threads, memory_remedy
from peerformer.train.loop import prepare_training, run_training, train
from peerformer.train.run_directory import open_run
from peerformer.train.sample import sample_text
from peerformer.train.training import DIVERGED_STEPS, Training
from tests.train.test_exact_resume import text_in
from tests.train.test_guards import batch, replica
from tests.train.test_loop import losses, small


def prepared(here: Path, **more: object) -> tuple[Training, list]:
    """A run ready to begin, and what it tells."""
    config = small(**{"data.path": text_in(here), **more})
    training = prepare_training(config, open_run("one", config, root=here), lambda _: None)
    told: list = []
    training.tell = told.append
    return training, told


def kinds(told: list) -> list[str]:
    return [type(event).__name__ for event in told]


# --- stopping early -------------------------------------------------------------------------------


def test_it_stops_when_validations_are_no_better_and_offers_the_best(tmp_path: Path) -> None:
    config = small(
        **{
            "data.path": text_in(tmp_path),
            "training.steps": 60,
            "training.validate_every": 2,
            "training.checkpoint_every": 3,
            "training.keep_checkpoints": 1,
            "training.patience": 3,
            "optimizer.learning_rate": 1.0,  # soon too high
            "optimizer.muon_learning_rate": 2.0,
            "training.warmup_steps": 20,
        }
    )
    told: list = []
    result = train(config, run="one", root=tmp_path, on_event=told.append)
    held_out = [(event.step, event.loss) for event in told if type(event).__name__ == "Validated"]
    best_step = min(held_out, key=lambda item: item[1])[0]
    assert result.stalled and not result.stopped and result.steps == best_step + 6 < 60
    assert told[-1].reason == "stalled"
    assert Path(result.checkpoint).name == f"step-{best_step:08d}"
    saved = sorted(path.name for path in (tmp_path / "one" / "checkpoints").iterdir())
    assert saved == [f"step-{best_step:08d}", f"step-{result.steps:08d}"]
    load_model(result.checkpoint)
    again = train(config, run="one", root=tmp_path)
    assert again.stalled and again.steps == result.steps and again.checkpoint == result.checkpoint
    on = replace(config, training=replace(config.training, patience=0, steps=result.steps + 2))
    assert train(on, run="one", root=tmp_path).steps == result.steps + 2


# --- samples --------------------------------------------------------------------------------------


def test_samples_are_in_the_journal_and_are_what_the_saved_model_says(tmp_path: Path) -> None:
    config = small(
        **{
            "data.path": text_in(tmp_path),
            "training.sample_prompt": "Ada",
            "training.sample_every": 5,
            "training.sample_tokens": 12,
            "training.ema_decay": 0.9,
        }
    )
    result = train(config, run="one", root=tmp_path)
    events = [e for e in read_journal(tmp_path / "one" / "journal.jsonl") if hasattr(e, "prompt")]
    assert [(event.step, event.prompt) for event in events] == [
        (5, "Ada"), (10, "Ada"), (12, "Ada"),
    ]  # fmt: skip
    model, where = load_model(result.checkpoint), Path(result.checkpoint)
    tokenizer = load_tokenizer(where / "tokenizer.json")
    assert sample_text(model, tokenizer, config.training) == events[-1].text
    assert not model.training


def test_samples_and_validations_change_nothing_of_what_is_trained(tmp_path: Path) -> None:
    text = text_in(tmp_path)
    train(small(**{"data.path": text}), run="plain", root=tmp_path)
    looking = {"training.sample_prompt": "", "training.sample_every": 1}
    looking |= {"training.validate_every": 1, "data.path": text}
    train(small(**looking), run="watched", root=tmp_path)
    assert losses(tmp_path / "plain") == losses(tmp_path / "watched")


# --- what is not finite ---------------------------------------------------------------------------


def test_the_first_layer_whose_output_is_not_finite_is_named() -> None:
    one = replica()
    weight = one.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight.fill_(1e38)
    found = first_not_finite(one.model, lambda: one.gradients([batch(2)]))
    assert found == "the output of layers.0.mlp.up_proj"
    with torch.no_grad():
        weight[0, 0] = math.nan
    found = first_not_finite(one.model, lambda: one.gradients([batch(2)]))
    assert found == "the parameter layers.0.mlp.up_proj.weight"


def test_a_gradient_that_is_not_finite_is_named_where_the_backward_pass_meets_it_first() -> None:
    one = replica()
    one.model.layers[0].self_attn.o_proj.register_full_backward_hook(
        lambda module, given, taken: (given[0] * math.inf,)
    )
    found = first_not_finite(one.model, lambda: one.gradients([batch(2)]))
    assert found is not None and found.startswith("the gradient of layers.0.self_attn.")
    whole = replica()
    assert first_not_finite(whole.model, lambda: whole.gradients([batch(2)])) is None


def test_training_itself_carries_no_hook(tmp_path: Path) -> None:
    training, _ = prepared(tmp_path)
    training.step()
    model = training.replica.model
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    assert not any(p._backward_hooks for p in model.parameters())


def test_gradients_that_stay_infinite_end_the_run_with_the_good_state_saved(
    tmp_path: Path,
) -> None:
    training, told = prepared(tmp_path, **{"training.steps": 60})
    for _ in range(3):
        training.step()
    good, name = training.replica.digest(), "layers.0.mlp.down_proj.weight"
    parameter = dict(training.replica.model.named_parameters())[name]
    hook = parameter.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(DivergedError) as ended:
        run_training(training, lambda: False)
    assert f"the gradient of {name} is not finite" in str(ended.value)
    skipped = [event for event in told if type(event).__name__ == "StepSkipped"]
    assert len(skipped) == DIVERGED_STEPS and all(name in event.why for event in skipped)
    saved = [event for event in told if type(event).__name__ == "CheckpointSaved"]
    assert saved[-1].digest == good and saved[-1].step == 3 + DIVERGED_STEPS
    hook.remove()
    again, _ = prepared(tmp_path, **{"training.steps": 14})
    again.resume()
    assert again.replica.digest() == good
    assert run_training(again, lambda: False).steps == 14, "it goes on after what it left out"


def test_parameters_that_are_beyond_repair_are_not_saved_over_what_was_good(
    tmp_path: Path,
) -> None:
    training, told = prepared(tmp_path, **{"training.steps": 60})
    training.step()
    training.save()
    good = told[-1].digest
    with torch.no_grad():
        training.replica.model.layers[0].mlp.up_proj.weight.fill_(3e38)
    with pytest.raises(DivergedError, match="diverged") as ended:
        run_training(training, lambda: False)
    assert "the output of layers.0.mlp.up_proj is not finite" in str(ended.value)
    saved = [event for event in told if type(event).__name__ == "CheckpointSaved"]
    assert [event.digest for event in saved] == [good]


# --- the same bits again --------------------------------------------------------------------------


def test_a_deterministic_run_gives_the_same_bits_again(tmp_path: Path) -> None:
    config = small(
        **{
            "data.path": text_in(tmp_path),
            "training.deterministic": True,
            "training.dtype": "bfloat16",
        }
    )
    digests = []
    for name in ("one", "two"):
        told: list = []
        train(config, run=name, root=tmp_path, on_event=told.append)
        digests += [event.digest for event in told if type(event).__name__ == "CheckpointSaved"]
        assert told[0].threads == 1
    assert digests[: len(digests) // 2] == digests[len(digests) // 2 :]
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert not torch.are_deterministic_algorithms_enabled(), "put back"
    longer = replace(config, training=replace(config.training, threads=2, steps=14))
    with pytest.raises(ConfigError, match="computed by 1 threads") as refused:
        train(longer, run="one", root=tmp_path)
    assert refused.value.hint is not None and "--training.threads 1" in refused.value.hint
    keep_threads(1, replace(config.training, threads=0))
    assert torch.get_num_threads() == 1, "as it was computed"


# --- memory and disk ------------------------------------------------------------------------------

TOO_LARGE = """
import resource, sys, json
import torch
torch.set_num_threads(1)
from pathlib import Path
from peerformer.errors import PeerformerError
from peerformer.settings import from_json
from peerformer.train.loop import prepare_training, train
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), used + (1 << 29)))
try:
    train(from_json(json.loads(Path("settings.json").read_text()), where="test"), run="one")
except PeerformerError as error:
    print(type(error).__name__, error)
"""


def out_of_memory(here: Path, config: Config) -> str:
    """What a run says that has half a GB beyond what the program itself takes."""
    from peerformer.settings import to_json

    (here / "settings.json").write_text(json.dumps(to_json(config)))
    done = subprocess.run(
        [sys.executable, "-c", TOO_LARGE],
        cwd=here,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_memory_that_does_not_suffice_is_told_with_what_to_halve(tmp_path: Path) -> None:
    wide = {
        "data.path": text_in(tmp_path),
        "model.hidden_size": 512,
        "model.intermediate_size": 8_192,
        "training.batch_size": 512,
        "training.peak_gflops": 1.0,
    }
    said = out_of_memory(tmp_path, small(**wide))
    assert said.startswith("MemoryExhaustedError") and "Traceback" not in said
    assert "--training.accumulation 2   (halves the 512 sequences of a pass" in said


def test_what_to_halve_is_what_changes_least() -> None:
    settings = small().training
    assert "accumulation 8" in memory_remedy(replace(settings, batch_size=64, accumulation=4))
    assert "--batch-size 3 " in memory_remedy(replace(settings, batch_size=6, accumulation=2))
    alone = replace(settings, batch_size=4, accumulation=4, sequence_length=512)
    assert "--training.sequence_length 256" in memory_remedy(alone)
    assert "--size" in memory_remedy(replace(alone, sequence_length=8))


def test_a_full_disk_ends_the_run_with_one_error_and_the_last_checkpoint_whole(
    tmp_path: Path,
) -> None:
    """Files may not grow beyond a limit: the same failed write as on a disk that is full."""
    given = {"data.path": text_in(tmp_path), "training.checkpoint_every": 1}
    train(
        small(**given, **{"training.steps": 2, "training.warmup_steps": 1}),
        run="one",
        root=tmp_path,
    )
    config = small(**given)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, what in ((60_000, "could not be saved"), (100, "cannot be written")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(CheckpointError, match=what) as ended:
                train(config, run="one", root=tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert ended.value.hint is not None and "make room on the disk" in ended.value.hint
    assert train(config, run="one", root=tmp_path).steps == 12

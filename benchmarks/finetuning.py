"""What fine-tuning and recomputed activations cost and bring: weights, bytes, loss.

A model learns one kind of text and is then tuned on another: all of its weights, or adapters of
some ranks. Then the activations that a pass keeps, by what is computed again.

    python benchmarks/finetuning.py              as in docs/finetuning.md
    python benchmarks/finetuning.py --quick      a minute
"""

import argparse
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open

from peerformer.config import ModelConfig
from peerformer.model.recompute import recompute
from peerformer.model.transformer import Transformer
from peerformer.settings import resolve
from peerformer.train.loop import train
from peerformer.train.start import settings_of_base

RECOMPUTED = ("none", "attention", "feed_forward", "blocks")
DEEP = ModelConfig(
    vocab_size=1_024, hidden_size=256, intermediate_size=768, num_layers=12, num_heads=4,
    num_kv_heads=2, head_dim=64, max_positions=256,
)  # fmt: skip
SMALL = {
    "data.path": "synthetic:1",
    "data.vocab_size": 512,
    "model.hidden_size": 64,
    "model.intermediate_size": 192,
    "model.num_layers": 2,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.max_positions": 64,
    "training.sequence_length": 64,
}
WAYS: dict[str, dict[str, object]] = {
    "all weights": {},
    "adapters of rank 8": {"lora.rank": 8},
    "rank 8, ten times the rate": {"lora.rank": 8, "optimizer.learning_rate": 0.03},
}
SUMS = "zero one two three four five six seven eight nine ten eleven twelve".split()


def write_sums(folder: Path) -> None:
    """Write another kind of text than stories: all sums up to twelve, again and again."""
    pairs = [(a, b) for a in range(13) for b in range(13 - a)]
    lines = [f"{SUMS[a]} and {SUMS[b]} are {SUMS[a + b]}.\n" for a, b in pairs]
    folder.mkdir()
    for number in range(40):
        order = [(index * (2 * number + 3) + number) % len(lines) for index in range(len(lines))]
        (folder / f"{number}.txt").write_text("".join(lines[index] for index in order))


def tune(root: Path, steps: int, only: str | None) -> None:
    """Tune one model in several ways, or in one, and print what each costs and comes to."""
    settings = {"training.threads": 1, "training.dtype": "float32", "training.peak_gflops": 1}
    first = resolve(overrides=SMALL | settings | {"training.steps": steps}).config
    base = train(first, run="base", root=root).checkpoint
    write_sums(root / "sums")
    settings |= {"data.path": str(root / "sums"), "training.base": base}
    settings["training.steps"] = steps // 2
    print(f"{'a model tuned on other text':28} {'trained':>9} {'saved':>9}  bits per byte")
    for name, way in WAYS.items():
        if only not in (None, name):
            continue
        config = resolve(overrides=settings | way, derive=settings_of_base).config
        result = train(config, run=name.replace(" ", "-"), root=root)
        weights = next(Path(result.checkpoint).glob("*model.safetensors"))
        with safe_open(weights, framework="pt") as file:
            count = sum(file.get_tensor(key).numel() for key in file.keys())
        size, rate = weights.stat().st_size / 1e6, result.validation_bits_per_byte
        print(f"{name:28} {count / 1e3:7.1f} k {size:6.2f} MB  {rate:13.3f}", flush=True)


def kept_bytes(model: Transformer, tokens_BT: torch.Tensor) -> int:
    """Bytes of activations that a pass keeps for the backward pass."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.loss(tokens_BT, tokens_BT)
        size = sum(kept.values())
    loss.backward()
    return size


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--way", help="tune in this way alone, named as in the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        tune(Path(scratch), 20 if given.quick else given.steps, given.way)
    model = Transformer(DEEP).train()
    tokens_BT = torch.arange(4 * 256).view(4, 256) % DEEP.vocab_size
    print(f"\n{'12 layers, computed again':28} {'kept':>9}")
    for what in RECOMPUTED:
        recompute(model, what)
        print(f"{what:28} {kept_bytes(model, tokens_BT) / 1e6:6.1f} MB", flush=True)


if __name__ == "__main__":
    main()

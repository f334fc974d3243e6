"""Do SAM and ASAM end in a flatter minimum than AdamW alone, and what does it cost?

A small transformer learns a small text in many epochs, so that there is a minimum to end in, with
the loop's own replica, schedule and batches: AdamW; AdamW for twice the steps, which takes as long
as SAM; SAM and ASAM around AdamW. Same weights, data and rate; some seeds. Then, on sequences that
were trained on, in float32 and without dropout:

*climb*: how much the loss rises at the worst point found within `--radius` of the parameters, by 8
steps of gradient ascent, each projected back onto the ball (what SAM's step tries in one);
*random*: how much it rises on average in 4 random directions of that length, which SAM does not
look at;
*curvature*: the largest eigenvalue of the Hessian, by power iteration on Hessian-vector products.

A flatter minimum has smaller numbers. Held-out loss says whether it is a better one.

    python benchmarks/sharpness.py [--seeds 3] [--steps 250] [--quick] [--json]
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import replace
from statistics import mean

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from peerformer.config import Config
from peerformer.data.batches import Batches
from peerformer.data.shards import ShardSet
from peerformer.data.synthetic import synthetic_documents
from peerformer.data.tokenizer import train_tokenizer
from peerformer.model.transformer import Transformer, initialise
from peerformer.settings import resolve
from peerformer.train.evaluate import evaluate
from peerformer.train.optimizer import build_optimizer
from peerformer.train.replica import Replica
from peerformer.train.schedule import learning_rate_scale

DOCUMENTS, HELD_OUT_DOCUMENTS, VOCABULARY = 80, 80, 512
SEQUENCES, ASCENT_STEPS, DIRECTIONS, POWER_STEPS = 32, 8, 4, 12
CASES = {
    "adamw": {},
    "adamw, twice the steps": {},
    "sam": {"optimizer.sharpness": "sam"},
    "asam": {"optimizer.sharpness": "asam"},
}
MEASURES = ("climb", "random", "curvature", "train_loss", "held_out_loss")


def settings(steps: int, **given: object) -> Config:
    """A small model, and AdamW for so many steps."""
    shape = {
        "model.hidden_size": 64,
        "model.intermediate_size": 192,
        "model.num_layers": 2,
        "model.num_heads": 2,
        "model.num_kv_heads": 2,
        "model.head_dim": 32,
        "model.max_positions": 64,
        "model.vocab_size": VOCABULARY,
        "data.vocab_size": VOCABULARY,
        "training.sequence_length": 64,
        "training.batch_size": 16,
        "training.steps": steps,
        "training.warmup_steps": min(20, steps),
        "optimizer.name": "adamw",
    }
    return resolve(size="nano", overrides={**shape, **given}).config


def texts() -> tuple[Batches, Batches, np.ndarray]:
    """Text to learn and text held out, and the bytes of each token."""
    stories = [d.text for d in synthetic_documents(1, DOCUMENTS + HELD_OUT_DOCUMENTS)]
    tokenizer = train_tokenizer(stories[:DOCUMENTS], VOCABULARY)
    parts = []
    for part in (stories[:DOCUMENTS], stories[DOCUMENTS:]):
        tokens = np.array([token for text in part for token in tokenizer.encode(text)], np.uint16)
        parts.append(Batches(ShardSet((tokens,), tokenizer.vocab_size, 1, ""), 64))
    return parts[0], parts[1], tokenizer.byte_lengths_V()


def trained(config: Config, seed: int, text: Batches) -> Replica:
    """A replica at the end of its schedule."""
    model = Transformer(replace(config.model, vocab_size=text.shards.vocab_size))
    initialise(model, seed)
    replica = Replica(model, build_optimizer(model, config.optimizer), clip_norm=1.0)
    for step in range(config.training.steps):
        replica.gradients([text.batch(seed, step, batch_size=config.training.batch_size)])
        replica.apply(learning_rate_scale(step, config.training))
    return replica


class Surroundings:
    """The loss on some fixed sequences as a function of a displacement of all parameters."""

    def __init__(self, model: nn.Module, text: Batches, sequences: int) -> None:
        self.batch = text.batch(0, 0, batch_size=sequences)
        self.model = model.eval()
        self.parameters = [parameter for parameter in model.parameters()]
        self.start_P = self.flat([p.detach().clone() for p in self.parameters])
        self.here = self.loss().item()

    def flat(self, tensors: list[Tensor]) -> Tensor:
        """Return tensors as one vector."""
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    def loss(self) -> Tensor:
        """Return the loss where the parameters are."""
        return self.model.loss(self.batch.tokens_BT, self.batch.targets_BT)

    def at(self, displacement_P: Tensor) -> None:
        """Move the parameters to a displacement from where they were."""
        sizes = [parameter.numel() for parameter in self.parameters]
        pieces = (self.start_P + displacement_P).split(sizes)
        with torch.no_grad():
            for parameter, piece in zip(self.parameters, pieces, strict=True):
                parameter.copy_(piece.view_as(parameter))

    def gradient(self) -> Tensor:
        """Return the gradient where the parameters are."""
        return self.flat(list(torch.autograd.grad(self.loss(), self.parameters))).detach()

    def climb(self, radius: float) -> float:
        """Return the largest rise of the loss found within the radius."""
        displacement_P, highest = torch.zeros_like(self.start_P), self.here
        for _ in range(ASCENT_STEPS):
            self.at(displacement_P)
            gradient_P = self.gradient()
            displacement_P = displacement_P + radius / 2 * gradient_P / gradient_P.norm()
            displacement_P *= min(1.0, radius / displacement_P.norm().item())
            self.at(displacement_P)
            highest = max(highest, self.loss().item())
        self.at(torch.zeros_like(displacement_P))
        return highest - self.here

    def random(self, radius: float) -> float:
        """Return the mean rise in random directions of that length."""
        generator, rises = torch.Generator().manual_seed(0), []
        for _ in range(DIRECTIONS):
            direction_P = torch.randn(self.start_P.shape, generator=generator)
            self.at(direction_P * (radius / direction_P.norm()))
            rises.append(self.loss().item() - self.here)
        self.at(torch.zeros_like(self.start_P))
        return mean(rises)

    def curvature(self) -> float:
        """Return the largest eigenvalue of the Hessian."""
        vector_P = torch.randn(self.start_P.shape, generator=torch.Generator().manual_seed(1))
        found = math.nan
        with sdpa_kernel(SDPBackend.MATH):  # the fast attention has no second derivative
            gradients = torch.autograd.grad(self.loss(), self.parameters, create_graph=True)
            gradient_P = self.flat(list(gradients))
            for _ in range(POWER_STEPS):
                vector_P = vector_P / vector_P.norm()
                product = torch.autograd.grad(
                    gradient_P @ vector_P, self.parameters, retain_graph=True
                )
                product_P = self.flat(list(product)).detach()
                found = float(vector_P @ product_P)
                vector_P = product_P
        return found


def measure(
    seeds: int, steps: int, radius: float, tell: Callable[[str], None]
) -> dict[str, list[dict[str, float]]]:
    """Every case under every seed; the cases take turns."""
    text, held_out, byte_lengths_V = texts()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    for seed in range(seeds):
        for name, given in CASES.items():
            config = settings(2 * steps if "twice" in name else steps, **given)
            replica = trained(config, seed, text)
            around = Surroundings(replica.model, text, SEQUENCES)
            rest = evaluate(
                replica.model, held_out, sequences=64, byte_lengths_V=byte_lengths_V
            ).loss_nats_per_token
            values = (around.climb(radius), around.random(radius), around.curvature())
            row = dict(zip(MEASURES, (*values, around.here, rest), strict=True))
            found[name].append(row)
            tell(f"seed {seed}  {name:<24} " + "  ".join(f"{k} {v:.4g}" for k, v in row.items()))
    return found


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--radius", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one seed, 60 steps: does it run?")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seeds, steps = (1, 60) if arguments.quick else (arguments.seeds, arguments.steps)
    found = measure(seeds, steps, arguments.radius, lambda line: print(line, flush=True))
    means = {
        name: {key: mean(row[key] for row in rows) for key in MEASURES}
        for name, rows in found.items()
    }
    if arguments.json:
        print(json.dumps({"seeds": seeds, "steps": steps, "radius": arguments.radius, **means}))
        return
    print(f"\nmeans of {seeds} seeds; {steps} steps; radius {arguments.radius}")
    for name, row in means.items():
        print(f"{name:<24} " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    for name in ("sam", "asam"):
        pairs = list(zip(found[name], found["adamw"], strict=True))
        for key in MEASURES[:3]:
            flatter = sum(ours[key] < plain[key] for ours, plain in pairs)
            print(f"{name}: smaller {key} than adamw under {flatter} of {seeds} seeds")


if __name__ == "__main__":
    main()

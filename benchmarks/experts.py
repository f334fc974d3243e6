"""How evenly tokens are spread over experts after some steps on real text, by what balances them.

The same mixture of experts is trained on the same text with nothing that balances it, with the
balancing loss, and with the bias. Afterwards its routers are counted on held-out text: the share
of the layers' least and most loaded expert, in fair shares (1 / E), and the loss. Last, a layer is
timed against one that sends all tokens through all experts.

    python benchmarks/experts.py [--steps 300] [--size nano] [--experts 8]
        [--batch-size 8] [--quick]
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from peerformer.config import Config, ModelConfig
from peerformer.data.batches import Batches
from peerformer.data.prepare import Prepared, prepare
from peerformer.model.experts import MixtureOfExperts, auxiliary_losses, routers_of
from peerformer.model.transformer import Transformer, initialise
from peerformer.settings import resolve
from peerformer.train.evaluate import evaluate
from peerformer.train.optimizer import build_optimizer
from peerformer.train.replica import Replica
from peerformer.train.schedule import learning_rate_scale

BALANCES = {
    "nothing": {"router_aux_loss_coef": 0.0},
    "balancing loss": {},
    "bias": {"router_aux_loss_coef": 0.0, "router_bias_update_rate": 0.001},
    "both": {"router_bias_update_rate": 0.001},
}
HELD_OUT_SEQUENCES = 64


def trained(config: Config, prepared: Prepared) -> Transformer:
    """The model after the steps of a configuration."""
    settings = config.training
    model = Transformer(replace(config.model, vocab_size=prepared.tokenizer.vocab_size))
    initialise(model, settings.seed)
    model.train()
    clip = config.optimizer.clip_norm
    replica = Replica(model, build_optimizer(model, config.optimizer), clip_norm=clip)
    batches = Batches(prepared.train, settings.sequence_length)
    for step in range(settings.steps):
        replica.gradients([batches.batch(settings.seed, step, batch_size=settings.batch_size)])
        replica.apply(learning_rate_scale(step, settings))
    return model


@torch.no_grad()
def shares_on(model: Transformer, text: Batches) -> torch.Tensor:
    """Of held-out tokens, the share of each expert of each layer, in fair shares, (L, E)."""
    model.train()  # routers count in training only
    with auxiliary_losses(model):
        for window in text.validation(HELD_OUT_SEQUENCES):
            model(torch.from_numpy(window.tokens)[None, :-1])
    counts_LE = torch.stack([router.tokens_E for router in routers_of(model)]).float()
    return counts_LE / counts_LE.mean(1, keepdim=True)


def spread(arguments: argparse.Namespace, scratch: Path) -> None:
    """Train with each kind of balance, and print the table."""
    overrides = {
        "model.num_experts": arguments.experts,
        "training.steps": arguments.steps,
        "training.batch_size": arguments.batch_size,
        "training.threads": 1,
    }
    config = resolve(size=arguments.size, overrides=overrides).config
    prepared = prepare(config.data, scratch)
    held_out = Batches(prepared.validation, config.training.sequence_length)
    print(f"{config.size}, {arguments.experts} experts, top-{config.model.num_experts_per_tok},")
    print(f"{arguments.steps} steps of {config.training.batch_size} sequences\n")
    print("| balanced by | least | most | under half | bits a byte | seconds |")
    print("|---|---|---|---|---|---|")
    for name, fields in BALANCES.items():
        began = time.perf_counter()
        model = trained(replace(config, model=replace(config.model, **fields)), prepared)
        seconds = time.perf_counter() - began
        found = evaluate(
            model,
            held_out,
            sequences=HELD_OUT_SEQUENCES,
            byte_lengths_V=prepared.tokenizer.byte_lengths_V(),
        )
        shares_LE = shares_on(model, held_out)
        few = int((shares_LE < 0.5).sum())
        print(
            f"| {name} | {shares_LE.min():.2f} | {shares_LE.max():.2f}"
            f" | {few} of {shares_LE.numel()} | {found.bits_per_byte:.3f} | {seconds:.0f} |",
            flush=True,
        )


def speed(tokens: int, rounds: int) -> None:
    """Time forward and backward of one layer, sorted by expert and with all experts, in turns."""
    config = ModelConfig(hidden_size=512, intermediate_size=1_536, num_experts=8)
    layer = MixtureOfExperts(config, 0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.02)
    x_BTD = torch.randn(1, tokens, config.hidden_size)

    def all_experts(x_BTD: torch.Tensor) -> torch.Tensor:
        gate_up, down = layer.experts.gate_up_proj, layer.experts.down_proj
        weights = F.linear(x_BTD, layer.gate.weight).softmax(-1)
        halves = (F.linear(x_BTD, matrix).chunk(2, -1) for matrix in gate_up.unbind(0))
        pairs = zip(halves, down.unbind(0), strict=True)
        made = [F.linear(F.silu(gate) * up, matrix) for (gate, up), matrix in pairs]
        return sum(weights[..., e, None] * y_BTD for e, y_BTD in enumerate(made))

    best = {}
    for _ in range(rounds):
        for name, compute in (("sorted by expert", layer), ("all experts", all_experts)):
            began = time.perf_counter()
            compute(x_BTD).sum().backward()
            best[name] = min(best.get(name, 1e9), time.perf_counter() - began)
    print(f"\n{tokens} tokens, 8 experts, top-2, forward and backward, best of {rounds}:")
    for name, seconds in best.items():
        print(f"- {name}: {1e3 * seconds:.0f} ms")


def main() -> None:
    """Parse the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--size", default="nano")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="a few steps, to try the script")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps = min(arguments.steps, 4)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        spread(arguments, Path(folder))
    speed(512 if arguments.quick else 4_096, 2 if arguments.quick else 5)


if __name__ == "__main__":
    main()

"""What training costs, counted before it starts: parameters, operations, memory."""

from dataclasses import dataclass, replace

import torch

from peerformer.config import Config
from peerformer.interface.progress import si
from peerformer.model.transformer import count_parameters, flops_per_token
from peerformer.train.memory import StepMemory, step_memory

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Cost:
    """What a run costs; operations are those of matrix products, forward and backward."""

    vocab_size: int
    parameters: int
    flops_per_token: float
    flops_per_step: float
    memory: StepMemory


def cost_of(config: Config, vocab_size: int, dtype: str) -> Cost:
    """Count the cost of training by some settings, computing in `dtype`."""
    model, training = replace(config.model, vocab_size=vocab_size), config.training
    flops = flops_per_token(model, training.sequence_length)
    return Cost(
        vocab_size=vocab_size,
        parameters=count_parameters(model),
        flops_per_token=flops,
        flops_per_step=flops * training.batch_size * training.sequence_length,
        memory=step_memory(model, training, config.optimizer, AUTOCAST.get(dtype)),
    )


def cost_line(cost: Cost) -> str:
    """The cost in one line."""
    memory = cost.memory
    peak = memory.peak_bytes
    kept = memory.weights_bytes + memory.gradients_bytes + memory.optimizer_bytes
    size = f"{si(peak)}B" if peak is not None else f"more than {si(kept)}B"
    return (
        f"{si(cost.flops_per_token)}FLOP a token, {si(cost.flops_per_step)}FLOP and {size} a step"
    )


def cost_table(cost: Cost) -> str:
    """The cost, a line for each figure."""
    memory = cost.memory
    kept = memory.weights_bytes + memory.gradients_bytes + memory.optimizer_bytes
    rows = [
        ("parameters", f"{cost.parameters:,}", f"with a vocabulary of {cost.vocab_size:,}"),
        ("operations a token", f"{cost.flops_per_token:.4g}", "forward and backward"),
        ("operations a step", f"{cost.flops_per_step:.4g}", ""),
        ("weights", f"{memory.weights_bytes:,}", "bytes"),
        ("gradients", f"{memory.gradients_bytes:,}", "bytes"),
        ("optimizer", f"{memory.optimizer_bytes:,}", "bytes"),
    ]
    if memory.peak_bytes is None:
        rows.append(("activations", "unknown", "they depend on the data"))
    else:
        rows += [
            ("activations", f"{memory.peak_bytes - kept:,}", "bytes more at the peak of a step"),
            ("peak", f"{memory.peak_bytes:,}", "bytes of tensors at once"),
        ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(
        f"{name.ljust(widths[0])}  {value.rjust(widths[1])}  {note}".rstrip()
        for name, value, note in rows
    )

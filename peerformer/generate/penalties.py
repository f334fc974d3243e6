"""Making what was said before less likely: penalties on logits, from the tokens so far.

Three penalties and one ban. The repetition penalty divides a positive logit and multiplies a
negative one, for tokens of the prompt and of the text. Presence and frequency penalties are taken
off the logits of tokens that the *made* text has, once or as often as it has them. The ban on
repeated n-grams forbids whatever would end a run of n tokens that stands there already.

Knows nothing about models or text.

Sources: Keskar et al., CTRL, 2019, section 4.1 (repetition); the OpenAI API reference (presence
and frequency); Paulus et al., A Deep Reinforced Model for Abstractive Summarization, 2017, section
2.5 (n-grams).

Shapes: B batch, V vocabulary, N tokens concerned.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peerformer.generate.sampling import Sampling


@dataclass(frozen=True)
class Said:
    """The tokens of one sequence so far: a prompt, and what was made of it."""

    prompt: Sequence[int]
    made: Sequence[int]


def penalise(logits_BV: Tensor, sampling: Sampling, said: Sequence[Said]) -> Tensor:
    """Logits after the penalties, (B, V); the same tensor where there are none.

    Args:
        logits_BV: finite logits, or log probabilities, on the CPU.
        sampling: which penalties.
        said: of each row.
    """
    if not sampling.penalises:
        return logits_BV
    penalised_BV = logits_BV.clone()
    for logits_V, row in zip(penalised_BV, said, strict=True):
        _penalise_row(logits_V, sampling, row)
    return penalised_BV


def _penalise_row(logits_V: Tensor, sampling: Sampling, said: Said) -> None:
    if sampling.repetition_penalty != 1:
        seen_N = torch.tensor(sorted({*said.prompt, *said.made}), dtype=torch.int64)
        found_N = logits_V[seen_N]
        strength = sampling.repetition_penalty
        logits_V[seen_N] = torch.where(found_N < 0, found_N * strength, found_N / strength)
    counts = Counter(said.made)
    if counts and (sampling.presence_penalty or sampling.frequency_penalty):
        counts_N = torch.tensor(list(counts.values()), dtype=logits_V.dtype)
        taken_N = sampling.presence_penalty + sampling.frequency_penalty * counts_N
        logits_V[list(counts)] -= taken_N
    if sampling.no_repeat_ngram is not None:
        banned = _banned([*said.prompt, *said.made], sampling.no_repeat_ngram)
        # Where every token is banned, the text has to repeat itself.
        if banned and len(banned) < len(logits_V):
            logits_V[sorted(banned)] = float("-inf")


def _banned(tokens: list[int], n: int) -> set[int]:
    """Tokens that would make the last n tokens a run that was there before."""
    end = tokens[len(tokens) - n + 1 :]
    return {
        tokens[start + n - 1]
        for start in range(len(tokens) - n + 1)
        if tokens[start : start + n - 1] == end
    }

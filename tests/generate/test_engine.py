"""The engine: cached decoding is the plain computation, also past the window."""

from itertools import islice

import pytest
import torch

from peerformer.config import ModelConfig
from peerformer.errors import CheckpointError, ConfigError
from peerformer.generate.engine import generate, next_token_probabilities
from peerformer.generate.sampling import Sampling
from peerformer.model.transformer import Transformer

GREEDY = Sampling(temperature=0)
WINDOW = 16


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4,
        num_kv_heads=2, head_dim=8, max_positions=WINDOW,
    )  # fmt: skip
    made = Transformer(config).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim == 2:  # larger than at the start of training, so that the text varies
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return made


def run(model, prompt, tokens_max, sampling=GREEDY, seed=0, stop_ids=frozenset()):
    return list(
        generate(
            model, prompt, sampling=sampling, tokens_max=tokens_max, stop_ids=stop_ids, seed=seed
        )
    )


def plain(model, prompt, tokens_max):
    """Greedy decoding without a cache, with the window that the engine describes."""
    context, made = prompt[-WINDOW:], []
    for _ in range(tokens_max):
        if len(context) > WINDOW:
            context = context[-(WINDOW // 2) :]
        with torch.no_grad():
            made.append(int(model(torch.tensor([context]))[0, -1].argmax()))
        context = [*context, made[-1]]
    return made


@pytest.mark.parametrize("length", [1, 5, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
def test_generation_equals_computing_every_token_anew_also_past_the_window(model, length):
    prompt = torch.randint(60, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    expected = plain(model, prompt, 3 * WINDOW)
    assert len(set(expected)) > 3, "a text that repeats one token shows nothing"
    assert run(model, prompt, 3 * WINDOW) == expected


def test_the_seed_repeats_a_text_and_another_gives_another(model):
    sampling = Sampling(temperature=1.0, top_p=0.9)
    first = run(model, [1, 2], 30, sampling, seed=4)
    assert first == run(model, [1, 2], 30, sampling, seed=4)
    assert first != run(model, [1, 2], 30, sampling, seed=5)


def test_generation_stops_before_a_stop_token(model):
    whole = run(model, [3], 20)
    stop = whole[7]
    assert run(model, [3], 20, stop_ids={stop}) == whole[: whole.index(stop)]


def test_tokens_come_one_at_a_time_and_gradients_stay_on_for_the_caller(model):
    stream = generate(model, [3], sampling=GREEDY, tokens_max=50, stop_ids=set(), seed=0)
    assert len(list(islice(stream, 2))) == 2
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert run(model, [3], 0) == []


@pytest.mark.parametrize(
    "arguments", [([], 1), ([60], 1), ([-1], 1), ([1], -1), ([1], 1, GREEDY, -1)], ids=str
)
def test_what_cannot_be_continued_is_refused_at_once(model, arguments):
    with pytest.raises(ConfigError):
        run(model, *arguments)


def test_a_model_that_has_diverged_is_named(model):
    broken = Transformer(model.config).eval()
    with torch.no_grad():
        broken.norm.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        run(broken, [1], 3)


def test_probabilities_are_the_softmax_sorted(model):
    with torch.no_grad():
        expected = model(torch.tensor([[4, 5, 6]]))[0, -1].softmax(-1)
    found = next_token_probabilities(model, [4, 5, 6], 60)
    assert sum(p for _, p in found) == pytest.approx(1.0, abs=1e-5)
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    assert all(p == pytest.approx(expected[token].item(), abs=1e-6) for token, p in found)
    assert next_token_probabilities(model, [4, 5, 6], 3) == found[:3]
    long = list(range(40))
    assert next_token_probabilities(model, long, 2) == next_token_probabilities(
        model, long[-WINDOW:], 2
    )
    for top in (0, 61):
        with pytest.raises(ConfigError):
            next_token_probabilities(model, [1], top)

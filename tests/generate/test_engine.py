"""The engine: cached decoding is the plain computation, also past the window."""

from itertools import islice

import pytest
import torch

from peerformer.config import ModelConfig
from peerformer.errors import CheckpointError, ConfigError
from peerformer.generate.beam_search import BeamSearch, beam_search
from peerformer.generate.caching import CacheMaker, CacheOptions
from peerformer.generate.engine import Decoding, Generation, generate, next_token_probabilities
from peerformer.generate.sampling import GREEDY, Sampling
from peerformer.model.transformer import Transformer

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


def run_together(model, prompts, decoding, caches=None, seeds=None):
    """The tokens that each sequence becomes, and why it ended."""
    seeds = range(len(prompts)) if seeds is None else seeds
    generation = Generation(model, prompts, seeds, decoding, caches)
    made = [[] for _ in prompts]
    while generation.running:
        for one in generation.step():
            made[one.sequence].append(one.token)
    return made, [generation.ended_by(i) for i in range(len(prompts))]


PROMPTS = [[5, 9, 2], [1], list(range(20, 34)), [7] * 5, list(range(50)), [3, 3]]
CACHES = {
    "contiguous": CacheOptions(),
    "paged": CacheOptions("paged", page_size=4),
    "shared": CacheOptions("paged", page_size=4, policy="arc", prefix_pages=6),
}


@pytest.mark.parametrize("options", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize(
    "sampling",
    [GREEDY, Sampling(temperature=1.3, top_p=0.9, frequency_penalty=0.4, no_repeat_ngram=3)],
    ids=["greedy", "drawn"],
)
def test_prompts_together_become_what_each_becomes_alone(model, sampling, options):
    """Unequal prompts, past the window, some ending early: in each kind of cache."""
    decoding = Decoding(sampling, 2 * WINDOW, frozenset({11, 12, 13}))
    caches = CacheMaker(model, options, batch_size=len(PROMPTS))
    alone = [
        list(
            generate(
                model, prompt, sampling=sampling, tokens_max=2 * WINDOW, stop_ids={11, 12, 13},
                seed=seed,
            )
        )
        for seed, prompt in enumerate(PROMPTS)
    ]  # fmt: skip
    assert len({len(tokens) for tokens in alone}) > 2, "all of one length"
    for _ in range(2):  # the second time with beginnings that are there
        made, ends = run_together(model, PROMPTS, decoding, caches)
        assert made == alone
        assert ends == [
            "length" if len(tokens) == 2 * WINDOW else "end of text" for tokens in alone
        ]
    if pool := caches.pool_statistics():
        kept = caches.prefix_statistics()
        assert pool.used == (kept.pages_held if kept else 0), "pages were not given back"
        assert not kept or kept.pages_found > 0


def test_eight_bits_change_greedy_texts_seldom(model):
    """Of 60 tokens after six prompts, at least half are the same: near ties turn, no more."""
    decoding = Decoding(GREEDY, 10)
    exact, _ = run_together(model, PROMPTS, decoding)
    for kind in ("int8", "paged-int8"):
        caches = CacheMaker(model, CacheOptions(kind), batch_size=len(PROMPTS))
        rounded, _ = run_together(model, PROMPTS, decoding, caches)
        same = sum(a == b for one, two in zip(exact, rounded, strict=True)
                   for a, b in zip(one, two, strict=True))  # fmt: skip
        assert same >= 30, (kind, same)


def test_a_sequence_may_be_stopped_between_two_steps(model):
    decoding = Decoding(GREEDY, 9)
    whole, _ = run_together(model, PROMPTS, decoding)
    generation = Generation(model, PROMPTS, [0] * 6, decoding)
    made = [[] for _ in PROMPTS]
    while generation.running:
        for one in generation.step():
            made[one.sequence].append(one.token)
        if len(made[2]) == 4:
            generation.stop(2, "enough")
    assert made[2] == whole[2][:4] and generation.ended_by(2) == "enough"
    assert [made[i] for i in (0, 1, 3, 4, 5)] == [whole[i] for i in (0, 1, 3, 4, 5)]
    assert generation.step() == []


def test_log_probabilities_are_the_models_own_whatever_is_cut_or_penalised(model):
    sampling = Sampling(temperature=2.0, top_k=3, repetition_penalty=1.5)
    prompt = [4, 5, 6]
    generation = Generation(model, [prompt], [1], Decoding(sampling, 8, alternatives=4))
    text = list(prompt)
    while generation.running:
        (made,) = generation.step()
        with torch.no_grad():
            expected = model(torch.tensor([text]))[0, -1].log_softmax(-1)
        assert made.log_probability == pytest.approx(expected[made.token].item(), abs=1e-5)
        assert [token for token, _ in made.likeliest] == expected.topk(4).indices.tolist()
        assert [log for _, log in made.likeliest] == pytest.approx(
            expected.topk(4).values.tolist(), abs=1e-5
        )
        text.append(made.token)


@pytest.mark.parametrize("kind", ["contiguous", "paged", "int8"])
def test_beams_share_the_cache_of_their_prompt(model, kind):
    caches = CacheMaker(model, CacheOptions(kind, page_size=4), batch_size=4)
    search = BeamSearch(4, 4)
    found = beam_search(model, [5, 6, 7, 8, 9], search, tokens_max=11, stop_ids={11}, caches=caches)
    for one in found:
        text = [5, 6, 7, 8, 9, *one.tokens, *([11] if one.ended_by == "end of text" else [])]
        with torch.no_grad():
            logs = model(torch.tensor([text]))[0].log_softmax(-1)
        total = sum(logs[place - 1, text[place]].item() for place in range(5, len(text)))
        tolerance = 0.1 if kind == "int8" else 1e-4
        assert one.score == pytest.approx(total / (len(text) - 5), abs=tolerance)
    assert len({one.tokens for one in found}) == 4
    assert caches.pool_statistics() is None or caches.pool_statistics().used == 0


def test_a_pool_that_is_too_small_is_an_error_that_gives_its_pages_back(model):
    caches = CacheMaker(model, CacheOptions("paged", page_size=4, pages=5))
    generation = Generation(model, [[1] * 8, [2] * 8], [0, 0], Decoding(GREEDY, 9), caches)
    with pytest.raises(ConfigError, match="pool of 5 pages is used up"):
        while generation.running:
            generation.step()
    generation.close()
    assert caches.pool_statistics().free == 5


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "heap"}, {"kind": "paged", "policy": "fifo"}, {"policy": "arc"}, {"pages": 4},
        {"kind": "paged", "pages": 0}, {"kind": "paged", "page_size": 0},
    ],
    ids=str,
)  # fmt: skip
def test_caches_that_cannot_be_are_refused(values):
    with pytest.raises(ConfigError):
        CacheOptions(**values)


@pytest.mark.parametrize(
    ("search", "prompt", "tokens_max"),
    [
        ({"beams": 1}, [1], 5), ({"beams": 3, "best": 4}, [1], 5), ({"beams": 2}, [1], 0),
        ({"beams": 2}, [1] * 8, 9), ({"beams": 2}, [1] * 20, 1), ({"beams": 2}, [], 3),
        ({"beams": 2, "length_penalty": float("nan")}, [1], 3), ({"beams": 2}, [60], 3),
    ],
    ids=str,
)  # fmt: skip
def test_a_search_that_cannot_be_is_refused(model, search, prompt, tokens_max):
    with pytest.raises(ConfigError):
        beam_search(model, prompt, BeamSearch(**search), tokens_max=tokens_max, stop_ids={2})


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

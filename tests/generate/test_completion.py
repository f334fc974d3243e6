"""Texts: together as alone, streamed as whole, and cut before a stop string."""

import json

import pytest
import torch

from peerformer.config import ModelConfig
from peerformer.data.tokenizer import train_tokenizer
from peerformer.errors import ConfigError
from peerformer.generate.beam_search import BeamSearch
from peerformer.generate.caching import CacheMaker, CacheOptions
from peerformer.generate.completion import (
    Completion,
    CompletionOptions,
    Piece,
    complete,
    complete_by_beams,
    stream,
)
from peerformer.generate.sampling import GREEDY, Sampling
from peerformer.model.transformer import Transformer

TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps — naïve ünïcode 🦊"
PROMPTS = ["the fox", "", "a dog, and the quick", "sleeps", "brown"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT] * 4, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_layers=2,
        num_heads=4, num_kv_heads=2, head_dim=8, max_positions=64,
    )  # fmt: skip
    made = Transformer(config).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim == 2:
                scale = weight.shape[1] ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return made


def drawn(**options):
    return CompletionOptions(sampling=Sampling(temperature=1.0), tokens_max=30, seed=9, **options)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("kind", ["contiguous", "paged"])
def test_each_prompt_becomes_what_it_becomes_alone_with_its_seed(
    model, tokenizer, batch_size, kind
):
    caches = CacheMaker(model, CacheOptions(kind), batch_size)
    found = complete(model, tokenizer, PROMPTS, drawn(batch_size=batch_size), caches)
    assert [one.prompt for one in found] == PROMPTS
    assert [one.seed for one in found] == [9, 10, 11, 12, 13]
    for one in found:
        options = CompletionOptions(Sampling(temperature=1.0), 30, seed=one.seed)
        (alone,) = complete(model, tokenizer, one.prompt, options)
        assert (one.text, one.tokens, one.ended_by) == (alone.text, alone.tokens, alone.ended_by)
    assert complete(model, tokenizer, []) == []


def test_the_pieces_of_a_stream_are_the_text(model, tokenizer):
    pieces = {number: "" for number in range(len(PROMPTS))}
    done = {}
    for event in stream(model, tokenizer, PROMPTS, drawn(stop=(" the", "z"))):
        assert event.number not in done, "a piece after the end"
        if isinstance(event, Piece):
            assert event.text
            pieces[event.number] += event.text
        else:
            assert isinstance(event, Completion)
            done[event.number] = event
    assert {number: one.text for number, one in done.items()} == pieces


def test_a_stop_string_ends_a_text_across_tokens_and_nothing_of_it_is_emitted(model, tokenizer):
    (whole,) = complete(model, tokenizer, "the fox", drawn())
    assert whole.ended_by == "length" and len(whole.tokens) == 30
    decoder, borders = tokenizer.stream(), []
    for token in whole.tokens:
        borders.append((borders or [0])[-1] + len(decoder.feed(token)))
    checked = 0
    for border in borders[3:-3]:
        stop = whole.text[border - 1 : border + 2]  # the end of one token, the start of the next
        if whole.text.find(stop) != border - 1:
            continue
        (cut,) = complete(model, tokenizer, "the fox", drawn(stop=("never", stop)))
        assert cut.text == whole.text[: border - 1]
        assert (cut.ended_by, cut.stop) == ("stop string", stop)
        assert cut.tokens == whole.tokens[: len(cut.tokens)] and len(cut.tokens) < 30
        checked += 1
    assert checked > 5


def test_what_was_held_back_for_a_stop_string_comes_out_at_the_end(model, tokenizer):
    (whole,) = complete(
        model, tokenizer, "the fox", CompletionOptions(sampling=GREEDY, tokens_max=8)
    )
    stop = whole.text[-2:] + "\N{SNOWMAN}"
    options = CompletionOptions(sampling=GREEDY, tokens_max=8, stop=(stop,))
    assert complete(model, tokenizer, "the fox", options)[0].text == whole.text


def test_a_text_starts_with_the_token_that_separates_texts(model, tokenizer):
    options = CompletionOptions(sampling=GREEDY, tokens_max=4, log_probabilities=2)
    (found,) = complete(model, tokenizer, "", options)
    with torch.no_grad():
        logs = model(torch.tensor([[tokenizer.end_of_text_id]]))[0, -1].log_softmax(-1)
    assert found.told[0].log_probability == pytest.approx(logs.max().item(), abs=1e-5)
    assert len(found.told) == len(found.tokens) and len(found.told[0].likeliest) == 2


def test_prompts_that_begin_alike_share_pages_from_call_to_call(model, tokenizer):
    options = CacheOptions("paged", page_size=4, policy="s3-fifo", prefix_pages=50)
    caches = CacheMaker(model, options, batch_size=2)
    prompts = [TEXT[:40] + word for word in (" one", " two", " three", " four")]
    greedy = CompletionOptions(sampling=GREEDY, tokens_max=6, batch_size=2)
    found = complete(model, tokenizer, prompts, greedy, caches)
    assert found == complete(model, tokenizer, prompts, greedy)
    before = caches.prefix_statistics()
    assert before.pages_found > 0
    assert found == complete(model, tokenizer, prompts, greedy, caches)
    after = caches.prefix_statistics()
    asked, hits = after.pages_asked - before.pages_asked, after.pages_found - before.pages_found
    assert asked == hits > 0, "the second time everything was there"


def test_a_reader_that_goes_away_gives_the_pages_back(model, tokenizer):
    caches = CacheMaker(model, CacheOptions("paged"), batch_size=5)
    events = stream(model, tokenizer, PROMPTS, drawn(), caches)
    next(events)
    assert caches.pool_statistics().used > 0
    events.close()
    assert caches.pool_statistics().used == 0


def test_beams_are_texts_with_scores(model, tokenizer):
    found = complete_by_beams(model, tokenizer, "the fox", BeamSearch(4, 3), tokens_max=8)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert len({one.text for one in found}) == 3
    assert all(one.text == tokenizer.decode(one.tokens) for one in found)


def test_what_makes_no_sense_is_refused_before_anything_is_computed(model, tokenizer):
    with pytest.raises(ConfigError, match="stop string"):
        stream(model, tokenizer, "x", CompletionOptions(stop=("",)))
    with pytest.raises(ConfigError, match="--batch"):
        CompletionOptions(batch_size=0)
    with pytest.raises(ConfigError, match="alternatives"):
        complete(model, tokenizer, "x", CompletionOptions(log_probabilities=10_000))


def test_the_public_names_are_these():
    import peerformer

    assert peerformer.complete is complete and peerformer.stream is stream
    assert peerformer.complete_by_beams is complete_by_beams
    json.dumps(peerformer.__all__)

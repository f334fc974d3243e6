"""Greedy, penalised and beam search outputs are those of Hugging Face's transformers.

The weights go both ways: ours saved and read there, theirs saved and read here.
"""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from peerformer.config import ModelConfig
from peerformer.generate.beam_search import BeamSearch, EarlyStopping, beam_search
from peerformer.generate.engine import Decoding, Generation
from peerformer.generate.penalties import Said, penalise
from peerformer.generate.sampling import Sampling, distribution
from peerformer.model.convert import load_model, save_model
from peerformer.model.transformer import Transformer

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

END, ENDS = 7, (7, 11, 13)  # of 40 tokens, so that beams end at many lengths
TINY = ModelConfig(
    vocab_size=40, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, max_positions=64, tie_embeddings=False,
)  # fmt: skip
STOPPING = {EarlyStopping.YES: True, EarlyStopping.NO: False, EarlyStopping.NEVER: "never"}


# In the order in which `generate` applies them.
WARPERS = {
    "temperature": transformers.TemperatureLogitsWarper,
    "top_k": transformers.TopKLogitsWarper,
    "top_p": transformers.TopPLogitsWarper,
    "min_p": transformers.MinPLogitsWarper,
    "typical_p": transformers.TypicalLogitsWarper,
}


def ours(seed):
    model = Transformer(replace(TINY, num_kv_heads=1 + seed % 2)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                scale = weight.shape[1] ** -0.5  # so that logits are neither flat nor certain
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return model


@pytest.fixture(scope="module", params=["ours, read there", "theirs, read here"])
def pairs(request, tmp_path_factory):
    """Models of several seeds, each in both programs."""
    made = []
    for seed in range(4):
        path = tmp_path_factory.mktemp("model")
        save_model(path, ours(seed), None)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        if request.param == "theirs, read here":
            settings = json.loads((path / "config.json").read_text())
            torch.manual_seed(seed)
            theirs = transformers.Qwen3ForCausalLM(
                transformers.Qwen3Config(**{**settings, "initializer_range": 0.2})
            )
            theirs.save_pretrained(path)
        made.append((load_model(path), theirs.eval()))
    return made


def prompt_of(seed, length=5):
    return torch.randint(40, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def theirs_made(model, prompt, ends=(END,), **arguments):
    found = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        do_sample=False,
        eos_token_id=list(ends),
        pad_token_id=0,
        return_dict_in_generate=True,
        **arguments,
    )
    return [row[len(prompt) :].tolist() for row in found.sequences], found


def upto_end(tokens, ends=(END,)):
    return list(itertools.takewhile(lambda token: token not in ends, tokens))


@pytest.mark.parametrize(
    "penalties",
    [{}, {"repetition_penalty": 1.3}, {"repetition_penalty": 0.8, "no_repeat_ngram": 2}],
    ids=str,
)
def test_greedy_texts_are_those_of_transformers(pairs, penalties):
    arguments = dict(penalties)
    if n := arguments.pop("no_repeat_ngram", None):
        arguments["no_repeat_ngram_size"] = n
    lengths = set()
    for seed, (model, theirs) in enumerate(pairs):
        prompts = [prompt_of(10 * seed + i, length=3 + 2 * i) for i in range(3)]
        decoding = Decoding(Sampling(temperature=0, **penalties), 24, {END}, alternatives=0)
        generation = Generation(model, prompts, [0] * 3, decoding)
        made = {i: [] for i in range(3)}
        logs = {i: [] for i in range(3)}
        while generation.running:
            for one in generation.step():
                made[one.sequence].append(one.token)
                logs[one.sequence].append(one.log_probability)
        for i, prompt in enumerate(prompts):
            (tokens,), found = theirs_made(
                theirs, prompt, max_new_tokens=24, output_logits=True, **arguments
            )
            assert made[i] == upto_end(tokens), (seed, i)
            expected = [
                step[0].log_softmax(-1)[token].item()
                for step, token in zip(found.logits, made[i], strict=False)
            ]
            assert logs[i] == pytest.approx(expected, abs=2e-5)
            lengths.add(len(made[i]))
    assert len(lengths) > 2, "texts that all have one length show little"


@pytest.mark.parametrize("early_stopping", EarlyStopping, ids=lambda rule: rule.value)
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.7, 1.0, 2.0])
def test_beams_are_those_of_transformers(pairs, length_penalty, early_stopping):
    endings = set()
    tokens_max = 40 if length_penalty == 1 else 14  # at 40 the three rules differ
    for seed, (model, theirs) in enumerate(pairs):
        prompt = prompt_of(seed, length=2 + seed)
        search = BeamSearch(5, 4, length_penalty, early_stopping)
        found = beam_search(model, prompt, search, tokens_max=tokens_max, stop_ids=set(ENDS))
        expected, whole = theirs_made(
            theirs,
            prompt,
            ENDS,
            max_new_tokens=tokens_max,
            num_beams=5,
            num_return_sequences=4,
            length_penalty=length_penalty,
            early_stopping=STOPPING[early_stopping],
            output_scores=True,
        )
        assert [list(one.tokens) for one in found] == [upto_end(row, ENDS) for row in expected]
        assert [one.score for one in found] == pytest.approx(
            whole.sequences_scores.tolist(), abs=1e-4
        )
        endings |= {(one.ended_by, len(one.tokens)) for one in found}
    # Where length is rewarded all beams go on to the last token.
    assert length_penalty >= 1 or len(endings) > 3, "beams that all end alike show little"


@pytest.mark.parametrize("beams", [2, 9])
def test_beams_with_penalties_are_those_of_transformers(pairs, beams):
    for seed, (model, theirs) in enumerate(pairs):
        prompt = prompt_of(seed + 50, length=6)
        penalties = Sampling(temperature=0, repetition_penalty=1.2, no_repeat_ngram=3)
        found = beam_search(
            model, prompt, BeamSearch(beams, beams), tokens_max=20, stop_ids={END},
            penalties=penalties,
        )  # fmt: skip
        expected, _ = theirs_made(
            theirs, prompt, max_new_tokens=20, num_beams=beams, num_return_sequences=beams,
            repetition_penalty=1.2, no_repeat_ngram_size=3,
        )  # fmt: skip
        assert [list(one.tokens) for one in found] == [upto_end(row) for row in expected], seed


@pytest.mark.parametrize(
    "cuts",
    [
        {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.1}, {"typical_p": 0.5},
        {"typical_p": 0.9, "temperature": 1.5}, {"top_k": 20, "top_p": 0.8, "min_p": 0.05},
        {"top_p": 0.9, "typical_p": 0.8}, {"temperature": 0.5, "top_k": 9, "typical_p": 0.2},
    ],
    ids=str,
)  # fmt: skip
def test_tokens_are_drawn_with_the_probabilities_of_transformers(cuts):
    logits = torch.randn(30, 200, generator=torch.Generator().manual_seed(3)) * 3
    warpers = transformers.LogitsProcessorList(
        [warper(cuts[name]) for name, warper in WARPERS.items() if name in cuts]
    )
    expected = warpers(torch.zeros(30, 1, dtype=torch.int64), logits.clone()).softmax(-1)
    probabilities, ids = distribution(logits, Sampling(**cuts))
    found = torch.zeros_like(logits).scatter(1, ids, probabilities)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found > 0, expected > 0)


def test_penalised_logits_are_those_of_transformers():
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(6, 30, generator=generator)
    tokens = torch.randint(30, (6, 20), generator=generator)
    processors = transformers.LogitsProcessorList(
        [
            transformers.RepetitionPenaltyLogitsProcessor(1.4),
            transformers.NoRepeatNGramLogitsProcessor(2),
        ]
    )
    said = [Said(row[:5], row[5:]) for row in tokens.tolist()]
    found = penalise(logits, Sampling(repetition_penalty=1.4, no_repeat_ngram=2), said)
    torch.testing.assert_close(found, processors(tokens, logits.clone()))

"""Pairs are found, cut and joined as written down; the loss counts on completions, nowhere else."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerformer.config import DataConfig
from peerformer.data.batches import NOT_LEARNED, Batches
from peerformer.data.chat import TEMPLATE_FILE
from peerformer.data.documents import Document
from peerformer.data.encode import encoded
from peerformer.data.holding_out import border_of
from peerformer.data.origins import documents_of
from peerformer.data.pair_tokens import pairs_of
from peerformer.data.pairs import (
    DELIMITERS,
    delimiter_of,
    line_documents,
    pair_document,
    record_document,
    split_line,
)
from peerformer.data.prepare import prepare
from peerformer.data.spool import facts_of
from peerformer.data.tally import Tally
from peerformer.data.tokenizer import train_tokenizer
from peerformer.errors import DataError


@pytest.mark.parametrize(
    ("line", "delimiter", "pair"),
    [
        ("the cat sat on the|mat", "|", ("the cat sat on the", "mat")),
        ("  a b  *  c d  ", "*", ("a b", "c d")),
        ("one|two|three", "|", ("one", "two|three")),
        (r"this \| that|both", "|", ("this | that", "both")),
        (r"ends in \\|yes", "|", ("ends in \\", "yes")),
        (r"a\n|b\|c\\", "|", (r"a\n", "b|c\\\\")),
        ("C# is|a language", "|", ("C# is", "a language")),
        (r"C\# is#a language", "#", ("C# is", "a language")),
        ("no delimiter here", "|", None),
        (r"only \| an escaped one", "|", None),
    ],
)
def test_a_line_is_cut_at_its_first_delimiter_without_a_backslash(line, delimiter, pair) -> None:
    assert split_line(line, delimiter) == pair


def escaped(text: str, delimiter: str) -> str:
    return text.replace("\\", "\\\\").replace(delimiter, f"\\{delimiter}")


@given(st.sampled_from(DELIMITERS), st.text("ab|*# ", min_size=1), st.text("ab|*# ", min_size=1))
def test_what_is_escaped_comes_back(delimiter: str, prompt: str, completion: str) -> None:
    line = f"{escaped(prompt, delimiter)}{delimiter}{escaped(completion, delimiter)}"
    assert split_line(line, delimiter) == (prompt.strip(), completion.strip())


def test_the_delimiter_of_a_file_is_the_one_that_nearly_every_line_has_once() -> None:
    assert delimiter_of(["a|b"] * 9 + ["damaged"]) == "|"
    assert delimiter_of(["a|b"] * 8 + ["damaged"] * 2) is None
    assert delimiter_of(["a # b", "c # d", "", "e # f"]) == "#"
    assert delimiter_of(["1 * 2|3", "4 * 5|6", "7|8"]) == "|", "the one in the most lines"
    assert delimiter_of(["a#b|c"] * 3) == "|", "of equals the first of the three"
    assert delimiter_of([r"a \| b # c"] * 3) == "#", "an escaped one does not count"


@pytest.mark.parametrize(
    "lines",
    [
        ["one line | alone"],
        ["# Heading", "* item", "* item", "Some text."],
        ["x = 1  # one", "y = 2", "z = 3  # three"],
        ["| a | b |", "|---|---|", "| 1 | 2 |"],
        ["| nothing before", "| nothing before"],
        ["a|b|c", "d|e|f", "g|h|i"],
        [],
    ],
)
def test_other_text_is_not_taken_for_pairs(lines: list[str]) -> None:
    assert delimiter_of(lines) is None


def test_lines_that_are_no_pairs_are_named_and_the_others_kept() -> None:
    told: list[tuple[str, str]] = []
    lines = ["a|b", "damaged", "", "|c", "d|", "e|f"]
    found = list(line_documents("pairs.txt", lines, "|", lambda *note: told.append(note)))
    assert [document.text for document in found] == ["a b", "e f"]
    assert [place for place, _ in told] == ["pairs.txt:2", "pairs.txt:4", "pairs.txt:5"]
    assert "without the delimiter" in told[0][1] and "empty" in told[1][1]


def test_a_completion_is_learned_with_the_space_before_it_and_keeps_its_own_white_space() -> None:
    for prompt, completion, text in (
        ("2 + 2 =", "4", "2 + 2 = 4"),
        ("2 + 2 = ", "4", "2 + 2 = 4"),
        ("def f():", "\n    pass", "def f():\n    pass"),
        ("a\r\n", "b", "a\nb"),
    ):
        document = pair_document("x", prompt, completion)
        assert document is not None and document.learned is not None
        (start, end), *more = document.learned
        assert document.text == text and not more and end == len(text)
        assert document.text[:start] == prompt.rstrip()
    assert pair_document("x", " ", "4") is None and pair_document("x", "4", "\n") is None
    assert record_document("x", {"prompt": "a", "completion": "b", "more": 1}) is not None


def test_a_prompt_has_the_same_tokens_alone_and_with_its_completion() -> None:
    tokenizer = train_tokenizer(["the dogs and the doghouses " * 20], 300)
    document = pair_document("x", "the dog", "and the house")
    plain = Document("y", "the dogs")
    masked, whole = encoded(tokenizer, [document, plain])
    prompt, completion = tokenizer.encode("the dog"), tokenizer.encode(" and the house")
    assert list(masked.tokens) == prompt + completion
    assert masked.learned.tolist() == [False] * len(prompt) + [True] * (len(completion) + 1)
    assert whole.learned is None and list(whole.tokens) == tokenizer.encode("the dogs")


def pairs_file(folder: Path, count: int = 200) -> Path:
    path = folder / "pairs.txt"
    lines = [f"what is {number} and one more|it is {number + 1}" for number in range(count)]
    path.write_text("\n".join([*lines, "a damaged line"]) + "\n")
    return path


def learned_text(made, batches: Batches) -> str:
    """What is learned of one epoch, in the order of the text."""
    windows = batches.validation(batches.num_windows)
    tokens = np.concatenate([window.tokens[1:][window.learned[1:]] for window in windows])
    return made.tokenizer.decode(tokens.tolist())


def test_prepared_pairs_teach_completions_only(tmp_path: Path) -> None:
    config = DataConfig(path=str(pairs_file(tmp_path)), vocab_size=300)
    made = prepare(config, tmp_path / "run")
    assert made.train.is_masked and made.validation.is_masked
    (left_out,) = made.tally.left_out.values()
    assert left_out.count == 1 and "pairs.txt:201" in left_out.examples[0]
    text = learned_text(made, Batches(made.train, 16))
    assert "it is 1" in text and "what" not in text and "more" not in text
    batch = Batches(made.train, 16).batch(0, 0, batch_size=8)
    assert 0 < (batch.targets_BT == NOT_LEARNED).float().mean() < 1
    again = prepare(config, tmp_path / "run")
    assert again.train.digest == made.train.digest and again.train.is_masked


def test_the_delimiter_can_be_chosen_and_pairs_can_be_switched_off(tmp_path: Path) -> None:
    path = str(pairs_file(tmp_path))
    made = prepare(DataConfig(path=path, vocab_size=300, pairs="off"), tmp_path / "off")
    assert not made.train.is_masked
    with pytest.raises(DataError, match="no text was found") as refused:
        prepare(DataConfig(path=path, vocab_size=300, pairs="#"), tmp_path / "other")
    assert "without the delimiter" in str(refused.value)


def test_markdown_is_never_taken_for_pairs_unasked(tmp_path: Path) -> None:
    (tmp_path / "list.md").write_text("one # two\n" * 400)
    made = prepare(DataConfig(path=str(tmp_path / "list.md"), vocab_size=300), tmp_path / "run")
    assert not made.train.is_masked


def test_a_prompt_with_several_completions_is_on_one_side(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("".join(f"prompt {n % 50}|completion {n}\n" for n in range(400)))
    made = prepare(DataConfig(path=str(path), vocab_size=300), tmp_path / "run")
    end = made.tokenizer.end_of_text_id
    sides = [
        {made.tokenizer.decode(pair.prompt) for pair in pairs_of(shards, end)}
        for shards in (made.train, made.validation)
    ]
    assert all(sides) and not sides[0] & sides[1] and len(sides[0] | sides[1]) == 50


def test_pairs_are_ranked_by_their_prompts() -> None:
    documents = [
        pair_document("x", f"prompt {number % 50}", f"completion {number}") for number in range(200)
    ]
    facts, numbers = facts_of(documents), np.arange(len(documents))
    chosen = border_of(lambda: iter([(numbers, facts)]), 0.2).holds_out(numbers, facts)
    held_out = {document.key for document, is_out in zip(documents, chosen, strict=True) if is_out}
    train = {document.key for document, is_out in zip(documents, chosen, strict=True) if not is_out}
    assert train and held_out and not train & held_out


def test_records_with_a_prompt_and_a_completion_or_with_messages_are_read(tmp_path: Path) -> None:
    records = [{"prompt": f"the {n} of", "completion": f"clubs {n}"} for n in range(60)]
    says = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "It."}]
    wrong = [{"messages": [{"role": "user", "content": "x"}]}, {"prompt": " ", "completion": "x"}]
    wrong.append({"prompt": "a", "completion": "\ud800"})
    lines = [*records, {"messages": says}, *wrong]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "b.csv").write_text("prompt,completion\nred or,green\nup or,down\n")
    config = DataConfig(path=str(tmp_path), vocab_size=300)
    made = prepare(config, tmp_path / "run")
    reasons = {reason: entry.count for reason, entry in made.tally.left_out.items()}
    assert sum(reasons.values()) == 3 and "a chat without a turn of the assistant" in reasons
    assert set(made.tokenizer.special_tokens) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    text = "".join(
        learned_text(made, Batches(shards, 8)) for shards in (made.train, made.validation)
    )
    assert "clubs" in text and "green" in text and "of" not in text and "Say" not in text


def test_a_chat_template_of_ones_own_is_taken_and_a_bad_one_refused(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    more = [{"prompt": f"the {n} of", "completion": f"clubs {n}"} for n in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*more, chat])))
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    config = DataConfig(path=str(tmp_path / "a.jsonl"), vocab_size=300, chat_template=str(template))
    made = prepare(config, tmp_path / "run")
    whole = made.tokenizer.decode(made.train.window(0, made.train.num_tokens).tolist())
    whole += made.tokenizer.decode(made.validation.window(0, made.validation.num_tokens).tolist())
    assert "[user]x[assistant]y" in whole
    template.write_text("{% for %}")
    with pytest.raises(DataError, match="chat template is none"):
        prepare(config, tmp_path / "other")
    with pytest.raises(DataError, match="cannot be read"):
        prepare(replace(config, chat_template=str(tmp_path / "none")), tmp_path / "another")


def test_text_in_the_column_goes_before_messages_and_pairs(tmp_path: Path) -> None:
    says = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "It."}]
    record = {"text": "As text.", "prompt": "the", "completion": "clubs", "messages": says}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record))

    def read(column: str) -> Document:
        (document,) = documents_of(DataConfig(path=str(path), column=column), Tally())
        return document

    assert read("text") == Document(str(path), "As text.\n")
    assert read("prompt") == Document(str(path), "the\n")
    assert read("messages").special_tokens == {"<|im_start|>", "<|im_end|>"}
    path.write_text(json.dumps(record | {"text": None, "messages": None}))
    assert read("text") == pair_document(str(path), "the", "clubs")


def test_a_text_file_of_pairs_is_told_and_damage_far_behind_is_named(tmp_path: Path) -> None:
    path, tally = tmp_path / "pairs.txt", Tally()
    # A line that is no pair is read and not taken: reading goes on behind what was looked through.
    path.write_bytes(b"a|b\n" + b"|" * 3_000_000 + b"\n\xff|\xfe\n")
    found = list(documents_of(DataConfig(path=str(path), pairs="|", max_bytes=1_000), tally))
    assert found == [pair_document(str(path), "a", "b")] and tally.documents == {"pairs": 1}
    assert {reason: entry.examples for reason, entry in tally.reasons} == {
        "a pair with an empty prompt or completion": [f"{path}:2"],
        "not UTF-8 text": [str(path)],
    }


def test_a_tokenizer_without_the_tokens_of_a_chat_is_refused(tmp_path: Path) -> None:
    says = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "It."}]
    path, other = tmp_path / "a.jsonl", tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"messages": says}) + "\n" + json.dumps({"text": "More."}))
    train_tokenizer(["some text"], 300).save(other)
    with pytest.raises(DataError, match="which the tokenizer does not have"):
        prepare(DataConfig(path=str(path), tokenizer=str(other)), tmp_path / "run")


def test_a_template_that_has_changed_makes_the_text_new(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    path, template, run = tmp_path / "a.jsonl", tmp_path / "template.jinja", tmp_path / "run"
    path.write_text(json.dumps(chat) + "\n" + json.dumps({"text": "More."}))
    config = DataConfig(path=str(path), vocab_size=300, chat_template=str(template))
    digests = set()
    for sign in "?!":
        template.write_text(
            "{% for m in messages %}" + sign + "{{ m.content }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}" + sign + "{% endif %}"
        )
        made = prepare(config, run)
        digests |= {made.train.digest, made.validation.digest}
        assert sign in (run / TEMPLATE_FILE).read_text()
    assert len(digests) > 2
    path.write_text("".join(json.dumps({"text": f"Text {n}."}) + "\n" for n in range(3)))
    prepare(config, run)
    assert not (run / TEMPLATE_FILE).exists(), "there is no chat any more"


def test_a_single_pair_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a|b\n")
    with pytest.raises(DataError, match="single pair"):
        prepare(DataConfig(path=str(tmp_path / "one.txt"), pairs="|"), tmp_path / "run")

"""Rules of quality, duplicates and their reasons: what goes, what stays, in any script."""

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from peerformer.config import DataConfig
from peerformer.data import duplicates
from peerformer.data.duplicates import bands_for, minima_of
from peerformer.data.looking import Look, look
from peerformer.data.quality import (
    fault_of,
    repeated_line_share,
    repeated_words_share,
    sign_and_digit_shares,
)
from peerformer.data.words import ngrams_of, words_of

PROSE = "The harbour lay quiet in the morning, and nobody had seen the old clock move.\n"
HINDI = "यह एक लंबा वाक्य है जिसमें कई शब्द और मात्राएँ हैं।\n"
CHINESE = "清晨的港口十分安静，没有人看见那座旧钟走动。\n"


def looked_at(folder: Path, work: Path, **settings: object) -> Look:
    config = DataConfig(path=str(folder), **settings)
    return look(config, work, samples=2, on_progress=lambda step, done, total: None)


def test_each_rule_refuses_what_it_names_and_nothing_without_its_setting() -> None:
    bad = {
        "characters_min": (50, "short\n"),
        "characters_max": (50, PROSE),
        "line_characters_max": (100, "x" * 200 + "\n"),
        "symbol_share_max": (0.3, "{}()<>;= " * 30 + "word\n"),
        "digit_share_max": (0.5, "1234567890 \n" * 20 + "word\n"),
        "repeated_line_share_max": (0.3, PROSE * 10),
        "repeated_words_share_max": (0.3, PROSE.replace("\n", " ") * 10),
    }
    for name, (value, text) in bad.items():
        assert fault_of(text, DataConfig()) is None
        strict = replace(DataConfig(), **{name: value})
        assert f"data.{name}" in str(fault_of(text, strict)), name


@pytest.mark.parametrize("text", [PROSE, HINDI, CHINESE], ids=["english", "hindi", "chinese"])
def test_honest_text_passes_strict_rules_in_any_script(text: str) -> None:
    strict = DataConfig(
        characters_min=10,
        line_characters_max=500,
        symbol_share_max=0.2,
        digit_share_max=0.2,
        repeated_line_share_max=0.3,
        repeated_words_share_max=0.2,
    )
    assert fault_of(text, strict) is None


def test_shares_are_what_a_count_by_hand_gives() -> None:
    assert sign_and_digit_shares("ab 12 !?\n") == (2 / 6, 2 / 6)
    assert sign_and_digit_shares(" \n") == (0.0, 0.0)
    assert repeated_line_share("one\n\ntwo\none\n") == pytest.approx(3 / 9)
    assert repeated_words_share("a b c d e f g h") == 0.0
    # Of twelve words the last six lie in runs of five that were there before.
    assert repeated_words_share("a b c d e f a b c d e f") == pytest.approx(0.5)


def test_words_are_found_in_any_script() -> None:
    assert words_of("Don't stop_here 42!") == ["don", "t", "stop", "here", "42"]
    assert words_of("旧钟 clock") == ["旧", "钟", "clock"]
    assert words_of("मात्राएँ हैं") == ["मात्राएँ", "हैं"]
    assert len(ngrams_of(words_of("a b"))) == 1 and len(ngrams_of([])) == 0
    assert (minima_of("--- ---\n") != minima_of("*** ?!\n")).any()


def shuffled(words: list[str], changed: int, random: Random) -> str:
    """The words, some of them replaced."""
    words = list(words)
    for place in random.sample(range(len(words)), changed):
        words[place] = f"w{random.randrange(10**9)}"
    return " ".join(words) + "\n"


def test_equal_minima_estimate_the_share_of_common_ngrams() -> None:
    seed = 3
    print(f"seed {seed}")
    random = Random(seed)
    words = [f"w{random.randrange(10**6)}" for _ in range(2_000)]
    for changed in (0, 20, 60, 200, 600):
        other = shuffled(words, changed, random)
        one, two = (set(ngrams_of(words_of(text)).tolist()) for text in (" ".join(words), other))
        jaccard = len(one & two) / len(one | two)
        estimate = (minima_of(" ".join(words)) == minima_of(other)).mean()
        # 128 draws: four standard deviations.
        assert abs(estimate - jaccard) <= 4 * np.sqrt(jaccard * (1 - jaccard) / 128) + 1e-9


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
def test_bands_catch_pairs_at_the_threshold(threshold: float) -> None:
    bands, rows = bands_for(threshold)
    assert bands * rows <= 128 and 1 - (1 - threshold**rows) ** bands >= 0.95


def corpus(folder: Path) -> list[str]:
    """Distinct documents, then two equal ones, then one that is nearly the first."""
    random = Random(5)
    folder.mkdir()
    texts = []
    for _ in range(40):
        words = [f"w{random.randrange(10**6)}" for _ in range(300)]
        texts.append(" ".join(words) + "\n")
    texts += [texts[3], texts[7], shuffled(texts[0].split(), 4, random)]
    for number, text in enumerate(texts):
        (folder / f"{number:02}.txt").write_text(text)
    return texts


def test_duplicates_go_and_are_counted_by_reason_and_the_first_of_them_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus(tmp_path / "text")
    for keys_at_once in (4_000_000, 7):  # one pass, and several
        monkeypatch.setattr(duplicates, "KEYS_AT_ONCE", keys_at_once)
        kept = {}
        for choice in ("none", "exact", "near"):
            work = tmp_path / f"{choice}-{keys_at_once}"
            found = looked_at(tmp_path / "text", work, deduplicate=choice)
            kept[choice] = found.documents
            reasons = {
                reason: [Path(place).name for place in entry.examples]
                for reason, entry in found.tally.reasons
            }
            if choice == "near":
                assert reasons == {
                    "equal to an earlier document": ["40.txt", "41.txt"],
                    "nearly an earlier document": ["42.txt"],
                }
        assert kept == {"none": 43, "exact": 41, "near": 40}


def test_a_lower_threshold_takes_more_for_near_duplicates(tmp_path: Path) -> None:
    random = Random(6)
    words = [f"w{random.randrange(10**6)}" for _ in range(400)]
    (tmp_path / "a.txt").write_text(" ".join(words))
    (tmp_path / "b.txt").write_text(shuffled(words, 24, random))  # about 57 % in common
    (tmp_path / "c.txt").write_text("quite another text")
    for threshold, documents in ((0.9, 3), (0.35, 2)):
        work = tmp_path.with_name(f"{tmp_path.name}-{threshold}")
        found = looked_at(tmp_path, work, deduplicate="near", near_duplicate_threshold=threshold)
        assert found.documents == documents


def test_what_the_rules_leave_out_is_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text(PROSE)
    (tmp_path / "short.txt").write_text("no\n")
    found = looked_at(tmp_path, tmp_path.with_name("work"), characters_min=10)
    (reason, entry), *more = found.tally.reasons
    assert reason == "shorter than data.characters_min" and not more
    assert (entry.count, entry.bytes) == (1, 3) and entry.examples == [str(tmp_path / "short.txt")]

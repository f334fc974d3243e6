"""Next words of unseen prompts, by a model and by n-grams: `python benchmarks/pairs.py [--quick]`.

Makes pairs in the format `prompt|completion`, trains a model on them with `peerformer train`, and
prints what `peerformer evaluate` says of prompts that were not among them. What an animal does
depends on its name and on its size, both at the beginning of the prompt; between them and the
completion stand a place, a day and words that say nothing, so a model has to look back further
than an n-gram of order 5 can. One completion in ten is drawn at random: no one can know it, and
the best share of first guesses is about 90 %. Each completion is equally frequent, so that the
unigram knows least. With `--near` the name stands right before the completion, where an n-gram sees
it: there the n-gram must do well too.
"""

import argparse
import contextlib
import io
import json
import os
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from peerformer.interface.cli import main

SEED = 20
ANIMALS = "cat dog cow owl frog duck bee lion mouse horse wolf sheep goat crow snake".split()
SIZES = ("small", "big")
VERBS = (
    "purrs meows yaps barks lows moos chirrs hoots peeps croaks cheeps quacks hums buzzes snarls"
    " roars squeaks rustles whinnies neighs whimpers howls bleats baas grunts maas chatters caws"
    " hisses rattles"
).split()
COLOURS = "red blue green black white grey brown golden".split()
PLACES = "river barn market hill forest garden bridge road harbour valley".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
FILLERS = "and then so well now still just often soon again".split()
RANDOM_SHARE = 0.1
PAIRS, UNSEEN = 12_000, 1_000


@dataclass(frozen=True, slots=True)
class Way:
    """How much is trained."""

    size: str
    steps: int
    vocab_size: int = 512
    sequence_length: int = 128


WAYS = {True: Way("nano", 60), False: Way("tiny", 150)}


def made_pairs(*, near: bool) -> list[str]:
    """The lines of a file of pairs, no prompt twice."""
    generator = random.Random(SEED)
    prompts: dict[str, str] = {}
    while len(prompts) < PAIRS + UNSEEN:
        animal, size = generator.randrange(len(ANIMALS)), generator.randrange(len(SIZES))
        who = f"the {SIZES[size]} {ANIMALS[animal]}"
        colour, place, day = map(generator.choice, (COLOURS, PLACES, DAYS))
        fillers = " ".join(generator.choices(FILLERS, k=4))
        where = f"that is {colour} stays near the {place} on {day}"
        prompt = f"{where} {fillers} {who}" if near else f"{who} {where} {fillers} it"
        told = VERBS[2 * animal + size]
        prompts[prompt] = generator.choice(VERBS) if generator.random() < RANDOM_SHARE else told
    return [f"{prompt}|{completion}" for prompt, completion in prompts.items()]


def run(*, quick: bool, near: bool) -> dict[str, dict[str, float]]:
    """Train in an empty folder and return the scores on unseen prompts, by name."""
    way, lines = WAYS[quick], made_pairs(near=near)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("pairs.txt").write_text("\n".join(lines[:PAIRS]) + "\n")
        Path("unseen.txt").write_text("\n".join(lines[PAIRS:]) + "\n")
        arguments = (
            f"train --data pairs.txt --size {way.size} --run pairs --steps {way.steps}"
            f" --data.vocab_size {way.vocab_size} --training.validate_every 100000"
            f" --training.sequence_length {way.sequence_length}"
        )
        assert main(arguments.split()) == 0
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert main("evaluate pairs --data unseen.txt --json".split()) == 0
    return dict(json.loads(out.getvalue())["pairs"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a nano model and few steps")
    parser.add_argument("--near", action="store_true", help="what matters stands last")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    scores = run(quick=given.quick, near=given.near)
    if given.json:
        print(json.dumps(scores))
    else:
        print("next word of unseen prompts   top-1   top-5      MRR  perplexity a word")
        for name, row in scores.items():
            print(
                f"{name:<28}  {row['top1']:6.1%}  {row['top5']:6.1%}  "
                f"{row['mean_reciprocal_rank']:7.4f}  {row['perplexity']:17.2f}"
            )

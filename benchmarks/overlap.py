"""What training ahead of the vote brings (staleness 1), and what it costs.

*Utilisation*: seven production peers in the simulator, in virtual time, on links of 50 Mbit/s and
50 ms: every peer sends its contribution, 8 bits a parameter, to six others. Steps, checks and
aggregation take as long as `docs/performance.md` has them for one machine; a round is 20 steps. The
share of wall time spent in steps, over all peers and the rounds after the second.

*Loss*: four replicas in this process on synthetic text, equal rounds, steps and tokens; only the
moment differs at which a round's outcome is adopted. Held-out loss of the agreed model, and how
many contributions a scorer would have called harmful.

    python benchmarks/overlap.py [--rounds 20] [--seeds 3] [--json]
"""

import argparse
import json
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from peerformer.data.batches import Batches
from peerformer.data.shards import ShardSet
from peerformer.data.synthetic import synthetic_documents
from peerformer.data.tokenizer import train_tokenizer
from peerformer.events import RoundCommitted
from peerformer.gradients.fixed_point import AgreedState
from peerformer.model.transformer import Transformer, initialise
from peerformer.protocol.effects import Apply, Check, FetchBlob, FetchState, Work
from peerformer.settings import resolve
from peerformer.simulate.host import Host
from peerformer.simulate.world import LIMITS, World
from peerformer.train.agreed import AgreedReplica, Contribution, initial_state
from peerformer.train.evaluate import evaluate

LINK_BYTES_PER_SECOND = 50e6 / 8
LINK_DELAY_SECONDS = 0.05
PEERS = 7
STEPS = 20
STEADY_FROM, STEADY_TO = 3, 14
# (millions of parameters, seconds of a round's 20 steps)
MACHINES = ((1, 10.0), (5, 30.0), (25, 120.0), (5, 5.0))
DECODE_SECONDS, APPLY_SECONDS, ADOPT_SECONDS = 0.001, 0.026, 0.010  # each per million parameters
CHECK_STEPS = 1 / 12  # two sequences forward against eight forward and back


class Links:
    """Every host has one line up and one down; a transfer occupies both ends' lines in turn."""

    def __init__(self, world: World, blob_bytes: float) -> None:
        self.world, self.blob_bytes = world, blob_bytes
        self.up_free: dict[int, float] = {}
        self.down_free: dict[int, float] = {}

    def seconds(self, host: Host, work: FetchBlob | FetchState) -> float:
        """Return how long a transfer takes that begins now."""
        source = self.world.by_id[work.sources[0]][0].index if work.sources else host.index
        takes = self.blob_bytes / LINK_BYTES_PER_SECOND
        begins = max(
            self.world.now, self.up_free.get(source, 0.0), self.down_free.get(host.index, 0.0)
        )
        self.up_free[source] = self.down_free[host.index] = begins + takes
        return begins + takes - self.world.now + 2 * LINK_DELAY_SECONDS


def utilisation(staleness: int, millions: float, training: float) -> dict[str, float]:
    """Run a world; returns the share of time in steps, and the seconds of a round."""
    limits = replace(LIMITS, staleness=staleness, train_milliseconds_max=3_600_000)
    world = World(1, PEERS, limits=limits)
    network, random = world.network, world.random
    network.delay_seconds, network.jitter_seconds = LINK_DELAY_SECONDS, 0.01
    network.upload_bytes_per_second = LINK_BYTES_PER_SECOND
    check = training / STEPS * CHECK_STEPS + DECODE_SECONDS * millions

    def bench_seconds(work: Work) -> float:
        if isinstance(work, Check):
            return check
        return (APPLY_SECONDS if isinstance(work, Apply) else ADOPT_SECONDS) * millions

    world.works.train_seconds = lambda _: training * (0.95 + 0.1 * random.random())
    world.works.bench_seconds = bench_seconds
    world.works.fetch_seconds = Links(world, millions * 1e6 * 257 / 256).seconds
    world.start()
    decided = world.run(
        seconds=STEADY_TO * 20 * training,
        until=lambda: all(world.tip(index) >= STEADY_TO for index in range(PEERS)),
    )
    assert decided, [world.tip(index) for index in range(PEERS)]
    rounds = [
        event
        for host in world.hosts
        for event in host.reports
        if isinstance(event, RoundCommitted) and STEADY_FROM <= event.round <= STEADY_TO
    ]
    seconds = sum(event.seconds for event in rounds)
    return {
        "utilisation": round(sum(event.training_seconds for event in rounds) / seconds, 3),
        "round_seconds": round(seconds / len(rounds), 1),
        "accepted": round(sum(event.accepted for event in rounds) / len(rounds), 2),
    }


# --- the price -----------------------------------------------------------------------------------

REPLICAS = 4
SHAPE = {
    "model.hidden_size": 64,
    "model.intermediate_size": 192,
    "model.num_layers": 2,
    "model.num_heads": 4,
    "model.num_kv_heads": 2,
    "model.head_dim": 16,
    "model.max_positions": 64,
    "training.sequence_length": 64,
    "training.batch_size": 8,
    "training.warmup_steps": 20,
    "swarm.inner_steps": STEPS,
}
# name, staleness, step of the next training at which the outcome is adopted
SCHEDULES = (
    ("staleness 0", 0, 0),
    ("staleness 1, agreed after 1/4 of the next training", 1, STEPS // 4),
    ("staleness 1, agreed at the end of the next training", 1, STEPS - 1),
)


class Swarm:
    """Four replicas that decide rounds without a network."""

    def __init__(self, seed: int, rounds: int, staleness: int, adopted_at: int) -> None:
        texts = [document.text for document in synthetic_documents(seed, 1_500)]
        tokenizer = train_tokenizer(texts[:300], 512)
        vocabulary, self.lengths_V = tokenizer.vocab_size, tokenizer.byte_lengths_V()
        overrides = {
            **SHAPE,
            "model.vocab_size": vocabulary,
            "data.vocab_size": vocabulary,
            "training.steps": rounds * STEPS,
            "swarm.staleness": staleness,
        }
        config = resolve(size="nano", overrides=overrides).config

        def batches(part: list[str]) -> Batches:
            tokens = [token for text in part for token in tokenizer.encode(text)]
            array = np.array(tokens, np.uint16)
            return Batches(ShardSet((array,), vocabulary, sum(map(len, part)), ""), 64)

        text, self.held_out = batches(texts[100:]), batches(texts[:100])
        self.replicas = []
        for _ in range(REPLICAS):
            model = Transformer(config.model)
            initialise(model, seed)
            self.replicas.append(
                AgreedReplica(
                    config, model, Transformer(config.model), initial_state(model), text,
                    self.held_out,
                )
            )  # fmt: skip
        self.seed, self.adopted_at, self.staleness = seed, adopted_at, staleness
        self.harm = config.swarm.harm_micronats
        self.number, self.harmful = 0, 0
        self.decided: AgreedState | None = None

    def round(self) -> float:
        """Decide a round; returns the held-out loss of the state it leads to."""
        number = self.number + 1
        made = [self._train(index, number) for index in range(REPLICAS)]
        for replica in self.replicas:
            self._adopt(replica)
        first = self.replicas[0]
        for contribution in made[1:]:
            _, score = first.check(contribution.blob, bytes((number,)) * 32)
            assert score is not None
            self.harmful += score < -self.harm
        blobs = [(bytes((index,)), one.blob) for index, one in enumerate(made)]
        outcome = first.apply(number, blobs, bytes((number,)) * 32)
        assert outcome is not None
        self.number, self.decided = number, outcome[0]
        if not self.staleness:
            for replica in self.replicas:
                self._adopt(replica)
        return self._loss(outcome[0])

    def _train(self, index: int, number: int) -> Contribution:
        replica, calls = self.replicas[index], 0

        def should_stop() -> bool:
            nonlocal calls
            if calls == self.adopted_at:
                self._adopt(replica)
            calls += 1
            return False

        made = replica.train(number, bytes((self.seed, number, index)) * 11, should_stop)
        assert made is not None
        return made

    def _adopt(self, replica: AgreedReplica) -> None:
        if self.decided is not None and replica.round < self.number:
            replica.move_to(self.number, self.decided, accepted=True)

    def _loss(self, state: AgreedState) -> float:
        first = self.replicas[0]
        kept, first.state = first.state, state
        found = evaluate(
            first.agreed_model(), self.held_out, sequences=64, byte_lengths_V=self.lengths_V
        )
        first.state = kept
        return found.loss_nats_per_token


def losses(seeds: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Run every schedule with every seed; returns losses by round, mean and spread at the end."""
    found: dict[str, dict[str, Any]] = {}
    for name, staleness, adopted_at in SCHEDULES:
        curves, harmful = [], 0
        for seed in range(1, seeds + 1):
            swarm = Swarm(seed, rounds, staleness, adopted_at)
            curves.append([swarm.round() for _ in range(rounds)])
            harmful += swarm.harmful
        shown = sorted({1, 2, 3, *range(5, rounds + 1, 5), rounds})
        found[name] = {
            "loss": {n: round(mean(curve[n - 1] for curve in curves), 3) for n in shown},
            "spread": round(stdev(c[-1] for c in curves), 3) if seeds > 1 else 0.0,
            "called_harmful": harmful,
            "scored": seeds * rounds * (REPLICAS - 1),
        }
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    used = [
        {
            "million_parameters": millions,
            "training_seconds": training,
            **{f"staleness_{n}": utilisation(n, millions, training) for n in (0, 1)},
        }
        for millions, training in MACHINES
    ]
    priced = losses(arguments.seeds, arguments.rounds)
    if arguments.json:
        print(json.dumps({"utilisation": used, "loss": priced}))
        return
    print("parameters  training   staleness 0             staleness 1")
    for row in used:
        cells = "   ".join(
            f"{100 * one['utilisation']:5.1f} %, round {one['round_seconds']:6.1f} s"
            for one in (row["staleness_0"], row["staleness_1"])
        )
        print(f"{row['million_parameters']:7.0f} M {row['training_seconds']:8.0f} s   {cells}")
    print("\nheld-out loss in nats a token after a round")
    for name, row in priced.items():
        print(name)
        print("   " + "  ".join(f"{n}: {loss:.3f}" for n, loss in row["loss"].items()))
        print(f"   spread over seeds {row['spread']:.3f}, ", end="")
        print(f"called harmful {row['called_harmful']} of {row['scored']}")


if __name__ == "__main__":
    main()

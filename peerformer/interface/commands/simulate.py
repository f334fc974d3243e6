"""`peerformer simulate`: the production peer in thousands of worlds made of seeds."""

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from peerformer.errors import ConfigError
from peerformer.interface.crowd import run_crowd
from peerformer.interface.exploration import explore
from peerformer.interface.learning import LearningOptions, flags_of, learning_of
from peerformer.interface.progress import duration
from peerformer.protocol.messages import MEMBERS_MAX
from peerformer.simulate.campaign import TWINS, Tally, collect_rarely, replay, run_seeds
from peerformer.simulate.explore import Explored
from peerformer.simulate.invariants import Violation
from peerformer.simulate.learning import Learning
from peerformer.simulate.plan import WORLDS, Plan, parse_adversaries
from peerformer.simulate.scenario import play, read
from peerformer.simulate.trace import tell
from peerformer.simulate.troubles import Outcome
from peerformer.simulate.twins import COUNT

SEEDS = {"toy": 2_000, "real": 2}
SEEDS_A_TASK = {"toy": 8, "real": 1}
WORLD = {"toy": "mixed", "real": "calm"}  # of real peers one wants to know what they learn
ROUNDS_CROWD = 20
PEERS_IN_TROUBLE_MAX = 64  # more are simulated without trouble, to see what they cost
ROUNDS_REAL = 8  # enough to see it learn
EVENTS_SHOWN = 30
SHOW_SECONDS = 1.0


def simulate(
    *,
    seeds: Annotated[
        int | None,
        Parameter(help=f"How many worlds: {SEEDS['toy']}, or {SEEDS['real']} real ones."),
    ] = None,
    first: Annotated[int, Parameter(help="The first seed.")] = 0,
    jobs: Annotated[int, Parameter(help="Processes.")] = 2,
    world: Annotated[
        str | None, Parameter(help=f"What goes wrong: {', '.join(WORLDS)}; real: calm.")
    ] = None,
    seed: Annotated[int | None, Parameter(help="Only the world of this seed.")] = None,
    trace: Annotated[bool, Parameter(negative=(), help="Tell its story.")] = False,
    replica: Annotated[Literal["toy", "real"], Parameter(help="What is trained.")] = "toy",
    adversaries: Annotated[
        str | None, Parameter(help='Who lies, such as "equivocate*1,silent*1".')
    ] = None,
    peers: Annotated[int | None, Parameter(help="Founders; else drawn from the seed.")] = None,
    twins: Annotated[
        bool, Parameter(negative=(), help="One key run twice; seeds are indices of all ways.")
    ] = False,
    story: Annotated[Path | None, Parameter(help="A scripted story instead of seeds.")] = None,
    rounds: Annotated[
        int | None, Parameter(help=f"The trouble ends with this round; real: {ROUNDS_REAL}.")
    ] = None,
    crowd: Annotated[
        bool, Parameter(negative=(), help="What a swarm of --peers costs each; above 64 always.")
    ] = False,
    exhaustive: Annotated[
        int | None, Parameter(help="All orders of messages through two views, for so many seconds.")
    ] = None,
    staleness: Annotated[
        int | None,
        Parameter(help="Rounds to train ahead, 0 or 1; else drawn from the seed, real in calm 0."),
    ] = None,
    audits: Annotated[
        float | None,
        Parameter(help="Share of contributions that auditors repeat; else drawn, or 0 for real."),
    ] = None,
    learning: LearningOptions = LearningOptions(),
    json_output: Annotated[bool, Parameter(name="--json", negative=(), help="One object.")] = False,
) -> int:
    """Run the protocol in worlds full of trouble, and check after every event what must hold."""
    numbers = {"--rounds": rounds, "--exhaustive": exhaustive, "--jobs": jobs, "--seeds": seeds}
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ConfigError(f"{name} is 1 or more")
    if exhaustive is not None:
        return _exhaust(exhaustive, jobs, json_output=json_output)
    if story is not None:
        return _story(story, trace=trace, json_output=json_output)
    plan = _plan(world or WORLD[replica], adversaries, peers, staleness)
    plan = replace(plan, learning=learning_of(learning, replica, peers))
    plan = replace(plan, audit_permille=_audits(audits, staleness, plan.learning))
    if crowd or (peers or 0) > PEERS_IN_TROUBLE_MAX:
        if trace or twins or replica != "toy" or plan != Plan(peers=peers):
            raise ConfigError("a crowd has no trouble", hint="only --peers, --rounds and --seed")
        chosen = first if seed is None else seed
        return _crowd(chosen, peers, rounds or ROUNDS_CROWD, json_output=json_output)
    seeds = SEEDS[replica] if seeds is None else seeds
    ends_with = ROUNDS_REAL if rounds is None and replica == "real" else rounds
    plan = replace(plan, rounds=ends_with, replica=replica)
    plan = replace(plan, staleness=0) if plan.is_cell and staleness is None else plan
    if twins:
        plan = _twins(plan, first + seeds if seed is None else seed + 1)
    if seed is not None:
        return _one(seed, plan, trace=trace, json_output=json_output)
    if trace:
        raise ConfigError("--trace tells the story of one world", hint="--seed N --trace")
    return _many(range(first, first + seeds), jobs, plan, json_output=json_output)


def _crowd(seed: int, peers: int | None, rounds: int, *, json_output: bool) -> int:
    """Find out what a swarm costs each of its peers as it grows."""
    if peers is None or peers > MEMBERS_MAX:
        raise ConfigError(
            f"a crowd needs --peers, up to {MEMBERS_MAX}", hint="--peers 1000 --rounds 20"
        )
    return run_crowd(seed, peers, rounds, json_output=json_output)


def _many(seeds: range, jobs: int, plan: Plan, *, json_output: bool) -> int:
    """Run a world of each seed until one breaks what must hold; 1 if one does."""
    began, tally = time.monotonic(), Tally()
    shown_at = 0.0
    for outcome in _outcomes(seeds, jobs, plan):
        tally.add(outcome)
        now = time.monotonic()
        if now - shown_at >= SHOW_SECONDS or tally.seeds == len(seeds):
            shown_at = now
            _show_progress(tally, len(seeds), now - began)
        if tally.violations:
            break
    print(file=sys.stderr)
    seconds = time.monotonic() - began
    if json_output:
        print(json.dumps(tally.as_json(seconds)))
    else:
        _print_table(tally, seconds)
    for violation in tally.violations:
        _explain(violation, plan)
    return 1 if tally.violations else 0


def _exhaust(seconds: int, jobs: int, *, json_output: bool) -> int:
    """Explore all orders of messages; 1 if one of them breaks what must hold."""

    def show(world: Explored) -> None:
        end = "all of them" if world.exhausted else "as far as the time went"
        print(
            f"leaders {world.configuration.leaders}  {world.states} states  {world.transitions} "
            f"transitions  depth {world.depth}  {end}",
            file=sys.stderr,
            flush=True,
        )

    result = explore(seconds=seconds, jobs=jobs, on_progress=show)
    found = {
        "states": sum(world.states for world in result.worlds),
        "transitions": sum(world.transitions for world in result.worlds),
        "depth": max(world.depth for world in result.worlds),
        "exhausted": result.exhausted,
        "violation": result.violation,
        "seconds": round(result.seconds, 1),
    }
    if json_output:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<22} {value}")
    return 1 if result.violation else 0


def _story(path: Path, *, trace: bool, json_output: bool) -> int:
    """Tell a story and its verdict, line by line; 1 if it did not go as written."""
    story = read(path)
    verdict = play(story)
    if json_output:
        found = [{"line": f.line, "text": f.text, "fault": f.fault} for f in verdict.findings]
        print(json.dumps({"danger": story.danger, "holds": verdict.holds, "findings": found}))
    else:
        print(story.danger)
        for finding in verdict.findings:
            mark, instead = ("ok", "") if finding.fault is None else ("FAILED", finding.fault)
            print(f"{mark:<6} {finding.line:>3}  {finding.text}{instead and ': ' + instead}")
    if trace:
        print(*tell(verdict.world), sep="\n")
    elif not verdict.holds:
        print(*tell(verdict.world, last=EVENTS_SHOWN), sep="\n", file=sys.stderr)
    return 0 if verdict.holds else 1


def _twins(plan: Plan, end: int) -> Plan:
    if plan != Plan():
        raise ConfigError(
            "--twins enumerates: it takes no --world, --adversaries, --peers, --rounds, --replica"
        )
    if end > COUNT:
        raise ConfigError(f"there are {COUNT} ways to run a key twice", hint="--first, --seeds")
    return Plan(TWINS)


def _plan(world: str, adversaries: str | None, peers: int | None, staleness: int | None) -> Plan:
    if world not in WORLDS:
        lines = "; ".join(f"{name}: {what}" for name, what in WORLDS.items())
        raise ConfigError(f"there is no world {world!r}", why=lines, hint="--world mixed")
    if peers is not None and peers < 1:
        raise ConfigError("--peers is 1 or more")
    if staleness not in (None, 0, 1):
        raise ConfigError("--staleness is 0 or 1")
    liars = parse_adversaries(adversaries) if adversaries is not None else None
    return Plan(world, liars, peers, staleness=staleness)


def _audits(share: float | None, staleness: int | None, learning: Learning | None) -> int | None:
    if share is None:
        return None
    if not 0 <= share <= 1:
        raise ConfigError("--audits is a share from 0 to 1")
    if share and (staleness or (learning is not None and learning.unlike)):
        raise ConfigError(
            "a training is repeated on the same text, and from the state that it departed from",
            hint="--audits without --staleness 1 and without --unlike",
        )
    return round(1_000 * share)


def _outcomes(seeds: range, jobs: int, plan: Plan) -> Iterator[Outcome]:
    size = SEEDS_A_TASK[plan.replica]
    tasks = [seeds[start : start + size] for start in range(0, len(seeds), size)]
    if jobs == 1:
        collect_rarely()
        for task in tasks:
            yield from run_seeds(task, plan)
        return
    spawned = get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawned, initializer=collect_rarely) as pool:
        waiting: set[Future[list[Outcome]]] = set()
        try:
            while tasks or waiting:
                while tasks and len(waiting) < 2 * jobs:
                    waiting.add(pool.submit(run_seeds, tasks.pop(0), plan))
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _show_progress(tally: Tally, seeds: int, seconds: float) -> None:
    rate = tally.seeds / seconds if seconds else 0.0
    left = duration((seeds - tally.seeds) / rate) if rate else "?"
    line = (
        f"{tally.seeds}/{seeds} worlds  {rate:.1f} a second  "
        f"{tally.rounds_decided} rounds decided  left {left}   "
    )
    end = "" if sys.stderr.isatty() else "\n"
    print(f"\r{line}" if not end else line, end=end, file=sys.stderr, flush=True)


def _print_table(tally: Tally, seconds: float) -> None:
    found = tally.as_json(seconds)
    del found["violations"]
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"view {view}: {count}" for view, count in value.items())
        elif isinstance(value, list):
            value = ", ".join("–" if bits is None else f"{bits:.2f}" for bits in value)
        print(f"{name.replace('_', ' '):<24} {value}")


def _explain(violation: Violation, plan: Plan) -> None:
    made, _ = replay(violation.seed, plan)
    print(f"\nseed {violation.seed} broke: {violation.invariant}", file=sys.stderr)
    print(f"  {violation.what}", file=sys.stderr)
    for line in (made.opening, *tell(made.world, last=EVENTS_SHOWN)):
        print(f"  {line}", file=sys.stderr)
    print(f"replay it: {replay_command(violation.seed, plan)}", file=sys.stderr)


def replay_command(seed: int, plan: Plan) -> str:
    """Return the one command that runs a world again."""
    words = ["peerformer", "simulate", "--seed", str(seed), "--trace"]
    if plan.kind == TWINS:
        words += ["--twins"]
    elif plan.kind != WORLD[plan.replica]:
        words += ["--world", plan.kind]
    if plan.peers is not None:
        words += ["--peers", str(plan.peers)]
    if plan.rounds is not None:
        words += ["--rounds", str(plan.rounds)]
    if plan.replica != "toy":
        words += ["--replica", plan.replica]
    if plan.staleness is not None:
        words += ["--staleness", str(plan.staleness)]
    if plan.adversaries is not None:
        liars = ",".join("+".join(attacks) for attacks in plan.adversaries)
        words += ["--adversaries", f'"{liars}"']
    if plan.audit_permille is not None:
        words += ["--audits", str(plan.audit_permille / 1_000)]
    if plan.learning is not None:
        words += flags_of(plan.learning)
    return " ".join(words)


def _one(seed: int, plan: Plan, *, trace: bool, json_output: bool) -> int:
    began = time.monotonic()
    made, outcome = replay(seed, plan)
    tally = Tally()
    tally.add(outcome)
    if trace:
        print(made.opening, *tell(made.world), sep="\n")
    if json_output:
        print(json.dumps(tally.as_json(time.monotonic() - began)))
    elif not trace:
        _print_table(tally, time.monotonic() - began)
    if outcome.violation is not None:
        print(f"broke: {outcome.violation}", file=sys.stderr)
        return 1
    return 0

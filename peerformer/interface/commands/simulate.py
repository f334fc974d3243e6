"""`peerformer simulate`: the production peer in thousands of worlds made of seeds."""

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Annotated, Literal

from cyclopts import Parameter

from peerformer.errors import ConfigError
from peerformer.interface.progress import duration
from peerformer.simulate.campaign import Tally, replay, run_seeds
from peerformer.simulate.invariants import Violation
from peerformer.simulate.trace import tell
from peerformer.simulate.troubles import WORLDS, Outcome, Plan, parse_adversaries

SEEDS = 2_000
SEEDS_A_TASK = 8
EVENTS_SHOWN = 30
SHOW_SECONDS = 1.0


def simulate(
    *,
    seeds: Annotated[int, Parameter(help="How many worlds.")] = SEEDS,
    first: Annotated[int, Parameter(help="The first seed.")] = 0,
    jobs: Annotated[int, Parameter(help="Processes.")] = 2,
    world: Annotated[str, Parameter(help=f"What goes wrong: {', '.join(WORLDS)}.")] = "mixed",
    seed: Annotated[int | None, Parameter(help="Only the world of this seed.")] = None,
    trace: Annotated[bool, Parameter(negative=(), help="Tell its story.")] = False,
    replica: Annotated[Literal["toy", "real"], Parameter(help="What is trained.")] = "toy",
    adversaries: Annotated[
        str | None, Parameter(help='Who lies, such as "equivocate*1,silent*1".')
    ] = None,
    peers: Annotated[int | None, Parameter(help="Founders; else drawn from the seed.")] = None,
    staleness: Annotated[
        int | None, Parameter(help="Rounds to train ahead, 0 or 1; else drawn from the seed.")
    ] = None,
    json_output: Annotated[bool, Parameter(name="--json", negative=(), help="One object.")] = False,
) -> int:
    """Run the protocol in worlds full of trouble, and check after every event what must hold."""
    plan = _plan(world, adversaries, peers, staleness)
    if seed is not None:
        return _one(seed, plan, trace=trace, json_output=json_output)
    if trace:
        raise ConfigError("--trace tells the story of one world", hint="--seed N --trace")
    if seeds < 1 or jobs < 1:
        raise ConfigError("--seeds and --jobs are 1 or more")
    began, tally = time.monotonic(), Tally()
    shown_at = 0.0
    for outcome in _outcomes(first, seeds, jobs, plan):
        tally.add(outcome)
        now = time.monotonic()
        if now - shown_at >= SHOW_SECONDS or tally.seeds == seeds:
            shown_at = now
            _show_progress(tally, seeds, now - began)
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


def _plan(world: str, adversaries: str | None, peers: int | None, staleness: int | None) -> Plan:
    if world not in WORLDS:
        lines = "; ".join(f"{name}: {what}" for name, what in WORLDS.items())
        raise ConfigError(f"there is no world {world!r}", why=lines, hint="--world mixed")
    if peers is not None and not 1 <= peers <= 64:
        raise ConfigError("--peers is 1 to 64 here")
    if staleness not in (None, 0, 1):
        raise ConfigError("--staleness is 0 or 1")
    liars = parse_adversaries(adversaries) if adversaries is not None else None
    return Plan(world, liars, peers, staleness=staleness)


def _outcomes(first: int, seeds: int, jobs: int, plan: Plan) -> Iterator[Outcome]:
    tasks = [
        range(start, min(start + SEEDS_A_TASK, first + seeds))
        for start in range(first, first + seeds, SEEDS_A_TASK)
    ]
    if jobs == 1:
        for task in tasks:
            yield from run_seeds(task, plan)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
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
        print(f"{name.replace('_', ' '):<22} {value}")


def _explain(violation: Violation, plan: Plan) -> None:
    troubled, _ = replay(violation.seed, plan)
    print(f"\nseed {violation.seed} broke: {violation.invariant}", file=sys.stderr)
    print(f"  {violation.what}", file=sys.stderr)
    for line in tell(troubled.world, last=EVENTS_SHOWN):
        print(f"  {line}", file=sys.stderr)
    print(f"replay it: {replay_command(violation.seed, plan)}", file=sys.stderr)


def replay_command(seed: int, plan: Plan) -> str:
    """Return the one command that runs a world again."""
    words = ["peerformer", "simulate", "--seed", str(seed), "--trace"]
    if plan.kind != "mixed":
        words += ["--world", plan.kind]
    if plan.peers is not None:
        words += ["--peers", str(plan.peers)]
    if plan.staleness is not None:
        words += ["--staleness", str(plan.staleness)]
    if plan.adversaries is not None:
        liars = ",".join("+".join(attacks) for attacks in plan.adversaries)
        words += ["--adversaries", f'"{liars}"']
    return " ".join(words)


def _one(seed: int, plan: Plan, *, trace: bool, json_output: bool) -> int:
    began = time.monotonic()
    troubled, outcome = replay(seed, plan)
    tally = Tally()
    tally.add(outcome)
    if trace:
        liars = {h.index: "+".join(h.attacks) for h in troubled.world.hosts if h.attacks}
        print(f"{troubled.size} founders, {len(troubled.spares)} more; liars: {liars or 'none'}")
        for line in tell(troubled.world):
            print(line)
    if json_output:
        print(json.dumps(tally.as_json(time.monotonic() - began)))
    elif not trace:
        _print_table(tally, time.monotonic() - began)
    if outcome.violation is not None:
        print(f"broke: {outcome.violation}", file=sys.stderr)
        return 1
    return 0

"""The bench's thread: training gives way to other works, and a later training ends it."""

import threading
from collections.abc import Callable

from peerformer.node.worker import Worker
from peerformer.protocol.effects import (
    Audited,
    Check,
    Checked,
    Repeat,
    Train,
    Trained,
    Work,
    WorkFinished,
)

STEPS = 20


class Bench:
    """A participant whose training takes `STEPS` steps; works are ordered in between."""

    def __init__(self, between: Callable[[int, int], None]) -> None:
        self.between = between  # (round, step)
        self.order: list[str] = []

    def perform(self, work: Work, should_stop: Callable[[], bool] = lambda: False) -> WorkFinished:
        if not isinstance(work, Train):
            if isinstance(work, Repeat):
                return self.audit(work, should_stop)
            assert isinstance(work, Check)
            self.order.append(f"check {work.round}")
            return WorkFinished(work, Checked(None, None))
        for step in range(STEPS):
            self.between(work.round, step)
            if should_stop():
                self.order.append(f"stopped {work.round} at {step}")
                return WorkFinished(work, None)
            self.order.append(f"step {work.round}.{step}")
        return WorkFinished(work, Trained(bytes(32), 1, bytes(32), 1))

    def audit(self, work: Repeat, should_stop: Callable[[], bool]) -> WorkFinished:
        for step in range(STEPS):
            self.between(-work.round, step)
            if should_stop():
                return WorkFinished(work, Audited(None, "stopped"))
            self.order.append(f"audit {work.round}.{step}")
        return WorkFinished(work, Audited(True, ""))


def run(works: list[Work], ordered: dict[tuple[int, int], list[Work]]) -> tuple[Bench, list[Work]]:
    """Order `works`, and `ordered` at (round, step); returns when nothing is left to do."""
    finished: list[WorkFinished] = []
    awaited = len(works) + sum(len(more) for more in ordered.values())
    over = threading.Event()

    def note(done: WorkFinished) -> None:
        finished.append(done)
        if len(finished) == awaited:
            over.set()

    def between(number: int, step: int) -> None:
        for work in ordered.get((number, step), ()):
            worker.submit(work)

    bench = Bench(between)
    worker = Worker(bench, note, lambda error: over.set(), threads=1)  # type: ignore[arg-type]
    for work in works:
        worker.submit(work)
    assert over.wait(30) and worker.stop()
    results = [done.result for done in finished if isinstance(done.result, Trained)]
    assert all(result.seconds is not None and result.seconds >= 0 for result in results)
    return bench, [done.work for done in finished]


def train(number: int) -> Train:
    return Train(number, bytes(32))


def check(number: int) -> Check:
    return Check(number, bytes(32), bytes(32), 1, None)


def test_a_work_ordered_while_training_waits_for_one_step_and_not_for_the_training() -> None:
    bench, done = run([train(2)], {(2, 3): [check(1)], (2, 9): [check(1), check(1)]})
    assert bench.order[3:5] == ["check 1", "step 2.3"] and bench.order[10] == "check 1"
    assert [work for work in done if isinstance(work, Train)] == [done[-1]]
    assert bench.order[-1] == f"step 2.{STEPS - 1}"


def test_a_later_training_ends_the_one_in_hand_and_keeps_its_place_in_the_order() -> None:
    """What was ordered before it is done before it, what was ordered after it after."""
    bench, _ = run([train(1)], {(1, 2): [check(1), train(2), check(2)]})
    assert bench.order[2:5] == ["check 1", "stopped 1 at 2", "check 2"]
    assert bench.order[5] == "step 2.0" and bench.order[-1] == f"step 2.{STEPS - 1}"


def repeat(number: int) -> Repeat:
    return Repeat(number, bytes(32), bytes(32), bytes(32), bytes(32))


def test_an_audit_waits_until_nothing_else_is_to_be_done() -> None:
    bench, _ = run([train(2)], {(2, 0): [repeat(1), check(1)], (2, 5): [check(2)]})
    last = bench.order.index(f"step 2.{STEPS - 1}")
    audits = [index for index, what in enumerate(bench.order) if what.startswith("audit")]
    assert len(audits) == STEPS and min(audits) > last


def test_an_audit_whose_finding_is_due_goes_before_the_training_of_that_round() -> None:
    """Also one that began before, with all else beside it; and a later training ends the wait."""
    bench, _ = run([train(2)], {(2, 1): [repeat(1), repeat(2), train(3)]})
    ended = bench.order.index(f"audit 1.{STEPS - 1}")
    assert bench.order.index("step 3.0") == ended + 1
    assert bench.order.index("audit 2.0") > bench.order.index(f"step 3.{STEPS - 1}")
    bench, _ = run([repeat(1)], {(-1, 4): [train(3), check(3)], (3, 2): [check(4)]})
    assert bench.order[4:6] == ["check 3", "audit 1.4"]
    assert bench.order.index("step 3.0") == bench.order.index(f"audit 1.{STEPS - 1}") + 1
    bench, done = run([repeat(1)], {(-1, 4): [train(3)], (-1, 6): [check(3), train(4), check(4)]})
    assert bench.order[6] == "check 3" and bench.order[7:9] == ["stopped 3 at 0", "check 4"]
    assert bench.order[9] == "step 4.0" and [one.round for one in done][1:] == [1, 3, 4, 4]


def test_an_audit_gives_way_to_a_training_and_then_goes_on() -> None:
    bench, done = run([repeat(3)], {(-3, 4): [check(1), train(2), repeat(4)], (2, 3): [train(3)]})
    assert bench.order[4] == "check 1" and bench.order[5] == "step 2.0"
    ended = bench.order.index(f"step 3.{STEPS - 1}")
    assert "stopped 2 at 3" in bench.order[5:ended]
    assert bench.order[ended + 1 : ended + 3] == ["audit 3.4", "audit 3.5"]
    assert [work.round for work in done if isinstance(work, Repeat)] == [3, 4]


def test_a_work_ordered_within_a_step_is_done_within_it() -> None:
    seen: list[list[str]] = []

    def in_a_step(number: int, step: int) -> None:
        if step == 4:
            worker.submit(check(number))
            worker.between_layers()
            seen.append(list(bench.order))

    over = threading.Event()
    bench = Bench(in_a_step)
    worker = Worker(
        bench,  # type: ignore[arg-type]
        lambda done: over.set() if isinstance(done.work, Train) else None,
        lambda error: over.set(),
        threads=1,
    )
    worker.submit(train(1))
    assert over.wait(30) and worker.stop()
    assert seen == [["step 1.0", "step 1.1", "step 1.2", "step 1.3", "check 1"]]

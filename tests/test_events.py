import dataclasses
import json
import math
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest

from peerformer import events
from peerformer.errors import DataError
from peerformer.events import StepDone, Trained, decode_event, encode_event
from peerformer.journal import LINE_BYTES_MAX, Journal, read_journal

NOON = datetime(2026, 11, 24, 12, 0, 0, 250_000, tzinfo=UTC)
STEP = StepDone(step=1, loss=2.5, learning_rate=1e-3, tokens_per_second=900.0, gradient_norm=0.5)
EXAMPLES = {
    bool: True,
    int: 3,
    float: 0.25,
    str: "amber-finch",
    float | None: None,
    tuple[str, ...]: ("aa", "bb"),
    tuple[float, ...]: (0.75, 0.25),
    tuple[tuple[str, float], ...]: (("experts_least", 0.5),),
}


def example(kind):
    fields = [f for f in msgspec.structs.fields(kind) if f.name != "time"]
    return kind(**{f.name: EXAMPLES[f.type] for f in fields})


@pytest.mark.parametrize("kind", events.Event.__args__)
def test_every_event_survives_the_journal_and_can_be_told_by_its_tag(tmp_path, kind):
    path = tmp_path / "journal.jsonl"
    event = example(kind)
    with Journal(path, lambda: NOON) as journal:
        stamped = journal.append(event)
    assert list(read_journal(path)) == [stamped]
    assert msgspec.structs.replace(stamped, time="") == event
    line = json.loads(path.read_text())
    assert line["event"] == kind.__struct_config__.tag and line["event"].islower()
    assert line["time"] == "2026-11-24T12:00:00.250Z"


def test_no_two_events_share_a_tag():
    tags = [kind.__struct_config__.tag for kind in events.Event.__args__]
    assert len(set(tags)) == len(tags)
    assert "step_done" in tags and "round_committed" in tags


def test_the_time_written_is_utc_whatever_the_clock_shows(tmp_path):
    kathmandu = NOON.astimezone(timezone(timedelta(hours=5, minutes=45)))
    with Journal(tmp_path / "j", lambda: kathmandu) as journal:
        assert journal.append(STEP).time == "2026-11-24T12:00:00.250Z"


def test_each_line_is_on_disk_before_the_next_is_written(tmp_path):
    path = tmp_path / "runs" / "new" / "journal.jsonl"
    with Journal(path, lambda: NOON) as journal:
        for number in range(1, 4):
            journal.append(STEP)
            assert len(list(read_journal(path))) == number


def test_a_torn_last_line_is_skipped_and_cut_off_when_writing_goes_on(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path, lambda: NOON) as journal:
        first = journal.append(STEP)
        second = journal.append(Trained(round=1, loss=2.0, seconds=1.5, tokens=4096))
    whole = path.read_bytes()
    second_start = whole.index(b"\n") + 1
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        # All but its newline is on disk: the event is whole.
        kept = (length >= second_start - 1) + (length >= len(whole) - 1)
        expected = [first, second][:kept]
        assert list(read_journal(path)) == expected, length
        with Journal(path, lambda: NOON) as journal:
            third = journal.append(STEP)
        assert list(read_journal(path)) == [*expected, third], length


def test_a_damaged_line_in_the_middle_is_named_by_its_number(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(encode_event(STEP) + b"\n{]\n" + encode_event(STEP) + b"\n")
    with pytest.raises(DataError, match="line 2 of the journal"):
        list(read_journal(path))
    path.write_bytes(b"x" * (LINE_BYTES_MAX + 1))
    with pytest.raises(DataError, match="line 1 of the journal"):
        list(read_journal(path))


def test_an_unknown_event_or_field_is_refused(tmp_path):
    for line in (b'{"event":"unheard_of"}', encode_event(STEP)[:-1] + b',"extra":1}', b"[]", b"1"):
        with pytest.raises(msgspec.ValidationError):
            decode_event(line)


def test_a_journal_that_is_not_there_or_cannot_be_written_is_a_plain_failure(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        list(read_journal(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="cannot be written"):
        Journal(tmp_path, lambda: NOON)


def test_a_loss_that_is_not_a_number_reads_back_so():
    diverged = StepDone(1, math.nan, 1e-3, 900.0, math.nan)
    back = decode_event(encode_event(diverged))
    assert isinstance(back, StepDone) and math.isnan(back.loss) and math.isnan(back.gradient_norm)
    assert back.learning_rate == 1e-3
    assert decode_event(encode_event(example(events.RoundCommitted))).bits_per_byte is None


def test_events_are_values():
    with pytest.raises(AttributeError):
        STEP.step = 2
    assert not dataclasses.is_dataclass(STEP) and hash(STEP) == hash(msgspec.structs.replace(STEP))

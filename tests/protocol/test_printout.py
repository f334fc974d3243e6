"""The print-out of a machine: what parts share stays shared, and damage is one clear error."""

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from peerformer.protocol import printout
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.identity import hash_of
from peerformer.protocol.machine import Machine
from peerformer.protocol.printout import from_text, to_text
from peerformer.simulate.world import World

SEED = hash_of("test printout")


def printed() -> tuple[str, bytes, Machine]:
    """The print-out of a machine that voted on a few rounds, its seed, and the machine."""
    world = World(7, 4, attacks={0: "silent"})
    world.start()
    machine = world.hosts[1].machine
    assert machine is not None
    voting = lambda: world.tip(1) >= 2 and len(machine.collection.attestations) >= 3  # noqa: E731
    assert world.run(seconds=60, until=voting)
    return to_text(machine), world.hosts[1].seed, machine


TEXT, KEY_SEED, MACHINE = printed()


def again(document: dict[str, Any]) -> str:
    """A document as text whose digest fits, as if somebody had edited it with care."""
    document["digest"] = printout._digest(document["machine"])
    return json.dumps(document)


def test_what_parts_share_they_share_after_restoring() -> None:
    machine = from_text(TEXT, seed=KEY_SEED)
    assert machine.sync.chain is machine.chain is machine.ballot.headers.chain
    assert machine.ballot.outbox is machine.outbox is machine.collection.outbox
    assert machine.ballot.headers.operations is machine.requests.operations
    assert machine.collection.alive.__self__ is machine.company  # type: ignore[attr-defined]
    assert machine.keys is machine.outbox.keys
    assert machine.neighbourhood._noted is machine.chain.members
    assert machine.ballot.timing is machine.timing
    assert machine.timing.trains.maxlen == MACHINE.timing.trains.maxlen


def test_a_print_out_reads_well() -> None:
    shown = json.loads(TEXT)["machine"]
    assert shown["sync"]["chain"] == "same as machine.chain"
    assert shown["collection"]["alive"] == "machine.company.alive"
    assert shown["keys"] == {"peer_id": MACHINE.me.hex()}
    assert shown["chain"]["items"][0]["header"]["round"] == 1
    assert all(len(line) < 1_000 for line in TEXT.splitlines())


def test_the_print_out_of_a_fresh_machine_is_a_fresh_machine() -> None:
    machine = Machine(MACHINE.genesis, SEED, now=5)
    text = to_text(machine)
    assert to_text(from_text(text, seed=SEED)) == text


def test_a_print_out_is_of_one_key_only() -> None:
    with pytest.raises(MalformedError, match="another key"):
        from_text(TEXT, seed=SEED)


def says_the_same(text: str) -> bool:
    """Whether a text is another spelling of the print-out: `-0` for ` 0`, a digit too many."""
    try:
        return bool(json.loads(text) == json.loads(TEXT))
    except ValueError:
        return False


def test_damage_is_noticed_wherever_it_is() -> None:
    seed = Random().getrandbits(32)
    print("seed", seed)
    random = Random(seed)
    for _ in range(150):
        place = random.randrange(len(TEXT) - 1)
        other = random.choice('0123456789abcdefxyz[]{}",:-')
        damaged = TEXT[:place] + other + TEXT[place + 1 :]
        if other == TEXT[place] or says_the_same(damaged):
            continue
        with pytest.raises(MalformedError):
            from_text(damaged, seed=KEY_SEED)
        with pytest.raises(MalformedError):
            from_text(TEXT[:place], seed=KEY_SEED)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", '"machine"', "[" * 100_000, '{"machine": NaN}', "\ud800",
             '{"machine": "\\ud800"}', '{"machine": {}}', '{"machine": 1' + "0" * 5_000 + "}"],
    ids=range(11),
)  # fmt: skip
def test_what_is_no_print_out_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        from_text(text, seed=KEY_SEED)


def places_in(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a JSON document."""
    yield path
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from places_in(value, (*path, key))


JUNK = (
    None, True, -1, 1 << 70, 0.5, "", "zz", "ff", "same as machine", "same as machine.chain",
    "machine.handle", "machine.company.alive", "machine.chain.tip", [], [[]], [None, None], {},
    {"said": 1}, {"peer_id": "00"}, {"anchor": "00", "length": 1 << 60}, [["00", 1], ["00", 1]],
    "os.system",
)  # fmt: skip


def test_whatever_stands_in_a_print_out_is_taken_or_refused_but_never_crashes() -> None:
    seed = Random().getrandbits(32)
    print("seed", seed)
    random = Random(seed)
    places = list(places_in(json.loads(TEXT)["machine"]))[1:]
    refused = 0
    for _ in range(400):
        document = json.loads(TEXT)
        path = random.choice(places)
        inside: Any = document["machine"]
        for key in path[:-1]:
            inside = inside[key]
        match random.randrange(3):
            case 0 if isinstance(inside, dict):
                del inside[path[-1]]
            case 1 if isinstance(inside, dict):
                inside["more"] = random.choice(JUNK)
            case _:
                inside[path[-1]] = random.choice(JUNK)
        try:
            machine = from_text(again(document), seed=KEY_SEED)
        except MalformedError as error:
            refused += 1
            assert str(error).startswith("machine"), error  # it names the place
        else:
            assert type(machine) is Machine and to_text(machine)
    assert refused > 200


def test_no_class_is_built_and_nothing_called_that_the_text_names() -> None:
    for name in ("machine.handle", "machine.unpack", "os.system", "machine.genesis.from_bytes"):
        document = json.loads(TEXT)
        document["machine"]["collection"]["alive"] = name
        with pytest.raises(MalformedError, match=r"machine\.collection\.alive"):
            from_text(again(document), seed=KEY_SEED)


def test_state_that_is_not_declared_is_not_forgotten_silently() -> None:
    machine = from_text(TEXT, seed=KEY_SEED)
    machine.chain.mood = "new"  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="mood"):
        to_text(machine)

"""A certificate can be checked by anybody who holds the genesis, with our code or with other."""

import ast
import copy
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from peerformer.protocol import codec
from peerformer.protocol.chain import Base
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.light_client import (
    LightClient,
    RoundCertificate,
    RoundEvidence,
    certificate_file_fault,
    read_document,
    show_document,
)
from peerformer.protocol.membership import Departed, Members, next_members, quorum, subject_of
from peerformer.protocol.messages import (
    MEMBERS_MAX,
    STATEMENTS,
    Commit,
    Departure,
    Envelope,
    Leave,
    PeerRecord,
    QuorumCertificate,
    sign,
    signed_bytes,
)
from peerformer.protocol.ticket import Ticket
from peerformer.simulate.world import World

SEED, ROUNDS = 5, 3
HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "certificates.md").read_text()


def load_verifier() -> Any:
    spec = importlib.util.spec_from_file_location("verifier", HERE / "independent_verifier.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tables() -> dict[str, list[tuple[str, str]]]:
    """The tables of the page: record -> its fields with their layouts."""
    found: dict[str, list[tuple[str, str]]] = {}
    rows: list[tuple[str, str]] = []
    for line in PAGE.splitlines():
        if line.startswith("#"):
            rows = found.setdefault(line.strip("# `"), [])
        elif line.startswith("| `"):
            name, layout = (cell.strip(" `") for cell in line.split("|")[1:3])
            rows.append((name, layout))
    return found


VERIFIER, TABLES = load_verifier(), tables()


@pytest.fixture(scope="module")
def world() -> World:
    """A swarm of seven that decided some rounds."""
    print("seed", SEED)
    made = World(SEED, 7)
    made.start()
    assert made.run(seconds=300, until=lambda: made.tip(0) >= ROUNDS)
    return made


def of_round(world: World, number: int) -> RoundCertificate:
    """The certificate of a round, as `peerformer log --certificate` makes it."""
    client = LightClient(world.genesis, frozenset({number}))
    disk = world.hosts[0].disk.records
    records = [(key, disk[key]) for key in sorted(disk) if key.startswith("header/")]
    assert client.follow(records) is None
    return client.certificate_of(number)


def ours(document: dict[str, Any], genesis: Genesis) -> str | None:
    """What our own light client has against a certificate."""
    try:
        certificate = read_document(document)
    except MalformedError as error:
        return str(error)
    assert isinstance(certificate, RoundCertificate)
    fault = certificate_file_fault(certificate, genesis)
    return fault.what if fault else None


def theirs(document: dict[str, Any], genesis: Genesis) -> Exception | None:
    """What the independent verifier has against it."""
    try:
        VERIFIER.verify(json.dumps(document), genesis.to_bytes(), TABLES)
    except Exception as error:  # a wrong signature has its own exception, a missing key another
        return error
    return None


@pytest.mark.parametrize("number", [1, ROUNDS])
def test_a_certificate_holds_by_our_code_and_by_other_that_follows_the_page(
    world: World, number: int
) -> None:
    document = show_document(of_round(world, number))
    assert ours(document, world.genesis) is None and theirs(document, world.genesis) is None
    other = replace(world.genesis, name=b"another")
    assert "belongs to chain" in str(ours(document, other)) and theirs(document, other)


@pytest.mark.parametrize(
    "attacks", [{6: "equivocate"}, {5: "garbage", 6: "false-ok"}], ids=["contradiction", "holding"]
)
def test_a_round_that_evicts_holds_by_both(attacks: dict[int, str | tuple[str, ...]]) -> None:
    print("seed", SEED)
    world = World(SEED, 7, attacks=attacks)
    world.start()
    liars = {world.hosts[index].keys.peer_id for index in attacks}

    def evicting() -> dict[int, set[bytes]]:
        peer = world.hosts[0].peer
        assert peer is not None
        headers = [item.header for item in peer.machine.chain.items]
        return {h.round: {subject_of(o) for o in h.operations} for h in headers if h.operations}

    assert world.run(seconds=300, until=lambda: set().union(*evicting().values()) == liars)
    for number in evicting():
        document = show_document(of_round(world, number))
        assert ours(document, world.genesis) is None and theirs(document, world.genesis) is None


Tamper = Callable[[dict[str, Any]], object]


def set_in(*path: Any, value: Any) -> Tamper:
    """Change one place of a certificate's JSON; `value` may be made from what is there."""

    def change(document: dict[str, Any]) -> None:
        inner: Any = document
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value(inner[path[-1]]) if callable(value) else value

    return change


def flipped(text: str) -> str:
    data = bytes.fromhex(text)
    return (bytes([data[0] ^ 1]) + data[1:]).hex()


def set_signers(change: Callable[[int], int]) -> Tamper:
    def set_bits(text: str) -> str:
        bits = change(int.from_bytes(bytes.fromhex(text), "little"))
        return bits.to_bytes(len(text) // 2, "little").hex()

    return set_in("certificate", "signers", value=set_bits)


def rehash(document: dict[str, Any]) -> None:
    """Make the hashes follow from what they are of, as a forger without keys can."""
    read = read_document({"round_certificate": document})
    assert isinstance(read, RoundCertificate)
    header = replace(read.header, members_hash=read.members.hash)
    document["header"]["members_hash"] = read.members.hash.hex()
    document["certificate"]["digest"] = header.digest.hex()


def with_hashes(tamper: Tamper) -> Tamper:
    def change(document: dict[str, Any]) -> None:
        tamper(document)
        rehash(document)

    return change


def one_signer_twice(document: dict[str, Any]) -> None:
    votes = document["certificate"]
    votes["signatures"][1] = votes["signatures"][0]


LEAVE = {"sender": "00" * 32, "kind": 8, "body": "00" * 8, "signature": "00" * 64}
TAMPERED: dict[str, Tamper] = {
    "signature": set_in("certificate", "signatures", 2, value=flipped),
    "signature missing": set_in("certificate", "signatures", value=lambda s: s[:-1]),
    "signatures swapped": set_in("certificate", "signatures", value=lambda s: s[::-1]),
    "signer bit moved": set_signers(lambda bits: (bits & bits - 1) | (bits + 1 & ~bits)),
    "signer bit more": set_signers(lambda bits: bits | (bits + 1)),
    "signer bit beyond the voters": set_signers(lambda bits: bits | 0x80),
    "signers longer": set_in("certificate", "signers", value=lambda s: s + "00"),
    "signer twice": one_signer_twice,
    "state root": set_in("header", "state_root", value=flipped),
    "state root, hashes": with_hashes(set_in("header", "state_root", value=flipped)),
    "parent": set_in("header", "parent", value=flipped),
    "parent, hashes": with_hashes(set_in("header", "parent", value=flipped)),
    "header round": set_in("header", "round", value=lambda n: n + 1),
    "operations": set_in("header", "operations", value=[{"departure": {"leave": LEAVE}}]),
    "attesters": set_in("header", "attesters", value=flipped),
    "contributions": set_in("header", "contributions", value=lambda c: c[:-1]),
    "contributions, hashes": with_hashes(set_in("header", "contributions", value=[])),
    "member's key": set_in("members", "members", 1, "peer", value=flipped),
    "member's key, hashes": with_hashes(set_in("members", "members", 1, "peer", value=flipped)),
    "member's standing": set_in("members", "members", 1, "reputation", value=1_000),
    "member missing": set_in("members", "members", value=lambda m: m[:-1]),
    "member missing, hashes": with_hashes(set_in("members", "members", value=lambda m: m[:-1])),
    "guest": set_in("members", "members", 0, "role", value=1),
    "banned": set_in("members", "banned", value=lambda b: [*b, "ff" * 32]),
    "view": set_in("certificate", "view", value=lambda v: v + 1),
    "prepares": set_in("certificate", "commits", value=False),
    "certificate round": set_in("certificate", "round", value=lambda n: n + 1),
    "digest": set_in("certificate", "digest", value=flipped),
    "chain": set_in("chain_id", value=flipped),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_certificate_is_refused_by_both(world: World, what: str) -> None:
    document = show_document(of_round(world, ROUNDS))
    before = copy.deepcopy(document)
    TAMPERED[what](document["round_certificate"])
    assert document != before
    assert ours(document, world.genesis) and theirs(document, world.genesis)


def forged(world: World, keys: list[KeyPair]) -> RoundCertificate:
    """A certificate that is right in itself, of voters that somebody made up.

    A quorum of them signs, in the order of `keys`.
    """
    real = of_round(world, ROUNDS)
    template = real.members.get(real.header.builder)
    assert template is not None
    signing = [*keys[: quorum(len(keys))], *[None] * (len(keys) - quorum(len(keys)))]
    rows = sorted(zip(keys, signing, strict=True), key=lambda row: row[0].peer_id)
    members = Members(tuple(replace(template, peer=key.peer_id) for key, _ in rows), ())
    header = replace(
        real.header,
        members_hash=members.hash,
        builder=keys[0].peer_id,
        attesters=b"\0",
        operations=(),
    )
    header = replace(
        header, next_members_hash=next_members(members, header, world.genesis.limits).hash
    )
    vote, chain_id = Commit(header.round, 0, header.digest), world.genesis.chain_id
    signatures = tuple(sign(signer, chain_id, vote).signature for _, signer in rows if signer)
    bits = sum(1 << index for index, (_, signer) in enumerate(rows) if signer)
    certificate = QuorumCertificate(
        True, vote.round, vote.view, vote.digest, bits.to_bytes(1, "little"), signatures
    )
    return RoundCertificate(chain_id, members, header, certificate)


@pytest.mark.parametrize("founding", range(5))
def test_voters_that_somebody_made_up_are_refused_unless_more_founders_sign_than_may_lie(
    world: World, founding: int
) -> None:
    assert len(world.genesis.founders) == 7  # of whom two may lie
    strangers = [KeyPair.from_seed(bytes([number]) * 32) for number in range(1, 8 - founding)]
    founders = [host.keys for host in world.hosts[:founding]]
    document = show_document(forged(world, [*founders, *strangers]))
    if founding > 2:
        assert ours(document, world.genesis) is None and theirs(document, world.genesis) is None
    else:
        assert f"{founding} of 7 founders" in str(ours(document, world.genesis))
        assert isinstance(theirs(document, world.genesis), AssertionError)


def test_a_founder_that_lists_itself_seven_times_is_no_quorum(world: World) -> None:
    document = show_document(forged(world, [world.hosts[0].keys] * 7))
    assert "members repeated" in str(ours(document, world.genesis))
    assert isinstance(theirs(document, world.genesis), AssertionError)


@pytest.mark.parametrize("round_number", [ROUNDS, 2**64 - 1])
def test_numbers_and_counts_that_no_chain_reaches_are_a_fault_and_no_crash(
    world: World, round_number: int
) -> None:
    document = show_document(of_round(world, ROUNDS))
    inner = document["round_certificate"]
    for member in inner["members"]["members"]:
        member["idle_rounds"], member["quarantined_until"] = 2**32 - 1, 2**64 - 1
    inner["header"]["round"], inner["header"]["attesters"] = round_number, "00"
    rehash(inner)
    assert "malformed" in str(ours(document, world.genesis))
    inner["members"]["banned"] = [f"{number:064x}" for number in range(MEMBERS_MAX)]
    rehash(inner)
    assert "more of the banned" in str(ours(document, world.genesis))


def test_one_more_departed_than_a_swarm_can_have_is_a_fault_and_no_crash(world: World) -> None:
    real = of_round(world, ROUNDS)
    keys = next(h.keys for h in world.hosts if h.keys.peer_id == real.members.voters[0])
    leave = sign(keys, world.genesis.chain_id, Leave(ROUNDS))
    departed = tuple(Departed(number.to_bytes(32, "big"), ROUNDS) for number in range(MEMBERS_MAX))
    members = replace(real.members, departed=departed)
    header = replace(real.header, members_hash=members.hash, operations=(Departure(leave),))
    document = show_document(replace(real, members=members, header=header))
    assert "more departures than can be remembered" in str(ours(document, world.genesis))


def test_a_statement_that_does_not_decode_is_a_fault_and_no_crash(world: World) -> None:
    real = of_round(world, ROUNDS)
    keys = next(h.keys for h in world.hosts if h.keys.peer_id == real.members.voters[0])
    body = b"short"
    message = signed_bytes(world.genesis.chain_id, STATEMENTS.index(Leave), body)
    leave = Envelope(keys.peer_id, STATEMENTS.index(Leave), body, keys.sign(message))
    header = replace(real.header, operations=(Departure(leave),))
    document = show_document(replace(real, header=header))
    assert "malformed" in str(ours(document, world.genesis))


# --- the page ------------------------------------------------------------------------------------


def layout_of(kind: Any) -> str:
    """An annotation in the words of the page."""
    if get_origin(kind) is Annotated:
        inner, layout = get_args(kind)[:2]
        match layout:
            case codec.Integer(size_bytes, signed):
                return f"{'i' if signed else 'u'}{8 * size_bytes}"
            case codec.Exactly(length):
                return f"bytes{length}"
            case codec.AtMost():
                return "bytes"
            case codec.Many():
                return f"list of {layout_of(get_args(inner)[0])}"
            case codec.OneOf(classes):
                return "one of " + ", ".join(one.__name__ for one in classes)
    if NoneType in get_args(kind):
        [some] = [option for option in get_args(kind) if option is not NoneType]
        return f"optional {layout_of(some)}"
    return "flag" if kind is bool else str(kind.__name__)


def records_under(kind: Any) -> Iterator[type]:
    """A record and every record within it."""
    if is_dataclass(kind) and isinstance(kind, type):
        yield kind
        for hint in get_type_hints(kind, include_extras=True).values():
            yield from records_under(hint)
    elif get_origin(kind) is Annotated:
        inner, layout = get_args(kind)[:2]
        for part in layout.classes if isinstance(layout, codec.OneOf) else get_args(inner):
            yield from records_under(part)


DESCRIBED = sorted(
    {
        record
        for top in (RoundCertificate, RoundEvidence, Genesis, Ticket, Base, *STATEMENTS)
        for record in records_under(top)
        if record is not PeerRecord  # it stands in no header, and contradicts nothing
    },
    key=lambda record: record.__name__,
)


@pytest.mark.parametrize("record", DESCRIBED, ids=lambda record: record.__name__)
def test_the_page_has_every_field_in_its_order_and_layout(record: Any) -> None:
    hints = get_type_hints(record, include_extras=True)
    due = [(field.name, layout_of(hints[field.name])) for field in fields(record)]
    assert TABLES.get(record.__name__) == due, f"docs/certificates.md, {record.__name__}"


def test_the_page_names_the_kinds_of_statements_in_their_order() -> None:
    text = " ".join(PAGE.split())
    kinds = ", ".join(f"{number} `{kind.__name__}`" for number, kind in enumerate(STATEMENTS))
    assert kinds in text


def test_the_independent_verifier_is_short_and_uses_none_of_our_code() -> None:
    source = (HERE / "independent_verifier.py").read_text()
    assert len(source.splitlines()) <= 60
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert {str(name).split(".")[0] for name in imported} == {"json", "blake3", "cryptography"}

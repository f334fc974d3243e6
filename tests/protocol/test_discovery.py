"""The address book among liars: what floods, forgeries and silence can and cannot do to it."""

from collections import Counter
from random import Random

import pytest

from peerformer.protocol import discovery
from peerformer.protocol.addresses import group_of, source_group_of
from peerformer.protocol.discovery import (
    BOOK_SIZE_MAX,
    MEMBER,
    NEW,
    NEW_BUCKET_SIZE,
    NEW_BUCKETS,
    NEW_BUCKETS_PER_SOURCE,
    NEW_PER_GROUP_MAX,
    RECORD_LIFETIME_SECONDS,
    TRIED,
    TRIED_BUCKET_SIZE,
    TRIED_BUCKETS,
    TRIED_BUCKETS_PER_GROUP,
    AddressBook,
)
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.messages import Envelope, PeerRecord, sign

CHAIN = b"\7" * 32
NOW = 1_000_000.0
HOME = "192.168.1.9:4000"


def keys_of(number: int) -> KeyPair:
    return KeyPair.from_seed(number.to_bytes(32, "little"))


def record(number: int, *addresses: str, sequence: int = 1, now: float = NOW) -> Envelope:
    """The signed record of peer `number`."""
    texts = tuple(address.encode() for address in addresses)
    expires = int(now + RECORD_LIFETIME_SECONDS)
    return sign(keys_of(number), CHAIN, PeerRecord(texts, sequence, expires))


def new_book(secret: bytes = b"secret") -> AddressBook:
    return AddressBook(keys_of(0).peer_id, CHAIN, secret)


def public(group: int, host: int = 1, port: int = 9) -> str:
    """An address of the Internet in the `group`th /16."""
    return f"{11 + group // 256}.{group % 256}.{host // 256}.{host % 256}:{port}"


def tables(book: AddressBook) -> Counter[str]:
    return Counter(entry.table for entry in book.entries.values())


# --- floods ---------------------------------------------------------------------------------------


def test_one_source_fills_a_sixteenth_of_the_new_table_whatever_addresses_it_invents() -> None:
    book = new_book()
    for number in range(3_000):
        assert book.learn(record(1_000 + number, public(number)), public(40_000), NOW) is None
    buckets = {entry.bucket for entry in book.entries.values()}
    print("buckets", len(buckets), "entries", len(book.entries))
    assert 1 < len(buckets) <= NEW_BUCKETS_PER_SOURCE
    assert len(book.entries) <= NEW_BUCKETS * NEW_BUCKET_SIZE // 16


def test_one_network_fills_a_sixteenth_of_the_new_table_however_many_tell_of_it() -> None:
    book = new_book()
    for number in range(3_000):
        assert book.learn(record(1_000 + number, public(7, number)), public(number), NOW) is None
    print("entries", len(book.entries))
    assert len(book.entries) == NEW_PER_GROUP_MAX == NEW_BUCKETS * NEW_BUCKET_SIZE // 16


def test_one_network_whose_peers_all_answer_fills_a_sixteenth_of_the_tried_table() -> None:
    book = new_book()
    for number in range(1_000):
        book.learn(record(1_000 + number, public(7, number)), public(number), NOW)
        book.reached(keys_of(1_000 + number).peer_id, NOW + number)
    tried = [entry for entry in book.entries.values() if entry.table == TRIED]
    print("tried", len(tried))
    assert len({entry.bucket for entry in tried}) <= TRIED_BUCKETS_PER_GROUP
    assert len(tried) <= TRIED_BUCKETS * TRIED_BUCKET_SIZE // 16


@pytest.mark.parametrize("seed", range(3))
def test_a_flood_neither_forgets_most_honest_peers_nor_gets_dialled_more_than_its_share(
    seed: int,
) -> None:
    print("seed", seed)
    book = new_book(bytes((seed,)))
    honest = {keys_of(number).peer_id for number in range(1, 101)}
    for number in range(1, 101):  # told by twenty neighbours
        book.learn(record(number, public(number)), public(500 + number % 20), NOW)
    for number in range(2_000):
        book.learn(record(1_000 + number, public(2_000 + number)), public(40_000), NOW + 1)
    kept = len(honest & book.entries.keys())
    picks = [peer for _ in range(200) for peer in book.choose(1, (), (), NOW + 2)]
    share = sum(peer not in honest for peer in picks) / len(picks)
    crowd = len(book.entries) - kept
    print("honest kept", kept, "attackers", crowd, "share of dials", share)
    assert kept >= 80 and crowd <= 64
    assert share < 0.25  # four of the fifty-odd buckets in use, and chance
    chosen = book.choose(8, (), (), NOW + 2)
    assert len(honest & set(chosen)) >= 4


def test_a_local_machine_is_one_source_however_often_it_connects() -> None:
    book = new_book()
    for number in range(600):
        told_from = f"127.0.0.1:{30_000 + number}"
        book.learn(record(1_000 + number, f"127.0.0.1:{number}"), told_from, NOW)
    assert len(book.entries) <= NEW_BUCKETS_PER_SOURCE * NEW_BUCKET_SIZE


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.deep) for n in (1, 2))])
def test_the_book_never_exceeds_its_stated_size(seed: int) -> None:
    print("seed", seed)
    random, book = Random(seed), new_book(bytes((seed,)))
    everybody = [keys_of(number).peer_id for number in range(1, 4_001)]
    book.set_members(everybody[:256], ())
    for number in range(1, 4_001):
        group = random.randrange(2_000)
        book.learn(record(number, public(group, number)), public(random.randrange(2_000)), NOW)
        peer = random.choice(everybody)
        if random.random() < 0.7:
            book.reached(peer, NOW + number)
        else:
            book.missed(peer, NOW + number, online=True)
        if number % 1_000 == 0:
            book.set_members(random.sample(everybody, 256), ())
        count = tables(book)
        assert len(book.entries) <= BOOK_SIZE_MAX and count[MEMBER] <= 256
        assert count[NEW] <= NEW_BUCKETS * NEW_BUCKET_SIZE
        assert count[TRIED] <= TRIED_BUCKETS * TRIED_BUCKET_SIZE
    print(tables(book), "tests", len(book.tests))
    assert len(book.entries) > 700  # and it was full enough for that to mean something
    for table, size in ((NEW, NEW_BUCKET_SIZE), (TRIED, TRIED_BUCKET_SIZE)):
        held = Counter(e.bucket for e in book.entries.values() if e.table == table)
        assert max(held.values()) <= size


def test_a_members_record_always_finds_room() -> None:
    book = new_book()
    member = keys_of(1).peer_id
    book.set_members((member,), ())
    book.learn(record(1, public(1)), public(40_000), NOW)
    for number in range(3_000):
        book.learn(record(1_000 + number, public(number)), public(number % 300), NOW + 1)
    assert book.entries[member].table == MEMBER
    assert [entry.envelope.sender for entry in book.due((member,), NOW)] == [member]


# --- records that are not what they seem ----------------------------------------------------------


def test_a_record_forged_in_a_members_name_is_refused_and_its_own_stays() -> None:
    book = new_book()
    book.set_members((keys_of(1).peer_id,), ())
    book.learn(record(1, public(1)), public(1), NOW)
    lie = record(666, public(66), sequence=9)
    forged = Envelope(keys_of(1).peer_id, lie.kind, lie.body, lie.signature)
    assert book.learn(forged, public(66), NOW) == "a forged record"
    assert book.entries[keys_of(1).peer_id].addresses == (public(1),)


def test_of_two_records_the_newer_counts_and_an_old_one_cannot_bring_it_back() -> None:
    book, peer = new_book(), keys_of(1).peer_id
    first, second = record(1, public(1)), record(1, public(2), sequence=2)
    book.learn(first, public(1), NOW)
    book.reached(peer, NOW)
    assert book.entries[peer].table == TRIED
    book.learn(second, public(66), NOW)
    assert book.entries[peer].addresses == (public(2),)
    assert book.entries[peer].table == NEW  # nobody has met it there
    book.learn(first, public(66), NOW)
    assert book.entries[peer].addresses == (public(2),)
    book.reached(peer, NOW)
    book.learn(record(1, public(2), sequence=3), public(1), NOW)
    assert book.entries[peer].table == TRIED  # renewed, not moved


def test_a_relayed_renewal_does_not_move_a_peer_among_the_records_of_the_relay() -> None:
    book, peer = new_book(), keys_of(1).peer_id
    book.learn(record(1, public(1)), public(1), NOW)
    bucket = book.entries[peer].bucket
    book.learn(record(1, public(1), sequence=2), public(66), NOW)
    assert book.entries[peer].bucket == bucket and book.entries[peer].record.sequence == 2
    book.learn(record(1, public(2), sequence=3), public(66), NOW)
    assert book.entries[peer].source == source_group_of(public(1))


def test_a_stranger_far_away_cannot_send_me_knocking_at_doors_of_my_own_network() -> None:
    book = new_book()
    inside = "10.0.0.1:5432"
    assert book.learn(record(1, inside), public(66), NOW) is not None
    assert book.learn(record(2, inside, public(2)), public(66), NOW) is None
    assert book.entries[keys_of(2).peer_id].addresses == (public(2),)
    assert book.learn(record(3, inside), HOME, NOW) is None
    assert book.entries[keys_of(3).peer_id].addresses == (inside,)
    book.set_members((keys_of(2).peer_id,), ())
    assert book.entries[keys_of(2).peer_id].addresses == (inside, public(2))


# --- dialling -------------------------------------------------------------------------------------


def crowded() -> tuple[AddressBook, list[bytes], bytes]:
    """A book with a full tried bucket, oldest first, and one more peer that belongs there."""
    book, by_bucket = new_book(), dict[int, list[bytes]]()
    for number in range(1, 200):
        peer = keys_of(number).peer_id
        book.learn(record(number, public(number % 3, number)), public(number), NOW)
        book.reached(peer, NOW + number)
        bucket = book._tried_bucket(book.entries[peer])
        by_bucket.setdefault(bucket, []).append(peer)
        if len(by_bucket[bucket]) > TRIED_BUCKET_SIZE:
            return book, by_bucket[bucket][:-1], peer
    raise AssertionError("no bucket overflows")


def test_a_tried_peer_stays_unless_it_fails_its_test() -> None:
    book, held, late = crowded()
    assert book.tests == {held[0]: late} and book.entries[late].table == NEW
    book.reached(held[0], NOW + 500)
    assert not book.tests and book.entries[held[0]].table == TRIED
    book.reached(late, NOW + 501)
    assert book.tests == {held[1]: late}
    book.missed(held[1], NOW + 502, online=True)
    assert book.entries[late].table == TRIED and book.entries[held[1]].table == NEW


def test_no_peer_is_thrown_out_for_failing_while_i_am_cut_off() -> None:
    book, held, late = crowded()
    for hour in range(100):
        for peer in list(book.entries):
            book.missed(peer, NOW + hour, online=False)
    book.forget(NOW + 100)
    assert all(book.entries[peer].table == TRIED for peer in held)
    assert book.entries[late].table == NEW
    for _ in range(discovery.NEW_MISSES_MAX):
        book.missed(late, NOW + 101, online=True)
    book.forget(NOW + 102)
    assert late not in book.entries


def test_a_member_that_is_away_for_days_is_dialled_every_minute_without_an_end() -> None:
    book, now = new_book(), NOW
    peer = keys_of(1).peer_id
    book.set_members((peer,), ())
    book.learn(record(1, public(1)), public(1), NOW)
    for _ in range(3_000):
        assert book.due((peer,), now)
        book.missed(peer, now, online=True)
        wait = book.entries[peer].dial_after - now
        assert 0 < wait <= 75
        now += wait
        book.forget(now)
    assert now - NOW > 24 * 3_600


def test_where_i_reached_a_peer_i_look_again_after_its_record_expired_but_tell_nobody() -> None:
    book, peer = new_book(), keys_of(1).peer_id
    book.learn(record(1, public(1)), public(1), NOW)
    book.learn(record(2, public(2)), public(2), NOW)
    book.reached(peer, NOW)
    assert len(book.sample(NOW)) == 2
    monday = NOW + 3 * 24 * 3_600
    book.forget(monday)
    assert list(book.entries) == [peer] and not book.sample(monday)
    assert book.choose(8, (), (), monday) == [peer]
    book.forget(NOW + discovery.TRIED_KEPT_SECONDS + 1)
    assert not book.entries


def test_those_chosen_are_all_of_different_networks() -> None:
    book = new_book()
    for number in range(1, 201):
        book.learn(record(number, public(number % 5, number)), public(number), NOW)
    chosen = book.choose(8, {group_of(public(3, 250))}, (), NOW)
    groups = {group_of(book.entries[peer].addresses[0]) for peer in chosen}
    assert len(chosen) == len(groups) == 4 and group_of(public(3)) not in groups
    two_faced = record(300, public(900), public(3))
    book = new_book()
    book.learn(two_faced, public(1), NOW)
    assert not book.choose(8, {group_of(public(3))}, (), NOW)


def test_the_choice_is_another_with_another_secret_and_the_same_with_the_same() -> None:
    def choice(secret: bytes) -> list[bytes]:
        book = new_book(secret)
        for number in range(1, 101):
            book.learn(record(number, public(number)), public(number), NOW)
        return book.choose(8, (), (), NOW)

    assert choice(b"one") == choice(b"one") != choice(b"two")

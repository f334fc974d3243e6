"""A machine's whole state as readable text, and a machine that goes on from that text.

The text is one JSON document, derived from the annotations of the classes that hold the state: a
record is an object with its fields, in `state_form`'s shapes. What several parts share is printed
where it is met first, and named by that place wherever it stands again, so that the restored parts
share it too. Reading builds exactly the classes that the annotations name, never one that the text
names.

No secret is printed: key, hash chain and the book's secret are made again from the seed. A digest
tells damage, nothing more: a print-out is believed like one's own store.
"""

import json
from collections import deque
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, NoReturn, Union, get_args, get_origin, get_type_hints

from peerformer.events import snake_case
from peerformer.protocol import state_form
from peerformer.protocol.chain import Chain
from peerformer.protocol.codec import MalformedError, Many, OneOf
from peerformer.protocol.decided import Decided
from peerformer.protocol.discovery import AddressBook, secret_of
from peerformer.protocol.identity import HASH_CHAIN_LENGTH, HashChain, KeyPair, hash_of
from peerformer.protocol.json_form import from_json, to_json
from peerformer.protocol.machine import Machine
from peerformer.protocol.membership import next_members
from peerformer.protocol.messages import Certified, Packet, unpack
from peerformer.protocol.outbox import Outbox
from peerformer.protocol.state_form import LEAVES, Form, Given, Printed, refused

FORMAT = "peerformer machine 1"
ROOT = "machine"
PACKAGE = "peerformer.protocol."

# What is not printed, and where it comes from instead.
WITHHELD: dict[tuple[type, str], Callable[[Given], Any]] = {
    (Machine, "unpack"): lambda given: given.unpack,
    (Chain, "succeed"): lambda given: next_members,
    (AddressBook, "secret"): lambda given: secret_of(given.seed),
    (Outbox, "effects"): lambda given: [],  # there are none between two events
}


def to_text(machine: Machine) -> str:
    """Return the state of a machine between two events."""
    assert not machine.outbox.effects, "printed in the middle of an event"
    shown = _form(Machine)[0](machine, ROOT, {})
    document = {"format": FORMAT, "digest": _digest(shown), ROOT: shown}
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def from_text(text: str, *, seed: bytes, unpack: Callable[[bytes], Packet] = unpack) -> Machine:
    """Return a machine in the printed state: the same events bring the same effects from it.

    Args:
        text: what `to_text` returned.
        seed: the 32 secret bytes of the identity key, which are not in the text.
        unpack: frame -> packet; see Machine.

    Raises:
        MalformedError: if the text is damaged, or the print-out of another key's machine.
    """
    try:
        document = json.loads(text, parse_constant=_no_number)
        digest = _digest(document[ROOT])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise MalformedError(f"not a print-out of a machine: {error!s:.100}") from error
    if document.get("format") != FORMAT:
        raise MalformedError(f"not of the format {FORMAT!r}")
    if document.get("digest") != digest:
        raise MalformedError("damaged: its digest is another one")
    machine: Machine = _form(Machine)[1](document[ROOT], ROOT, Given(seed, unpack))
    return machine


def _digest(shown: Any) -> str:
    return hash_of("print-out", json.dumps(shown, ensure_ascii=False).encode()).hex()


def _no_number(word: str) -> NoReturn:
    raise MalformedError(f"{word} is no number")


# --- from an annotation to its form ------------------------------------------------------------


@cache
def _form(kind: Any) -> Form:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _annotated(kind, *inner[:2])
    if origin in (UnionType, Union):
        return _union([option for option in inner if option is not NoneType], inner)
    if origin is Callable:
        return state_form.method([*inner[0], NoneType if inner[1] is None else inner[1]])
    if origin is tuple:
        endless = inner[-1] is Ellipsis
        return _list_of(tuple, inner[0]) if endless else state_form.product(_forms(inner))
    if origin is frozenset:
        return _list_of(frozenset, inner[0])
    if origin in (list, set):
        return state_form.shared(kind, _list_of(origin, inner[0]))
    if origin is deque:
        return state_form.shared(kind, state_form.bounded(_list_of(list, inner[0])))
    if origin is dict:
        pairs = state_form.sequence(list, state_form.product(_forms(inner)))
        as_object = inner[0] in (str, bytes)
        return state_form.shared(kind, state_form.mapping(pairs, as_object=as_object))
    if kind in LEAVES:
        return LEAVES[kind]
    return state_form.shared(kind, _OWN_FORMS.get(kind) or _record(kind))


def _forms(kinds: tuple[Any, ...]) -> tuple[Form, ...]:
    return tuple(_form(kind) for kind in kinds)


def _list_of(make: Any, kind: Any, count_max: int | None = None) -> Form:
    return state_form.sequence(make, _form(kind), count_max)


def _union(options: list[Any], inner: tuple[Any, ...]) -> Form:
    by_name = {snake_case(option.__name__): _form(option) for option in options}
    form = (
        _form(options[0])
        if len(options) == 1
        else state_form.union(by_name, lambda value: snake_case(type(value).__name__))
    )
    return state_form.optional(form) if NoneType in inner else form


def _annotated(kind: Any, inner: Any, layout: Any) -> Form:
    match layout:
        case Many(count_max):
            return _list_of(tuple, get_args(inner)[0], count_max)
        case OneOf():
            return _form(inner)

    def read(data: Any, place: str, given: Given) -> Any:
        try:
            return from_json(kind, data)
        except MalformedError as error:
            raise refused(place, str(error)) from error

    return (lambda value, place, printed: to_json(value, kind)), read


def _record(kind: Any) -> Form:
    assert kind.__module__.startswith(PACKAGE), f"{kind} is no class of the protocol"
    hints = get_type_hints(kind, include_extras=True)
    forms = {name: _form(hint) for name, hint in hints.items() if (kind, name) not in WITHHELD}
    withheld = {name: WITHHELD[kind, name] for name in hints.keys() - forms.keys()}

    def show(value: Any, place: str, printed: Printed) -> Any:
        undeclared = set() if is_dataclass(kind) else vars(value).keys() - hints.keys()
        assert not undeclared, f"{kind.__name__} does not declare {undeclared}"
        return {
            name: form[0](getattr(value, name), f"{place}.{name}", printed)
            for name, form in forms.items()
        }

    def read(data: Any, place: str, given: Given) -> Any:
        if not isinstance(data, dict) or data.keys() != forms.keys():
            raise refused(place, f"not an object with {', '.join(forms)}")
        made = object.__new__(kind)
        given.placed[place] = (kind, made)  # before its fields: a part may know the whole
        for name, form in forms.items():
            object.__setattr__(made, name, form[1](data[name], f"{place}.{name}", given))
        for name, had_again in withheld.items():
            object.__setattr__(made, name, had_again(given))
        return made

    return show, read


# --- what is secret ----------------------------------------------------------------------------


def _show_keys(keys: KeyPair, place: str, printed: Printed) -> Any:
    return {"peer_id": keys.peer_id.hex()}


def _read_keys(data: Any, place: str, given: Given) -> KeyPair:
    keys = KeyPair.from_seed(given.seed)
    if data != _show_keys(keys, place, {}):
        raise refused(place, "the print-out of another key's machine")
    return keys


def _show_hash_chain(chain: HashChain, place: str, printed: Printed) -> Any:
    return {"anchor": chain.links[0].hex(), "length": len(chain.links) - 1}


def _read_hash_chain(data: Any, place: str, given: Given) -> HashChain:
    length = data.get("length") if isinstance(data, dict) else None
    if type(length) is not int or not 0 < length <= HASH_CHAIN_LENGTH:
        raise refused(place, f"not of a length from 1 to {HASH_CHAIN_LENGTH}")
    chain = HashChain.from_seed(given.seed, length)
    if data != _show_hash_chain(chain, place, {}):
        raise refused(place, "not the hash chain of this seed")
    return chain


# --- what is kept as bytes -----------------------------------------------------------------------


def _show_decided(kept: Decided, place: str, printed: Printed) -> Any:
    return [to_json(item, Certified) for item in kept]


def _read_decided(data: Any, place: str, given: Given) -> Decided:
    if not isinstance(data, list):
        raise refused(place, "not a list")
    kept = Decided()
    for number, item in enumerate(data):
        try:
            kept.append(from_json(Certified, item))
        except MalformedError as error:
            raise refused(f"{place}[{number}]", str(error)) from error
    return kept


_OWN_FORMS: dict[Any, Form] = {
    KeyPair: (_show_keys, _read_keys),
    HashChain: (_show_hash_chain, _read_hash_chain),
    Decided: (_show_decided, _read_decided),
}

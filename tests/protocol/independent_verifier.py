"""Verify a certificate without Peerformer, by docs/certificates.md, whose tables are the layout."""

import json

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def encode(tables, layout, value):
    if layout in ("u8", "u16", "u32", "u64"):
        return value.to_bytes(int(layout[1:]) // 8, "little")
    if layout.startswith("bytes"):
        raw = bytes.fromhex(value)
        assert layout in ("bytes", f"bytes{len(raw)}")
        return raw if layout[5:] else encode(tables, "u32", len(raw)) + raw
    if layout.startswith("list of "):
        items = [encode(tables, layout[8:], item) for item in value]
        return encode(tables, "u16", len(items)) + b"".join(items)
    if layout.startswith("one of "):
        [(tag, inner)], names = value.items(), layout[7:].split(", ")
        at = [name.lower() for name in names].index(tag.replace("_", ""))
        return bytes([at]) + encode(tables, names[at], inner)
    return b"".join(encode(tables, kind, value[name]) for name, kind in tables[layout])


def decode(tables, layout, data):  # data: an iterator over bytes
    if layout in ("u8", "u16", "u32", "u64"):
        return int.from_bytes([next(data) for _ in range(int(layout[1:]) // 8)], "little")
    if layout.startswith("bytes"):
        size = int(layout[5:] or decode(tables, "u32", data))
        return bytes([next(data) for _ in range(size)]).hex()
    if layout.startswith("list of "):
        return [decode(tables, layout[8:], data) for _ in range(decode(tables, "u16", data))]
    return {name: decode(tables, kind, data) for name, kind in tables[layout]}


def hash_of(tag, *parts):
    framed = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return blake3(framed, derive_key_context=f"peerformer 1 {tag}").hexdigest()


def verify(text, genesis, tables):  # raises unless the certificate holds
    document = json.loads(text)["round_certificate"]
    header, members, votes = (document[key] for key in ("header", "members", "certificate"))
    assert document["chain_id"] == hash_of("genesis", genesis)
    assert header["members_hash"] == hash_of("members", encode(tables, "Members", members))
    assert votes["digest"] == hash_of("header", encode(tables, "Header", header))
    assert votes["commits"] is True and votes["round"] == header["round"]
    voters = members["committee"] or [m["peer"] for m in members["members"] if not m["role"]]
    assert voters == sorted(set(voters)) and len(votes["signers"]) == -(-len(voters) // 8) * 2
    bits = int.from_bytes(bytes.fromhex(votes["signers"]), "little")
    signers = [voter for index, voter in enumerate(voters) if bits >> index & 1]
    assert bits >> len(voters) == 0 and len(signers) >= 2 * len(voters) // 3 + 1
    vote = b"".join(encode(tables, kind, votes[name]) for name, kind in tables["Commit"])
    message = b"peerformer statement 1" + bytes.fromhex(document["chain_id"]) + b"\4" + vote
    for signer, signature in zip(signers, votes["signatures"], strict=True):
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer))
        key.verify(bytes.fromhex(signature), message)
    founders = [one["peer"] for one in decode(tables, "Genesis", iter(genesis))["founders"]]
    assert len(set(founders) & set(signers)) > (len(founders) - 1) // 3

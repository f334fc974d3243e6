"""The codec `sparse-2bit`: of every 4,096 values the 64 loudest, as signs of two loudnesses.

Top-k by chunk, 12-bit places, 2-bit codes, and error feedback for all that is not sent, as in
SparseLoCo (Covenant-72B, arXiv 2603.08163). Here the two loudnesses of a chunk are the means of its
quieter and of its louder places (Lloyd's 2-means), in units, so that decoding is exact. Really
bit-packed, a chunk has 118 bytes, 139 times fewer than float32.

Layout: for all chunks the two loudnesses (u24 each, the quieter first); then the places of all
chunks, ascending, 12 bits each, two in three bytes, low bits first; then their codes, four in a
byte, low bits first: bit 0 says louder, bit 1 says minus.

One encoding for each value: both loudnesses are at least 1 and both occur, or they are equal and
no code says louder; a chunk of zeros has both 0, the first places and codes of 0. Where the last
chunk has fewer values than places, those left over are the last of the chunk, with codes of 0.

Shape suffixes: `N` chunks, `B` values of a chunk, `K` its places, `G` groups, `W` as many as might
be among the loudest; `V` for the values of all chunks, one after the other.
"""

import numpy as np
from numpy.typing import NDArray

from peerformer.gradients import fixed_point
from peerformer.gradients.codec import VALUE_MAX, Bytes, Codec, Float32, Int32, Parts, Places

CHUNK = 4_096
PLACES = 64
LLOYD_STEPS = 4
GROUPS = 128  # of a chunk: the 64th of their loudest values is a bound that few others reach
_LOUDNESS, _PLACE, _CODE = 6, PLACES * 12 // 8, PLACES * 2 // 8  # bytes of a chunk
_COUNT = np.arange(PLACES)
_FOUR_CODES = (np.arange(256)[:, None] >> (0, 2, 4, 6) & 3).astype(np.uint8).view("<u4")[:, 0]


class Sparse(Codec):
    """The loudest values of each chunk."""

    name = "sparse-2bit"
    block = CHUNK
    row_size = _LOUDNESS + _PLACE + _CODE
    rows_at_once = 64
    coordinates_at_once = 32 * fixed_point.CHUNK  # as these have few values

    def parts(self, data: Bytes, N: int) -> Parts:
        """Return loudnesses, places and codes, packed."""
        widths = (_LOUDNESS, _PLACE, _CODE)
        ends = np.cumsum([0, *widths]) * N
        return tuple(
            data[end : end + N * width].reshape(N, width)
            for end, width in zip(ends, widths, strict=False)
        )

    # --- encoding ------------------------------------------------------------------------------

    def encode_rows(self, value_NB: Float32, parts: Parts, P: int) -> None:
        """Choose the loudest, and two loudnesses for them."""
        loudnesses, places, codes = parts
        place_NK = _loudest(value_NB, P)
        chosen_NK = np.take_along_axis(value_NB, place_NK, 1)
        is_filler_NK = place_NK >= P - CHUNK * np.arange(len(value_NB))[:, None]
        quiet_N, loud_N, is_loud_NK = _two_means(np.abs(chosen_NK), ~is_filler_NK)
        silent_N: NDArray[np.bool_] = np.logical_not(chosen_NK.any(axis=1, keepdims=True))[:, 0]
        place_NK[silent_N] = _COUNT
        quiet_N[silent_N] = loud_N[silent_N] = 0
        is_loud_NK &= ~is_filler_NK & ~silent_N[:, None]
        is_minus_NK = (chosen_NK < 0) & ~is_filler_NK & ~silent_N[:, None]
        sent_NK = np.where(is_loud_NK, loud_N[:, None], quiet_N[:, None]).astype(np.float32)
        sent_NK[is_filler_NK] = 0
        np.negative(sent_NK, out=sent_NK, where=is_minus_NK)
        np.put_along_axis(value_NB, place_NK, chosen_NK - sent_NK, 1)
        loudnesses[:, :3], loudnesses[:, 3:] = _as_u24(quiet_N), _as_u24(loud_N)
        _pack_places(place_NK.astype(np.uint16), places)
        _pack_codes(is_loud_NK.view(np.uint8) | is_minus_NK.view(np.uint8) << np.uint8(1), codes)

    # --- decoding ------------------------------------------------------------------------------

    def fault(self, parts: Parts, P: int) -> str | None:
        """Refuse loudnesses, places and codes that are no or another encoding."""
        loudnesses, places, codes = parts
        quiet_N, loud_N = _from_u24(loudnesses[:, :3]), _from_u24(loudnesses[:, 3:])
        if (loud_N > VALUE_MAX).any() or (quiet_N > loud_N).any():
            return "loudness"
        place_NK, code_NK = _unpack_places(places), _unpack_codes(codes)
        if (np.diff(place_NK, axis=1) <= 0).any():
            return "order"
        silent_N = loud_N == 0
        if (place_NK[silent_N] != _COUNT).any() or code_NK[silent_N].any():
            return "canonical"
        used = P - CHUNK * (len(place_NK) - 1)
        count = min(used, PLACES)
        real_NK = np.ones_like(place_NK, bool)
        if not silent_N[-1]:
            real_NK[-1, count:] = False
            filler = np.arange(CHUNK - PLACES + count, CHUNK)
            if (place_NK[-1, :count] >= used).any() or (place_NK[-1, count:] != filler).any():
                return "range"
            if code_NK[-1, count:].any():
                return "padding"
        louder_N, quieter_N = ((code_NK & 1 == bit) & real_NK for bit in (1, 0))
        both_N = louder_N.any(1) & quieter_N.any(1) & (quiet_N > 0) & (quiet_N < loud_N)
        equal_N = (quiet_N == loud_N) & ~louder_N.any(1)
        return None if (both_N | equal_N).all() else "canonical"

    def decode_rows(self, parts: Parts, out_NB: Int32) -> None:
        """Put the values in their places, and zeros in all others."""
        out_NB[:] = 0
        value_V, place_V = self.read_rows(parts, out_NB.size)
        out_NB.reshape(-1)[place_V] = value_V

    def read_rows(self, parts: Parts, P: int) -> tuple[Int32, Places]:
        """Return the values that are sent, and their places."""
        loudnesses, places, codes = parts
        row_N1 = np.arange(len(places))[:, None]
        quiet_N, loud_N = _from_u24(loudnesses[:, :3]), _from_u24(loudnesses[:, 3:])
        meaning_N4 = np.stack((quiet_N, loud_N, -quiet_N, -loud_N), 1)  # of each code
        value_V = meaning_N4.reshape(-1).take(_unpack_codes(codes) + 4 * row_N1).reshape(-1)
        place_V = (_unpack_places(places) + CHUNK * row_N1).reshape(-1)
        many = len(place_V) if P == CHUNK * len(places) else int(np.searchsorted(place_V, P))
        return value_V[:many], place_V[:many]

    def squares(self, parts: Parts, P: int) -> int:
        """Count the codes."""
        loudnesses, _, codes = parts
        quiet_N, loud_N = (
            _from_u24(loudnesses[:, i : i + 3]).astype(np.int64) ** 2 for i in (0, 3)
        )
        many_N = np.minimum(P - CHUNK * np.arange(len(codes)), PLACES)
        louder_N = np.bitwise_count(codes & 0b01010101).sum(1, dtype=np.int64)
        return sum((louder_N * loud_N + (many_N - louder_N) * quiet_N).tolist())

    def reference(self, blob: bytes, P: int) -> list[int]:
        """One place after the other."""
        chunks = self.rows(P)
        values = [0] * chunks * CHUNK
        for chunk in range(chunks):
            loudness = blob[_LOUDNESS * chunk :][:_LOUDNESS]
            place = int.from_bytes(blob[_LOUDNESS * chunks + _PLACE * chunk :][:_PLACE], "little")
            code = int.from_bytes(blob[-_CODE * (chunks - chunk) :][:_CODE], "little")
            for k in range(PLACES):
                bits = code >> 2 * k & 3
                half = loudness[3:] if bits & 1 else loudness[:3]
                value = int.from_bytes(half, "little")
                values[CHUNK * chunk + (place >> 12 * k & 4_095)] = -value if bits & 2 else value
        return values[:P]


def _loudest(value_NB: Float32, P: int) -> Places:
    """Return the places of the loudest values of each row, ascending; of equals the first.

    Where there are fewer values than places, the rest are the last places of the row.
    """
    loudness_NB = value_NB.view(np.int32) & 0x7FFF_FFFF  # floats without a sign: ordered as these
    groups_NG = loudness_NB.reshape(-1, CHUNK // GROUPS, GROUPS).max(1)
    bound_N1 = np.partition(groups_NG, GROUPS - PLACES, 1)[:, GROUPS - PLACES, None]
    maybe_NB = loudness_NB >= np.maximum(bound_N1, 1)
    maybe_NB[bound_N1[:, 0] == 0, :PLACES] = True  # zeros are chosen among the first places only
    place_V = np.flatnonzero(maybe_NB)
    count_N = np.count_nonzero(maybe_NB, 1)
    is_there_NW = np.arange(count_N.max(initial=PLACES)) < count_N[:, None]
    candidate_NW = np.full(is_there_NW.shape, -1, np.int32)
    candidate_NW[is_there_NW] = loudness_NB.reshape(-1)[place_V]
    last = candidate_NW.shape[1] - PLACES
    least_N1 = np.partition(candidate_NW, last, 1)[:, last, None]
    above_NW, equal_NW = candidate_NW > least_N1, candidate_NW == least_N1
    missing_N1 = PLACES - np.count_nonzero(above_NW, 1, keepdims=True)
    chosen_NW = above_NW | equal_NW & (np.cumsum(equal_NW, 1, np.int16) <= missing_N1)
    place_NK: Places = place_V[chosen_NW[is_there_NW]].reshape(-1, PLACES) % CHUNK
    used = P - CHUNK * (len(value_NB) - 1)
    if used < PLACES:
        place_NK[-1] = np.where(_COUNT < used, _COUNT, CHUNK - PLACES + _COUNT)
    return place_NK


def _two_means(
    loudness_NK: Float32, counts_NK: NDArray[np.bool_]
) -> tuple[Int32, Int32, NDArray[np.bool_]]:
    """Return the quieter and the louder mean of each row, in units, and who is louder."""
    all_NK = counts_NK.astype(np.float64)
    weighed_NK = loudness_NK * all_NK
    border_N = weighed_NK.sum(1) / all_NK.sum(1)
    for _ in range(LLOYD_STEPS):
        loud_NK = (loudness_NK > border_N[:, None]) & counts_NK
        many_N = loud_NK.sum(1)
        total_N = (weighed_NK * loud_NK).sum(1)
        loud_N = total_N / np.maximum(many_N, 1)
        quiet_N = (weighed_NK.sum(1) - total_N) / np.maximum(all_NK.sum(1) - many_N, 1)
        border_N = np.where(many_N > 0, (quiet_N + loud_N) / 2, border_N)
    quiet_N, loud_N = (np.clip(np.rint(mean), 1, VALUE_MAX) for mean in (quiet_N, loud_N))
    loud_NK = (loudness_NK > border_N[:, None]) & counts_NK & (quiet_N < loud_N)[:, None]
    one_N = ~loud_NK.any(1)  # one loudness for all
    loud_N = np.where(one_N, quiet_N, loud_N)
    return quiet_N.astype(np.int32), loud_N.astype(np.int32), loud_NK


# --- bits ----------------------------------------------------------------------------------------


def _as_u24(number_N: Int32) -> Bytes:
    return number_N.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3]


def _from_u24(bytes_N3: Bytes) -> Int32:
    wide = bytes_N3.astype(np.int32)
    number_N: Int32 = wide[:, 0] | wide[:, 1] << 8 | wide[:, 2] << 16
    return number_N


def _pack_places(place_NK: NDArray[np.uint16], out: Bytes) -> None:
    even, odd = place_NK[:, ::2], place_NK[:, 1::2]
    out[:, ::3] = even & 255
    out[:, 1::3] = even >> 8 | (odd & 15) << 4
    out[:, 2::3] = odd >> 4


def _unpack_places(packed: Bytes) -> Places:
    first, second, third = (packed[:, i::3].astype(np.intp) for i in range(3))
    place_NK = np.empty((len(packed), PLACES), np.intp)
    place_NK[:, ::2] = first | (second & 15) << 8
    place_NK[:, 1::2] = second >> 4 | third << 4
    return place_NK


def _pack_codes(code_NK: Bytes, out: Bytes) -> None:
    first, second, third, fourth = (code_NK[:, i::4] for i in range(4))
    out[:] = first | second << 2 | third << 4 | fourth << 6


def _unpack_codes(packed: Bytes) -> Bytes:
    return _FOUR_CODES.take(packed).view(np.uint8)

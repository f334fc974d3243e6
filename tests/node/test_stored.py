"""A store is read from outside, at one moment, while its owner writes as fast as it can."""

import subprocess
import sys
from pathlib import Path

from peerformer.errors import DataError
from peerformer.node.directory import PeerDirectory
from peerformer.node.stored import stored_headers

READS = 40
# A transaction is two records that belong together, big ones: the log is begun anew often.
WRITER = """
import sys
from pathlib import Path
from peerformer.node.journal import DurableStore

store = DurableStore.open(Path(sys.argv[1]), peer_id=b"\\x01" * 32, chain_id=b"\\x02" * 32)
print("open", flush=True)
for number in range(1, 100_000):
    data = number.to_bytes(4, "little") * 20_000
    pair = [(f"header/{n:012d}", data) for n in (2 * number % 100, 2 * number % 100 + 1)]
    store.persist(pair)
"""


def test_every_copy_of_a_store_that_is_being_written_is_of_one_moment(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None and writer.stdout.readline() == b"open\n"
            newest, whole, refused = 0, 0, 0
            while whole < READS:
                try:
                    records = stored_headers(PeerDirectory(tmp_path)).records
                except DataError as error:
                    refused += 1  # a writer that never pauses is no peer, and this was said
                    assert "too fast" in error.what and refused < READS, (error.what, error.why)
                    continue
                assert all(data == data[:4] * 20_000 for _, data in records)
                numbers = [int.from_bytes(data[:4], "little") for _, data in records]
                assert numbers[::2] == numbers[1::2]  # never half of a transaction
                assert max(numbers, default=0) >= newest
                newest, whole = max(numbers, default=0), whole + 1
            print("newest", newest, "refused", refused)
            assert newest > 1
        finally:
            writer.kill()
    assert len(stored_headers(PeerDirectory(tmp_path)).records) == 100

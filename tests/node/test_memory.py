"""Free memory goes back to the system: in a process of its own, whose heap holds nothing else."""

import subprocess
import sys

import pytest

from peerformer.node.memory import found_trim

PROGRAM = """
import asyncio, psutil
from peerformer.node.memory import give_back_memory

def resident():
    return psutil.Process().memory_info().rss

async def story():
    giving = asyncio.ensure_future(give_back_memory(0.02))
    await asyncio.sleep(0)
    pieces = [bytes(8_000) for _ in range(8_000)]
    grown = resident()
    pins = [bytearray(600) for _ in range(8_000)]
    kept = pieces[::64]
    del pieces
    async with asyncio.timeout(20):
        while resident() > grown - (32 << 20):
            await asyncio.sleep(0.01)
    assert not giving.done() and kept and pins
    giving.cancel()

asyncio.run(story())
"""


IN_USE = """
import asyncio, psutil
from peerformer.node.memory import give_back_memory

def resident():
    return psutil.Process().memory_info().rss

async def story():
    giving = asyncio.ensure_future(give_back_memory(0.02, 0.1))
    await asyncio.sleep(0)
    pieces = [bytes(8_000) for _ in range(8_000)]
    pins = [bytearray(600) for _ in range(8_000)]
    await asyncio.sleep(0.3)  # it is asked while all this is in use
    grown = resident()
    kept = pieces[::64]
    del pieces
    async with asyncio.timeout(20):
        while resident() > grown - (32 << 20):
            await asyncio.sleep(0.01)
    assert not giving.done() and kept and pins
    giving.cancel()

asyncio.run(story())
"""


IN_CIRCLES = """
import asyncio, gc, psutil
from peerformer.node.memory import give_back_memory

def resident():
    return psutil.Process().memory_info().rss

class Ended:
    def __init__(self):
        self.itself, self.buffer = self, b"x" * (1 << 20)

async def story():
    many = [[number] for number in range(400_000)]  # as PyTorch has
    giving = asyncio.ensure_future(give_back_memory(0.02, 0.1))
    await asyncio.sleep(0)
    assert gc.get_freeze_count() > len(many)
    before = resident()
    for _ in range(64):
        Ended()
    assert resident() > before + (48 << 20)
    async with asyncio.timeout(20):
        while resident() > before + (16 << 20):
            await asyncio.sleep(0.01)
    assert not giving.done()
    giving.cancel()

asyncio.run(story())
"""


@pytest.mark.parametrize(
    "program",
    [PROGRAM, IN_USE, IN_CIRCLES],
    ids=["grown", "in use when it was asked", "in circles"],
)
@pytest.mark.skipif(found_trim() is None, reason="needs glibc")
def test_what_strangers_made_a_process_take_it_gives_back(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()

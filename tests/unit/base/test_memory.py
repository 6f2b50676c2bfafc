"""Memory of a process on a CPU: kept while it trains, given back when it goes on to something else."""

import subprocess
import sys

import pytest

PROGRAM = """
from rayssl.pipeline.base.memory import give_back_memory, keep_freed_memory

def megabytes():
    [line] = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024

keep_freed_memory()
before = megabytes()
blocks = [bytearray(1 << 20) for _ in range(300)]
del blocks
kept = megabytes()
give_back_memory()
print(before, kept, megabytes())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, kept, after = map(float, done.stdout.split())
    assert kept - before > 250
    assert after - before < 50

"""What is freed is used again, and costs no page faults."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from qcrd.distill.cpu import keep_freed_memory

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(64 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

by_default = faults()
keep_freed_memory()
faults(), faults()
print(by_default, faults())
"""


@pytest.mark.e2e
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_large_tensors_cost_page_faults_once():
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    by_default, kept = map(int, done.stdout.split())
    assert by_default >= 10 * 16384 and kept < by_default / 4

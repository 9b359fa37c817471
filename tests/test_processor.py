"""What is done differently on some processors gives the same values, and memory is asked for as said."""

import os
import subprocess
import sys

import pytest
import torch

import moco
from moco import processor
from test_run import StopAfter
from tiny import save_arrays, tiny_recipe


@pytest.mark.parametrize("said", ["AuthenticAMD avx512f", "GenuineIntel avx512f", ""])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_the_same_by_either_library(monkeypatch, said, dtype):
    monkeypatch.setattr(processor, "cpu_info", lambda: said)
    torch.manual_seed(0)
    x, rows = torch.randn(7, 33, dtype=dtype), torch.randn(50, 33, dtype=dtype)
    found = processor.product_with(rows)(x, torch.empty(7, 50, dtype=dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), x.double() @ rows.double().T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("said", "fast"), [("flags: avx512_bf16", True), ("amx_bf16", True), ("avx2", False)]
)
def test_bfloat16_is_fast_where_the_processor_says_so(monkeypatch, said, fast):
    monkeypatch.setattr(processor, "cpu_info", lambda: said)
    assert processor.has_fast_bfloat16(torch.device("cpu")) is fast
    assert not processor.has_fast_bfloat16(torch.device("meta"))


@pytest.mark.parametrize("fast", [True, False])
def test_a_run_says_that_its_precision_is_slow_here(monkeypatch, tmp_path, fast):
    """As when it was begun on a processor with bfloat16 and goes on where there is none."""
    monkeypatch.setattr(processor, "cpu_info", lambda: "avx512_bf16" * fast)
    values = tiny_recipe(precision="bfloat16", epochs=None, iterations=1)
    watch = StopAfter(-1)
    moco.pretrain(values, data=save_arrays(tmp_path), out=tmp_path / "run", observers=[watch])
    assert any("bfloat16" in sentence for sentence in watch.said) is not fast


FAULTS = """
import resource
from moco import heap
heap.keep()
def batch():
    return [bytearray(24 << 20) for _ in range(4)]
for _ in range(2):
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system's memory is asked for as ever")
def test_memory_that_was_freed_is_kept_unless_the_user_says_otherwise():
    def faults(**asked):
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
        done = subprocess.run(
            [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=plain | asked
        )
        return int(done.stdout)

    kept, given_back = faults(), faults(MALLOC_TRIM_THRESHOLD_="1048576")
    assert kept < 1000 < given_back  # 24,576 pages of four kilobytes

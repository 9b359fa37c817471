"""Our way stays faster than the released one where the ratio is stable; slack for a busy machine.

The rows in `benchmarks/README.md` are what was measured; these bounds lie well below them.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LEAST = {"aug32": 3.0, "loss": 2.0, "ema": 2.0, "sgd": 1.5}


@pytest.mark.slow
def test_ratios_to_the_released_way():
    rows = {}
    for name in LEAST:
        command = [sys.executable, "speed.py", name, "--rounds", "3", "--dry"]
        done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=True)
        rows[name] = json.loads(done.stdout)
    assert {name: rows[name]["ratio"] for name, least in LEAST.items() if rows[name]["ratio"] < least} == {}
    assert rows["loss"]["ours_mib"] <= rows["loss"]["other_mib"] / 20

"""Our way against the released one (benchmarks/official.py), each part in one run, as ratios.

    python benchmarks/speed.py TABLE [--rounds N] [--dry]     measure; writes results/speed/TABLE.json
    python benchmarks/speed_table.py tables                   benchmarks/README.md from those rows

Unless a row says wall time, one thread and processor time of a process, so that other work on the machine
matters little. Both sides alternate in every round, each in a process of its own: theirs as Python starts
it, ours with memory as the command `moco` takes it. A row is written only if both sides gave the same
values, within the bound that the row names (its gate). Tables whose name begins with another
project's compare with that project, where it is installed (see benchmarks/peers.txt).
"""

import argparse
import contextlib
import json
from collections.abc import Callable

import torch

import measured
import speed_parts
import speed_peers
import speed_step
import speed_views
from measured import Measured
from moco import heap
from speed_table import ROWS

TABLES: dict[str, tuple[Callable[[int], Measured], int]] = {
    "aug32": (speed_views.aug32, 15),
    "aug24": (speed_views.aug24, 7),
    "aug224": (speed_views.aug224, 41),
    "views224": (speed_views.views224, 5),
    "loader": (speed_views.loader, 5),
    "loss": (speed_parts.loss, 21),
    "ema": (speed_parts.ema, 41),
    "sgd": (speed_parts.sgd, 41),
    "knn": (speed_parts.knn, 5),
    "features": (speed_step.features, 5),
    "step": (speed_step.step32, 15),
    "step224": (speed_step.step224, 7),
    "e2e": (speed_step.e2e, 5),
    "lightly-step": (speed_peers.lightly_step, 7),
    "kornia-aug32": (speed_peers.kornia_aug32, 9),
    "albumentations-views224": (speed_peers.albumentations_views224, 9),
    "faiss-knn": (speed_peers.faiss_knn, 5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="print the row only")
    parser.add_argument("--side", choices=["theirs", "ours"], help=argparse.SUPPRESS)
    call = parser.parse_args()
    measured.side = call.side
    if call.side == "ours":
        heap.keep()
    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):
        import cv2

        cv2.setNumThreads(1)
    bench, rounds = TABLES[call.table]
    row = bench(call.rounds or rounds).row()
    if not call.dry:
        ROWS.mkdir(parents=True, exist_ok=True)
        (ROWS / f"{call.table}.json").write_text(json.dumps(row, indent=1) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()

"""What remains to be run on a GPU, in order of worth: resumable, in slices, rows written as they come.

    python benchmarks/gpu_campaign.py --data CIFAR10 --minutes 9 [--out runs/gpu] [--keep FOLDER] [--list]

Where there is a GPU, its tests come first (`rows/gpu-tests.xml`), then values and times of the fused kernels
(`rows/kernels.json`) and of whole steps in every form (`rows/gpu_step.json`); then whole runs of `cifar` and
`cifar-fast`, alone, in the form that those steps make the soonest done (`rows/time-RECIPE.toml`). Each entry
after that is a study (`moco ablate`), most of the released CIFAR-10 demo's recipe. A call works through all
in order and stops in time: cells in progress resume from their last checkpoint in the next call,
finished ones are kept. After every entry, and at the end, `rows/NAME.toml`, the table and the figure of each
entry begun are written. With --keep all that is needed to go on elsewhere is copied to a folder: copy it
back as --out. `--toy` rehearses the whole list at toy size on a CPU.

Killed at any moment, the next call goes on.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from moco.recipes import get
from moco.training.interruption import EXIT_CODE

_RESERVE = 40.0  # seconds of a call kept for tables, figures and copies
_TOY = ["--epochs", "1", "--seeds", "0", "--no-estimate"]


@dataclass(frozen=True)
class Entry:
    """A study and what it is worth.

    Attributes:
        name: of its folder and row.
        words: after `moco ablate`, but for data and folder.
        why: the claim that it tests.
        toy: words to add in a rehearsal, which takes the base `cores`.
    """

    name: str
    words: tuple[str, ...]
    why: str
    toy: tuple[str, ...] = ()


ENTRIES = (
    Entry(
        "cifar-symmetric-1",
        ("symmetric", "--base", "cifar", "--seeds", "0"),
        "the released demo: 82.6 (200 epochs), 85.3 (symmetric), 86.3 (400 epochs); its log's early curve",
    ),
    Entry(
        "cifar-momentum",
        ("momentum", "--base", "cifar", "--epochs", "100", "--seeds", "0", "1", "2"),
        "m = 0 fails; 0.99 to 0.9999 are best",
    ),
    Entry(
        "cifar-shuffle-bn",
        ("shuffle-bn", "--base", "cifar", "--seeds", "0", "1", "2"),
        "without shuffling the pretext task leaks; the demo loses 4 % at 800 epochs",
    ),
    Entry(
        "cifar-mechanisms",
        ("mechanisms", "--base", "cifar", "--epochs", "100", "--seeds", "0", "1", "2"),
        "Figure 3: the queue is best at every K and gains from K",
        ("--values", "256"),
    ),
    Entry(
        "cifar-symmetric-3",
        ("symmetric", "--base", "cifar", "--seeds", "0", "1", "2"),
        "the released demo with spreads",
    ),
    Entry(
        "cifar-temperature",
        ("temperature", "--base", "cifar", "--epochs", "100", "--seeds", "0", "1", "2"),
        "the MLP head wants a higher temperature",
        ("--values", "0.2"),
    ),
    Entry(
        "cifar-v2",
        ("v2", "--base", "cifar", "--epochs", "100", "--seeds", "0", "1", "2"),
        "each part of v2 adds",
    ),
    Entry(
        "cifar-batch",
        ("batch", "--base", "cifar", "--epochs", "100", "--seeds", "0", "1", "2"),
        "linear scaling of the learning rate",
        ("--values", "256"),
    ),
    Entry(
        "cifar-architectures",
        ("architectures", "--base", "cifar", "--epochs", "100", "--seeds", "0", "1", "2"),
        "wider networks gain",
        ("--values", "1"),
    ),
    Entry(
        "cifar-800",
        ("symmetric", "--base", "cifar", "--epochs", "800", "--values", "1.5", "--seeds", "0", "1", "2"),
        "the released demo at 800 epochs: 88.7, symmetric 89.7",
        ("--values", "2"),
    ),
)


WHOLE = (("cifar", ("0",)), ("cifar-fast", ("0", "1", "2")))
"""Recipes whose wall time to 82.6 % kNN is asked for, and seeds."""


def soonest(steps: Path, recipe: str) -> str:
    """The flags of the form in which a recipe's run ends first, by what `gpu_step.py` measured of `cifar`."""
    found = json.loads(steps.read_text()) if steps.exists() else {}
    values = get(recipe)
    assert values.epochs is not None
    images = values.epochs * 50_000
    seconds = {
        name: row["first_steps_s"] + images / row["images_per_second"]
        for name, row in found.items()
        if name.startswith("cifar: ") and "failed" not in row
    }
    if not seconds:
        return ""
    kernels, mode = min(seconds, key=seconds.__getitem__).removeprefix("cifar: ").split(", compile ")
    return f"--kernels {kernels} --compile {mode}"


def whole(call: argparse.Namespace, end: float) -> None:
    """Whole runs, each alone on the device, until `end`; those that are done are not run again."""
    rows = call.out / "rows"
    for recipe, seeds in WHOLE:
        left = (end - time.monotonic()) / 60
        if left < 0.01:
            return
        flags = "--epochs 1" if call.toy else f"{soonest(rows / 'gpu_step.json', recipe)} --monitor.every 10"
        words = [
            *(str(Path(__file__).with_name("whole_runs.py")), "demo" if call.toy else recipe),
            *("--data", "procedural" if call.toy else call.data, "--out", str(call.out / f"time-{recipe}")),
            *("--row", str(rows / f"time-{recipe}.toml"), "--minutes", f"{left:.3f}"),
            *(f"--flags={flags.strip()}", "--seeds", *(seeds[:1] if call.toy else seeds)),
        ]
        code = subprocess.run([sys.executable, *words], check=False).returncode
        if code not in (0, EXIT_CODE):
            print(f"{recipe}: exit code {code}", flush=True)


def run(entry: Entry, call: argparse.Namespace, minutes: float) -> int:
    """One call of an entry's study; returns how many runs are left of it."""
    folder = call.out / entry.name
    toy = [*_TOY, *entry.toy, "--images", "1100", "--test-images", "200"] if call.toy else []
    asked = ["cores" if call.toy and word == "cifar" else word for word in entry.words]
    words = [
        *(sys.executable, "-m", "moco", "ablate", *asked, "--data", call.data, "--out", str(folder)),
        *("--row", str(call.out / "rows" / f"{entry.name}.toml"), "--jobs", str(call.jobs)),
        *("--minutes", f"{minutes:.3f}", "--no-estimate", "--json", *toy),
    ]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, EXIT_CODE) or not done.stdout:
        print(f"{entry.name}: exit code {done.returncode}; its logs are in {folder / 'logs'}", flush=True)
        return -1
    table = json.loads(done.stdout)
    for row in table["rows"]:
        value = row["values"].get(table["metric"])
        if value is not None:
            print(f"  {row['cell']}: {value['mean']:.2f} (n = {value['n']})", flush=True)
    return table["open"]


def first(out: Path, end: float) -> None:
    """Correctness, then values and times of kernels and whole steps, where there is a GPU, until `end`.

    Each is done once; a failure is told and stops nothing else.
    """
    import torch

    if not torch.cuda.is_available():
        return
    rows, here = out / "rows", Path(__file__).parent
    rows.mkdir(parents=True, exist_ok=True)
    tests = [str(here.parent / "tests" / f"test_{name}.py") for name in ("gpu", "kernels")]
    for name, words in {
        "gpu-tests.xml": ["-m", "pytest", "-q", "-m", "gpu", *tests, "--junitxml"],
        "kernels.json": [str(here / "kernels.py"), "measure", "--out"],
        "gpu_step.json": [str(here / "gpu_step.py"), "--minutes", "{minutes}", "--out"],
    }.items():
        left, mark = end - time.monotonic(), rows / f"{name}.done"
        if mark.exists() or left < _RESERVE:
            continue
        command = [word.format(minutes=max(0.0, left / 60 - 2)) for word in words]
        try:
            done = subprocess.run([sys.executable, *command, str(rows / name)], check=False, timeout=left)
        except subprocess.TimeoutExpired:
            print(f"{name}: not done in {left:.0f} s; the next call begins it again", flush=True)
            continue
        print(f"{name}: exit code {done.returncode}", flush=True)
        if done.returncode != EXIT_CODE:
            mark.touch()


def keep(out: Path, folder: Path) -> None:
    """Copy what another machine needs to go on: all but the checkpoints of finished runs."""
    for path in sorted(out.rglob("*")):
        if path.is_dir() or path.name in (".lock", "images.npz") or path.parent.name == "claims":
            continue
        if path.parent.name == "checkpoints" and (path.parent.parent / "result.json").exists():
            continue
        target = folder / path.relative_to(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--jobs", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--keep", type=Path, default=None)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--toy", action="store_true")
    call = parser.parse_args()
    known = [entry.name for entry in ENTRIES]
    if unknown := set(call.only) - set(known):
        parser.error(f"there is no entry {sorted(unknown)[0]!r}; there are {', '.join(known)}")
    if call.list:
        for entry in ENTRIES:
            print(f"{entry.name:22} moco ablate {' '.join(entry.words)}\n{'':22} {entry.why}")
        return
    if not call.data:
        parser.error("--data is needed: the folder of CIFAR-10")
    end = time.monotonic() + 60 * call.minutes - min(_RESERVE, 6 * call.minutes)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    left: dict[str, int] = {}
    if not call.only:
        first(call.out, end)
        whole(call, end)
    for entry in ENTRIES:
        if call.only and entry.name not in call.only:
            continue
        minutes = (end - time.monotonic()) / 60
        if minutes < 0.01:
            break
        print(f"{entry.name}: {entry.why}; {minutes:.1f} minutes left", flush=True)
        left[entry.name] = run(entry, call, minutes)
    if call.keep is not None:
        keep(call.out, call.keep)
    done = [name for name, count in left.items() if count == 0]
    print(f"finished: {', '.join(done) or 'none'}; begun: {', '.join(set(left) - set(done)) or 'none'}")
    sys.exit(0 if len(done) == len(call.only or ENTRIES) else 3)


if __name__ == "__main__":
    main()

"""benchmarks/README.md from the rows that `speed.py` measured.

python benchmarks/speed_table.py tables [--check]     write it, or only compare
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "results" / "speed"
RELEASED = (
    "aug32", "aug24", "aug224", "views224", "loader", "loss", "ema", "sgd", "knn", "features", "step",
    "step224", "e2e",
)  # fmt: skip
OTHERS = ("lightly-step", "kornia-aug32", "albumentations-views224", "faiss-knn")


def table(names: tuple[str, ...], machines: set[str]) -> list[str]:
    """The rows of these names, and notes; the machines they were measured on are added to."""
    lines = [
        "| table | what | theirs | theirs, ms | ours, ms | ratio | p10 to p90 | must | same values |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for name in names:
        path = ROWS / f"{name}.json"
        if not path.exists():
            lines.append(f"| {name} | not run | | | | | | | |")
            continue
        row = json.loads(path.read_text())
        must = "" if row["must"] is None else f"{row['must']:g}" + " (missed)" * (row["ratio"] < row["must"])
        lines.append(
            f"| {name} | {row['what']} | {row['other']} | {row['other_ms']:,.1f} | {row['ours_ms']:,.1f} | "
            f"**{row['ratio']:.2f}** | {row['p10']:.2f} to {row['p90']:.2f} | {must} | {row['gate']} |"
        )
        wall = ["wall time"] if row["time"] == "wall" else []
        if said := "; ".join([*wall, *([row["note"]] if row["note"] else [])]):
            notes.append(f"- {name}: {said}.")
        about = row["machine"]
        bf16 = "with" if about["bfloat16 in hardware"] else "without"
        machines.add(f"{about['hardware']}, {bf16} bfloat16 in hardware, torch {about['torch']}")
    return [*lines, "", *notes, *([""] if notes else [])]


def readme() -> str:
    """The tables of all rows."""
    machines: set[str] = set()
    lines = [
        "# Speed, part by part", "",
        "Made by `python benchmarks/speed_table.py tables` from `results/speed/`;",
        "`python benchmarks/speed.py TABLE` measures a row anew. The released way is `official.py`.",
        "What is fast and why, and what did not pay: [speed](../docs/speed.md).", "",
        *table(RELEASED, machines),
        "## Other projects", "",
        "Where they are installed ([peers.txt](peers.txt)), at the same precision.", "",
        *table(OTHERS, machines),
        "Processor time of one thread, or wall time of two; medians over rounds, on "
        f"{'; '.join(sorted(machines))}.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=["tables"])
    parser.add_argument("--check", action="store_true")
    call = parser.parse_args()
    path = ROOT / "benchmarks" / "README.md"
    if not call.check:
        path.write_text(readme())
    elif path.read_text() != readme():
        sys.exit(
            "benchmarks/README.md is not that of results/speed/; run python benchmarks/speed_table.py tables"
        )


if __name__ == "__main__":
    main()

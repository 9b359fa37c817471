"""benchmarks/README.md from the rows that `speed.py` measured.

python benchmarks/speed_table.py tables [--check]     write it, or only compare
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "results" / "speed"
NAMES = ("aug32", "aug24", "aug224", "loss", "ema", "sgd", "knn", "step", "e2e")


def readme() -> str:
    """The table of all rows."""
    lines = [
        "# Speed, part by part", "",
        "Made by `python benchmarks/speed_table.py tables` from `results/speed/`;",
        "`python benchmarks/speed.py TABLE` measures a row anew. The released way is `official.py`.",
        "What is fast and why, and what did not pay: [speed](../docs/speed.md).", "",
        "| table | what | released, ms | ours, ms | ratio | p10 to p90 | must | same values |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    notes, machines = [], set()
    for name in NAMES:
        path = ROWS / f"{name}.json"
        if not path.exists():
            lines.append(f"| {name} | not run | | | | | | |")
            continue
        row = json.loads(path.read_text())
        verdict = "" if row["ratio"] >= row["must"] else " (missed)"
        lines.append(
            f"| {name} | {row['what']} | {row['official_ms']:,.1f} | {row['ours_ms']:,.1f} | "
            f"**{row['ratio']:.2f}** | {row['p10']:.2f} to {row['p90']:.2f} | {row['must']:g}{verdict} | "
            f"{row['gate']} |"
        )
        if row["note"]:
            notes.append(f"- {name}: {row['note']}.")
        about = row["machine"]
        bf16 = "with" if about["bfloat16 in hardware"] else "without"
        machines.add(
            f"{about['hardware']}, {about['threads']} thread, {bf16} bfloat16 in hardware, "
            f"torch {about['torch']}"
        )
    lines += [
        "",
        *notes,
        *([""] if notes else []),
        f"Processor time, medians over rounds, on {'; '.join(sorted(machines))}.",
    ]
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

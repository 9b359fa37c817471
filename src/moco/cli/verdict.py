"""`moco verdict`: is the backbone worth having? Everything measured at once, ending in one sentence."""

import json
import sys
from dataclasses import dataclass
from typing import Any

import tyro

from moco.cli.show import FLAGS, RunFolder


@dataclass(frozen=True)
class Verdict:
    """Measure a run against its counterparts and say, in one sentence, what it is worth."""

    run: RunFolder
    """The run folder; verdict.json and verdict.png are written into it."""
    data: str | None = None
    """Labelled images, as for pretrain; None takes those the run was trained on."""
    against: tuple[str, ...] = ()
    """Weights from elsewhere: runs, backbone.safetensors files, torchvision/NAME:FILE, timm/NAME:FILE."""
    supervised: bool = True
    """Also train the same network on the same images with their labels (once, into RUN/supervised)."""
    finetune: bool = True
    """Also fine-tune on few labels, from the run and from scratch."""
    repeats: int = 10
    """Splits of each amount of labels."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print the result as JSON."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    call = tyro.cli(Verdict, args=words, prog="moco verdict", config=FLAGS)
    from moco.console import tell_lost
    from moco.starts import open_setting
    from moco.verdict import verdict

    setting = open_setting(call.run, call.data, device=call.device, run_only=True)
    tell_lost(setting.lost)
    result = verdict(
        setting,
        others=call.against,
        with_supervised=call.supervised,
        finetune=call.finetune,
        repeats=call.repeats,
        say=lambda sentence: print(sentence, file=sys.stderr),
    )
    if call.json:
        print(json.dumps(result))
    else:
        _print(result)
    return 0


def _print(result: dict[str, Any]) -> None:
    """The paper's form of table: differences from the supervised counterpart in brackets, * from +0.5 on."""
    rows = result["rows"]
    reference = next((row for row in rows if row["name"].startswith("supervised, all labels")), None)
    counts = f"{result['images']:,} training and {result['test_images']:,} test images"
    print(f"{counts}, {result['classes']} classes")
    print(f"\n{'top-1, %':34}{'kNN trunk':>18}{'kNN output':>18}{'linear':>18}")
    for row in rows:
        cells = (_cell(row, reference, name) for name in ("knn_trunk", "knn_output", "linear"))
        print(f"{row['name'][:33]:34}" + "".join(f"{cell:>18}" for cell in cells))
    if result["supervised_top1"] is not None:
        print(f"{'supervised, its own output':34}{'':36}{result['supervised_top1']:>18.1f}")
    for kind, title in (
        ("few_labels", "few labels, logistic regression on frozen features"),
        ("few_labels_fine_tuned", "few labels, fine-tuned end to end"),
    ):
        curves = {row["name"]: row[kind] for row in rows if row[kind]}
        if not curves:
            continue
        print(
            f"\n{title}: mean and 95 % interval over {len(next(iter(curves.values()))[0]['values'])} splits"
        )
        first = next(iter(curves.values()))
        print(f"{'':34}" + "".join(f"{point['amount']:>15}" for point in first))
        for name, curve in curves.items():
            cells = (f"{p['mean']:.1f} ± {p['high'] - p['mean']:.1f}" for p in curve)
            print(f"{name[:33]:34}" + "".join(f"{cell:>15}" for cell in cells))
    print(f"\n{result['sentence']}")


def _cell(row: dict[str, Any], reference: dict[str, Any] | None, name: str) -> str:
    value = row[name]
    if value is None:
        return "-"
    if reference is None or row is reference or reference[name] is None:
        return f"{value:.1f}"
    gap = value - reference[name]
    return f"{value:.1f} ({gap:+.1f}){'*' if gap >= 0.5 else ''}"

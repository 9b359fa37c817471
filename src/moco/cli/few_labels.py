"""`moco few-labels`: accuracy when only a few images have labels."""

import json
import sys
from dataclasses import dataclass

import tyro

from moco.cli.show import FLAGS, Weights


@dataclass(frozen=True)
class FewLabels:
    """Accuracy with 1, 5, 10 and 50 labels per class, and with 1 and 10 % of all."""

    run: Weights
    """A run folder, a backbone.safetensors, or a checkpoint of the released code, lightly or solo-learn."""
    data: str | None = None
    """Labelled images, as for pretrain; None takes those the run was trained on."""
    per_class: tuple[int, ...] = ()
    """Labels per class; without this and --share 1, 5, 10 and 50, as far as classes are large enough."""
    share: tuple[float, ...] = ()
    """Shares of all labels; without this and --per-class 1 and 10 %."""
    repeats: int = 10
    """Splits of each amount."""
    finetune: bool = False
    """Train the whole network instead of a logistic regression on frozen features."""
    weights: str | None = None
    """Measure these instead of the run's: untrained, another run, a backbone.safetensors, or
    torchvision/NAME:FILE or timm/NAME:FILE."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print the result as JSON."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    call = tyro.cli(FewLabels, args=words, prog="moco few-labels", config=FLAGS)
    from moco.assess import few_labels
    from moco.console import tell_lost
    from moco.evaluate.fewlabel import AMOUNTS, Amount
    from moco.starts import choose_start, open_setting

    asked = [Amount(per_class=n) for n in call.per_class] + [Amount(share=s) for s in call.share]
    setting = open_setting(call.run, call.data, device=call.device)
    tell_lost(setting.lost)
    start = choose_start(setting, call.weights)
    way = "fine-tuned" if call.finetune else "logistic regression on frozen features"
    print(f"{start.name}, {way}, {call.repeats} splits of each amount", file=sys.stderr)
    left_out: list[str] = []
    curve = few_labels(
        setting, start, amounts=asked or AMOUNTS, repeats=call.repeats, by_finetuning=call.finetune,
        left_out=left_out,
    )  # fmt: skip
    print("".join(f"{sentence}\n" for sentence in left_out), end="", file=sys.stderr)
    if call.json:
        rows = [p.row() for p in curve]
        print(json.dumps({"start": start.name, "fine_tuned": call.finetune, "curve": rows}))
        return 0
    print(f"top-1, % (mean and 95 % interval over {call.repeats} splits)")
    for point in curve:
        print(f"  {point.amount:>14}  {point.labels:>9,} labels  {point.top1}")
    return 0

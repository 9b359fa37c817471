"""`moco linear`: linear classification on a run's frozen features."""

import json
import sys
from dataclasses import dataclass
from typing import Literal

import tyro

from moco.cli.show import FLAGS, Weights


@dataclass(frozen=True)
class Linear:
    """Linear classification on the frozen trunk's features."""

    run: Weights
    """A run folder, a backbone.safetensors, or a checkpoint of the released code, lightly or solo-learn."""
    data: str | None = None
    """Labelled images, as for pretrain; None takes those the run was trained on."""
    kind: Literal["paper", "grid", "logistic"] = "grid"
    """paper: 100 epochs of random crops through the frozen trunk; grid: the same training on features cached
    once, over a grid of learning rates and weight decays; logistic: L-BFGS on the same features."""
    lr: float = 30.0
    """Learning rate of a batch of 256 (paper)."""
    weight_decay: float = 0.0
    """Weight decay (paper)."""
    epochs: int = 100
    """Epochs; the learning rate falls to a tenth after 60 and 80 % of them (paper, grid)."""
    batch: int = 256
    """Images per step (paper, grid)."""
    weights: str | None = None
    """Measure these instead of the run's: untrained, another run, a backbone.safetensors, or
    torchvision/NAME:FILE or timm/NAME:FILE."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print the result as JSON."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    call = tyro.cli(Linear, args=words, prog="moco linear", config=FLAGS)
    from moco.assess import linear
    from moco.console import tell_lost
    from moco.evaluate.linear import LinearProtocol
    from moco.starts import choose_start, open_setting

    protocol = LinearProtocol(
        lr=call.lr,
        weight_decay=call.weight_decay,
        epochs=call.epochs,
        milestones=(round(0.6 * call.epochs), round(0.8 * call.epochs)),
        batch=call.batch,
    )
    setting = open_setting(call.run, call.data, device=call.device)
    tell_lost(setting.lost)
    start = choose_start(setting, call.weights)
    row = {}
    for row in linear(setting, start, kind=call.kind, protocol=protocol):
        if "epoch" in row:
            print(f"epoch {row['epoch']}/{call.epochs}  loss {row['loss']:.3f}  top-1 {row['top1']:.2f} %",
                  file=sys.stderr)  # fmt: skip
    row = {"kind": call.kind, "start": start.name, "images": len(setting.train.labels), **row}
    if call.json:
        print(json.dumps(row))
        return 0
    chosen = f", lr {row['lr']:g}, weight decay {row['weight_decay']:g}" if "lr" in row else ""
    top5 = f", top-5 {row['top5']:.2f} %" if "top5" in row else ""
    print(f"{start.name}: linear classification ({call.kind}{chosen}), top-1 {row['top1']:.2f} %{top5}")
    return 0

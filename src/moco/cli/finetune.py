"""`moco finetune`: train a run's whole network with labels."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from moco.cli.show import FLAGS, Weights


@dataclass(frozen=True)
class Finetune:
    """Train trunk and classifier end to end; values that are not given are those of the protocol."""

    run: Weights
    """A run folder, a backbone.safetensors, or a checkpoint of the released code, lightly or solo-learn."""
    data: str | None = None
    """Labelled images, as for pretrain; None takes those the run was trained on."""
    protocol: Literal["imagenet", "inaturalist", "supervised"] = "imagenet"
    """imagenet: the paper's Appendix A.7; inaturalist: A.6; supervised: the usual training from scratch."""
    lr: float | None = None
    """Learning rate of a batch of 256; without it the protocol's, and 0.1 with --weights untrained."""
    epochs: int | None = None
    """Passes over the labelled images."""
    batch: int | None = None
    """Images per step."""
    weight_decay: float | None = None
    """Of every parameter."""
    schedule: Literal["step", "cosine"] | None = None
    """step: a tenth at the protocol's milestones; cosine: half a cosine to zero."""
    weights: str | None = None
    """Begin from these instead of the run's: untrained, another run, a backbone.safetensors, or
    torchvision/NAME:FILE or timm/NAME:FILE."""
    out: Path | None = None
    """Keep the training here, so that the same command goes on after a stop; once finished it says the result
    again."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print the result as JSON."""


def chosen(call: Any) -> Any:
    """The protocol a call names, with the values it gives; from random weights with their learning rate."""
    import dataclasses

    from moco.evaluate.finetune import PROTOCOLS, SUPERVISED

    given = {name: getattr(call, name) for name in ("lr", "epochs", "batch", "weight_decay", "schedule")}
    if call.weights == "untrained" and call.lr is None:
        given["lr"] = SUPERVISED.lr
    return dataclasses.replace(
        PROTOCOLS[call.protocol], **{name: value for name, value in given.items() if value is not None}
    )


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    call = tyro.cli(Finetune, args=words, prog="moco finetune", config=FLAGS)
    from moco.console import tell_lost
    from moco.starts import choose_start, open_setting
    from moco.supervised import finetune, finetune_in

    protocol = chosen(call)
    if call.weights == "untrained" and call.lr is None:
        print(
            f"learning rate {protocol.lr}, the paper's from random weights; --lr takes another",
            file=sys.stderr,
        )
    setting = open_setting(call.run, call.data, device=call.device)
    tell_lost(setting.lost)
    start = choose_start(setting, call.weights)
    rows = (
        finetune(setting, start, protocol)
        if call.out is None
        else finetune_in(call.out, setting, start, protocol)
    )
    row: dict[str, float] = {}
    for row in rows:
        print(
            f"epoch {row['epoch']}/{protocol.epochs}  loss {row['loss']:.3f}  top-1 {row['top1']:.2f} %",
            file=sys.stderr,
        )
    if call.json:
        print(json.dumps({"start": start.name, **row}))
    else:
        print(f"{start.name}, fine-tuned: top-1 {row['top1']:.2f} %, top-5 {row['top5']:.2f} %")
    return 0

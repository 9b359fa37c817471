"""`moco supervised`: the same network on the same images, with their labels."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from moco.cli.show import FLAGS, RunFolder
from moco.words import some


@dataclass(frozen=True)
class Supervised:
    """Train a run's architecture with labels: the paper's supervised counterpart."""

    run: RunFolder
    """The run folder, which says the architecture and how images are prepared."""
    data: str | None = None
    """Labelled images, as for pretrain; None takes those the run was trained on."""
    out: Path | None = None
    """Where to write backbone.safetensors and supervised.json; RUN/supervised when not given."""
    epochs: int | None = None
    """Passes over the images; as many as the run's when not given."""
    lr: float = 0.1
    """Learning rate of a batch of 256; it falls to zero along half a cosine."""
    weight_decay: float = 1e-4
    """Of every parameter."""
    batch: int | None = None
    """Images per step; as many as the run's when not given."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print the result as JSON."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    call = tyro.cli(Supervised, args=words, prog="moco supervised", config=FLAGS)
    from moco.console import tell_lost
    from moco.starts import open_setting
    from moco.supervised import counterpart, supervised

    setting = open_setting(call.run, call.data, device=call.device, run_only=True)
    tell_lost(setting.lost)
    protocol = counterpart(
        setting, lr=call.lr, weight_decay=call.weight_decay, epochs=call.epochs, batch=call.batch
    )
    out = call.out or call.run / "supervised"
    rows = supervised(setting, out, protocol, say=lambda sentence: print(sentence, file=sys.stderr))
    if call.json:
        print(json.dumps({"out": str(out), **rows[-1]}))
    else:
        print(
            f"supervised, {some(protocol.epochs, 'epoch')}: top-1 {rows[-1]['top1']:.2f} %; "
            f"{out}/backbone.safetensors"
        )
    return 0

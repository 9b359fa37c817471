"""`moco export`: weights for other libraries, each loaded there and compared."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from moco.cli.show import FLAGS, Weights


@dataclass(frozen=True)
class Export:
    """Write a backbone for other libraries, load it there, and compare the features."""

    weights: Weights
    """A run folder, a backbone.safetensors, or a checkpoint of the released code, lightly or solo-learn."""
    to: tuple[str, ...]
    """One or more of torchvision, timm, huggingface, onnx, torch, safetensors, detectron2; or all."""
    out: Path | None = None
    """Folder to write into, one subfolder per library; None takes RUN/export, or export beside a file."""
    licence: str = "unstated: the weights belong to whoever trained them"
    """What the files say about their licence."""
    json: bool = False
    """Print the result as JSON."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    call = tyro.cli(Export, args=words, prog="moco export", config=FLAGS)
    from moco.weights import export_weights

    done = export_weights(call.weights, call.to, out=call.out, licence=call.licence)
    code = int(any(exported.failed for exported in done))
    if call.json:
        print(json.dumps([exported._asdict() for exported in done]))
        return code
    for exported in done:
        verdict = f"not loaded: {exported.why_not}"
        if exported.difference is not None:
            verdict = f"loaded and compared: largest difference of any feature {exported.difference:.1e}"
        if not exported.lines:
            print(f"{exported.target}: {'failed: ' * exported.failed}{exported.why_not}\n")
            continue
        print(f"{exported.target}: {exported.folder}\n{verdict}")
        print("".join(f"    {line}\n" for line in exported.lines))
    return code

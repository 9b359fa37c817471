"""`moco embed`: the features of images as a table for other tools."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from moco.cli.show import FLAGS, Weights


@dataclass(frozen=True)
class Embed:
    """Write the features of images to a table, one row per image."""

    weights: Weights
    """A run folder, a backbone.safetensors, or a checkpoint of the released code, lightly or solo-learn."""
    data: str | None = None
    """Images, as for pretrain; None takes those the run was trained on."""
    to: Literal["parquet", "npy", "csv"] | None = None
    """Kind of file: parquet (needs pyarrow), npy with a CSV of names beside it, or csv; None goes by the
    ending of --out, and takes npy where that has none of these."""
    out: Path | None = None
    """The file, or a folder for a file embeddings (of test images embeddings-test) with the kind's ending;
    None takes RUN, or the folder of a file."""
    split: Literal["train", "test"] = "train"
    """Which of the images, where there are both."""
    layer: Literal["trunk", "output"] = "trunk"
    """trunk: the features that are used after pre-training; output: the head's unit-length vectors."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print the result as JSON."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    call = tyro.cli(Embed, args=words, prog="moco embed", config=FLAGS)
    from moco.console import progress, tell_lost
    from moco.device import choose_device
    from moco.embedding_files import WRITERS
    from moco.embeddings import embed
    from moco.weights import images_of, open_weights

    ending = "" if call.out is None or call.out.is_dir() else call.out.suffix.removeprefix(".")
    kind = call.to or (ending if ending in WRITERS else "npy")
    if ending in WRITERS and ending != kind:
        raise ValueError(f"--out {call.out} is no file of --to {kind}; leave --to away, or change the ending")
    weights = open_weights(call.weights, choose_device(call.device))
    source = images_of(weights, call.data, call.split)
    beside = call.weights if call.weights.is_dir() else call.weights.parent
    path = call.out if call.out is not None else beside
    if ending != kind:
        path = path / f"embeddings{'' if call.split == 'train' else '-test'}.{kind}"
    lost: list[str] = []
    parts = embed(weights, source, layer=call.layer, lost=lost)
    first = next(parts)  # what does not fit is refused before a file is begun
    with WRITERS[kind](path, len(source)) as writer, progress("images", len(source)) as advance:
        for part in itertools.chain([first], parts):
            writer.write(advance(part))
    tell_lost(lost)
    length, written = first.features.shape[1], len(source) - len(lost)
    if call.json:
        print(json.dumps({"file": str(path), "images": written, "features": length}))
    else:
        print(f"{path}: {written:,} images of {source.name}, {length} features each")
    return 0

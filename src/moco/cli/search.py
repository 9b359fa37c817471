"""`moco search`: the images most like one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from moco.cli.show import FLAGS, Weights


@dataclass(frozen=True)
class Search:
    """Find the images whose features are nearest to those of an image file."""

    weights: Weights
    """A run folder, a backbone.safetensors, or a checkpoint of the released code, lightly or solo-learn."""
    image: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE")]
    """The image file to look for."""
    data: str | None = None
    """Where to look: images, as for pretrain, or a file of moco embed, which saves encoding them again;
    None takes the images the run was trained on."""
    k: int = 10
    """How many to find."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print the result as JSON."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    call = tyro.cli(Search, args=words, prog="moco search", config=FLAGS)
    import torch

    from moco.console import progress, tell_lost
    from moco.data.decode import decode
    from moco.data.form import Form
    from moco.data.source import ArraySource
    from moco.data.unreadable import Unreadable
    from moco.device import choose_device
    from moco.embedding_files import holds_embeddings, read_embeddings
    from moco.embeddings import embed, joined, layer_of
    from moco.evaluate.knn import nearest
    from moco.weights import images_of, open_weights

    if not call.image.is_file():
        raise FileNotFoundError(f"there is no file {call.image}")
    weights = open_weights(call.weights, choose_device(call.device))
    form = Form(weights.about["channels"], getattr(torch, weights.about.get("pixels") or "uint8"))
    try:
        pixels = decode(call.image.read_bytes(), str(call.image), form, weights.values.reading)
    except Unreadable as error:
        raise ValueError(str(error)) from None
    layer = "trunk"
    if call.data is not None and holds_embeddings(Path(call.data)):
        bank = read_embeddings(Path(call.data))
        layer = layer_of(bank, weights)
    else:
        source = images_of(weights, call.data, "train")
        lost: list[str] = []
        with progress("images", len(source)) as advance:
            bank = joined(advance(part) for part in embed(weights, source, lost=lost))
        tell_lost(lost)
    query = joined(embed(weights, ArraySource(pixels[None], name=str(call.image)), layer=layer))
    similarity, rows = (found[0].tolist() for found in nearest(query.features, bank.features, call.k))
    found = [
        {"name": bank.names[row], "label": bank.labels[row], "similarity": round(value, 4)}
        for value, row in zip(similarity, rows, strict=True)
    ]
    if call.json:
        print(json.dumps(found))
        return 0
    for one in found:
        print(f"{one['similarity']:8.4f}  {one['name']}  {one['label']}".rstrip())
    return 0

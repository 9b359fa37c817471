"""`moco fit`: from a few labels to a class for every image."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from moco.cli.show import FLAGS, Weights


@dataclass(frozen=True)
class Fit:
    """Learn classes from few labelled images, classify all others, and say which to label next."""

    weights: Weights
    """A run folder, a backbone.safetensors, or a checkpoint of the released code, lightly or solo-learn."""
    labels: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="LABELS.csv ...")]
    """CSV files with the columns name (or path) and label; names as in predictions.csv or moco embed."""
    data: str | None = None
    """All images, as for pretrain, or a file of moco embed, which saves encoding them again; None takes
    the images the run was trained on."""
    out: Path | None = None
    """Folder of the results; None takes RUN/fit, or fit beside a file."""
    count: int = 50
    """How many images to propose for labelling."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print the result as JSON."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    call = tyro.cli(Fit, args=words, prog="moco fit", config=FLAGS)
    from moco.console import progress, tell_lost
    from moco.device import choose_device
    from moco.embedding_files import holds_embeddings, read_embeddings
    from moco.embeddings import embed, image_name, joined, layer_of
    from moco.fit import classes_of, fit, read_labels, write
    from moco.weights import images_of, open_weights

    given = read_labels(call.labels)
    weights = open_weights(call.weights, choose_device(call.device))
    if call.data is not None and holds_embeddings(Path(call.data)):
        bank = read_embeddings(Path(call.data))
        layer_of(bank, weights)
    else:
        source = images_of(weights, call.data)
        classes_of(given, [image_name(source, i) for i in range(len(source))])  # before any is encoded
        lost: list[str] = []
        with progress("images", len(source)) as advance:
            bank = joined(advance(part) for part in embed(weights, source, lost=lost))
        tell_lost(lost)
        tell_lost(sorted(set(given) & set(lost)), "labelled image")
        given = {name: label for name, label in given.items() if name not in lost}
    found = fit(bank, given, count=call.count)
    beside = call.weights if call.weights.is_dir() else call.weights.parent
    predictions, to_label = write(found, call.out if call.out is not None else beside / "fit")
    sure = found.probabilities.max(1).values.mean().item()
    if call.json:
        accuracy = None if found.accuracy is None else list(found.accuracy[:3])
        row = {"predictions": str(predictions), "next": str(to_label), "images": len(bank.names)}
        row |= {"labelled": len(given), "classes": found.classes, "accuracy": accuracy, "confidence": sure}
        print(json.dumps(row))
        return 0
    print(f"{predictions}: {len(bank.names):,} images, {len(found.classes)} classes from {len(given)} labels")
    if found.accuracy is None:
        print(
            "a class has a single labelled image or group, so neither accuracy nor confidence could be "
            "checked"
        )
    else:
        print(f"accuracy by cross-validation: {found.accuracy} %; mean confidence {100 * sure:.1f} %")
    print(f"{to_label}: {len(found.next)} images to label next; fill in the column label and fit both files")
    return 0

"""`moco report`: a page about a run, or several in the same charts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from moco.cli.show import FLAGS, RunFolders


@dataclass(frozen=True)
class Report:
    """Write one HTML file about a run, or about several overlaid; it needs no network and no other file."""

    runs: RunFolders
    """Run folders, finished or still training."""
    out: Path | None = None
    """The file; None takes report.html in the run's folder, for several runs comparison.html in the
    first one's."""
    data: str | None = None
    """Images for the map and the neighbours, as for pretrain; None takes the run's own, test images first."""
    images: int = 800
    """How many of them at most."""
    projection: Literal["pca", "tsne"] = "pca"
    """How the map is drawn; tsne draws both and needs scikit-learn."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print the result as JSON."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    call = tyro.cli(Report, args=words, prog="moco report", config=FLAGS)
    if not call.runs:
        raise ValueError("moco report takes one run folder or several")
    if call.images < 10:
        raise ValueError(f"--images must be at least 10, got {call.images}")
    from moco.device import choose_device
    from moco.report.page import write_report

    path = write_report(
        call.runs,
        call.out,
        data=call.data,
        images=call.images,
        projection=call.projection,
        device=choose_device(call.device),
    )
    size = path.stat().st_size
    print(json.dumps({"file": str(path), "bytes": size}) if call.json else f"{path}: {size / 1000:,.0f} kB")
    return 0

"""What a finished run leaves: backbone, measurements beside their baselines, curves, the result."""

import html
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moco.build import build_encoder
from moco.data.memory import trim
from moco.evaluate.features import calibrate, pixels
from moco.evaluate.knn import Labelled, accuracy, knn
from moco.export.backbone import backbone_bytes
from moco.files import write_atomically
from moco.images import Data, labelled
from moco.recipe import Recipe
from moco.report.page import write_report
from moco.report.plots import plot_curves
from moco.run_folder import read_run
from moco.training.trainer import Run
from moco.weights import backbone_about

MEASURED_IMAGES = 50_000
"""Most images that vote and most that are classified in the last kNN table: of more, raw pixels do not fit
a small machine, and every row of the table is measured on the same images."""


@dataclass(frozen=True)
class Result:
    """What a finished run is worth.

    Attributes:
        out: the run folder.
        steps: steps trained.
        loss, accuracy: of the pretext task in the last journal row.
        knn: accuracy in percent of trained features, untrained features and raw pixels after the
            last step, with the k and temperature of the vote; empty without labels.
        seconds: wall time of this call.
        unreadable: images that could not be read and were replaced; `quarantine.jsonl` names them.
    """

    out: str
    steps: int
    loss: float
    accuracy: float
    knn: dict[str, float]
    seconds: float
    unreadable: int = 0

    def _repr_html_(self) -> str:
        """What a notebook shows: the kNN table, and where the page is."""
        rows = "".join(
            f"<tr><th>{k.replace('_', ' ')}</th><td>{v:.4g}</td></tr>" for k, v in self.knn.items()
        )
        out = html.escape(self.out)
        return (
            f"<p>{self.steps:,} steps, {self.seconds:.0f} s: loss {self.loss:.3f}, pretext accuracy "
            f"{100 * self.accuracy:.1f} %; {out}/report.html</p><table>{rows}</table>"
        )


def _measured(values: Recipe, data: Data, device: torch.device) -> tuple[Labelled, Labelled] | None:
    return labelled(values, data, device, bank=MEASURED_IMAGES, queries=MEASURED_IMAGES)


def baselines(values: Recipe, data: Data, device: torch.device) -> Iterator[tuple[str, float]]:
    """Yield kNN accuracy in percent of raw pixels and of the untrained network, as run from the same seed."""
    if (sets := _measured(values, data, device)) is None:
        return
    bank, queries = sets
    monitor = values.monitor
    raw_bank, raw_queries = pixels(bank.batches()), pixels(queries.batches())
    centre = raw_bank.mean(0)
    raw = accuracy(
        raw_queries - centre, queries.labels, raw_bank - centre, bank.labels,
        k=monitor.k, temperature=monitor.temperature, device=device,
    )  # fmt: skip
    yield "raw_pixels", round(raw, 3)
    untrained = build_encoder(values, data.train.channels).to(device)
    calibrate(untrained, (images for _, images in zip(range(4), bank.batches(), strict=False)))
    for layer, value in knn(untrained, bank, queries, k=monitor.k, temperature=monitor.temperature):
        yield f"untrained_{layer.removeprefix('knn_')}", value


def finish(
    run: Run,
    values: Recipe,
    data: Data,
    out: Path,
    device: torch.device,
    rows: list[dict[str, Any]],
    started: float,
    say: Callable[[str], None],
) -> Result:
    """Write the backbone, the last measurements, the curves and the result."""
    about = backbone_about(values, data.train.channels, read_run(out)[1])
    write_atomically(out / "backbone.safetensors", backbone_bytes(run.f_q.trunk, about))
    table: dict[str, float] = {}
    if (sets := _measured(values, data, device)) is not None:
        say(f"measuring kNN on {len(sets[0].labels):,} + {len(sets[1].labels):,} labelled images")
        k, temperature = values.monitor.k, values.monitor.temperature
        trained = knn(run.f_q, *sets, k=k, temperature=temperature)
        table = {name.replace("knn", "trained"): value for name, value in trained}
        k = min(k, len(sets[0].labels))  # of the images that could be read
        table |= {**dict(baselines(values, data, device)), "k": k, "temperature": temperature}
    trim()
    plot_curves(out / "curves.png", rows, run.interpreter, baselines=table, title=values.name)
    last = next(row for row in reversed(rows) if "loss" in row)
    seconds = round(time.perf_counter() - started, 1)
    unreadable = sum("unreadable" in row for row in rows)
    result = Result(str(out), run.steps, last["loss"], last["accuracy"], table, seconds, unreadable)
    write_atomically(out / "result.json", json.dumps(result.__dict__, indent=1).encode())
    page(out, device, say)
    trim()
    return result


def page(out: Path, device: torch.device, say: Callable[[str], None]) -> None:
    """Write the page of a run, which is whole without it."""
    try:
        write_report([out], device=device)
    except (OSError, RuntimeError, ValueError) as error:
        say(f"report.html could not be written: {error}")

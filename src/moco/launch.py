"""From a recipe and some images to a run folder: check, build, train, and write what the run leaves."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import moco
from moco import recipe_file
from moco.build import build, build_encoder, resolve
from moco.data.loader import Loader
from moco.data.open import EMBEDDED, open_source
from moco.data.views import Views
from moco.encoder import Encoder
from moco.evaluate.features import calibrate, pixels
from moco.evaluate.knn import accuracy, knn
from moco.export.backbone import backbone_bytes
from moco.images import Data, labelled
from moco.recipe import Recipe
from moco.recipes import get
from moco.report.plots import plot_curves, plot_views
from moco.run_folder import difference, is_free, locked, provenance, read_run
from moco.training.checkpoint import Checkpoints, write_atomically
from moco.training.trainer import Observer, Run, train
from moco.world import Solo

BASELINE_IMAGES = 50_000  # raw pixels of more do not fit a small machine


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
    """

    out: str
    steps: int
    loss: float
    accuracy: float
    knn: dict[str, float]
    seconds: float


def pretrain(
    recipe: Recipe | str = "cpu",
    *,
    data: str,
    out: str | Path,
    device: str = "auto",
    workers: int = 2,
    observers: Sequence[Observer] = (),
) -> Result:
    """Pre-train on a folder of images and write a run folder; the same call again goes on where it stopped.

    Args:
        recipe: a recipe, or the name of one.
        data: what `open_source` takes.
        out: the run folder; it must be new, or hold this very run.
        device: "auto", "cpu", "cuda" or "mps".
        workers: decoding threads.
        observers: told about progress.

    Raises:
        FileExistsError: if the folder holds something else; nothing is overwritten.
        FileNotFoundError: if there are no images.
        ValueError: if recipe and images do not fit together.
        FloatingPointError: if the loss stops being finite.
        RuntimeError: if anything else fails after work has begun, such as an image file.
    """
    recipe = get(recipe) if isinstance(recipe, str) else recipe
    if data not in EMBEDDED and (path := Path(data).expanduser()).exists():
        data = str(path.resolve())
    out, where = Path(out), choose_device(device)
    if not (out / "recipe.toml").exists() and not is_free(out):
        raise FileExistsError(
            f"{out} exists and is no run of moco; choose another --out, nothing was overwritten"
        )
    images = open_data(data)
    values = resolve(recipe, images, where)
    if (out / "recipe.toml").exists():
        stored, run = recipe_file.read(out / "recipe.toml")
        if stored != values or run["data"] != data:
            raise FileExistsError(
                f"{out} holds another run ({difference(stored, values) or 'data ' + run['data']}); "
                f"choose another --out, or continue that run with moco pretrain --resume {out}"
            )
    return _run(values, data, images, out, where, workers, observers)


def resume(
    out: str | Path, *, device: str = "auto", workers: int = 2, observers: Sequence[Observer] = ()
) -> Result:
    """Go on with the run in a folder, from its newest whole checkpoint.

    The end is that of an undisturbed run, to the bit, on a CPU with the same threads and torch.

    Raises:
        FileNotFoundError: if the folder holds no run or the images are gone.
        ValueError: if the images have changed.
    """
    out = Path(out)
    values, run = read_run(out)
    return _run(values, run["data"], open_data(run["data"]), out, choose_device(device), workers, observers)


def choose_device(name: str) -> torch.device:
    """A device by name; "auto" takes the fastest there is.

    Raises:
        ValueError: if it is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, available in there.items() if available)
    if not there.get(name.partition(":")[0], False):
        have = ", ".join(kind for kind, available in there.items() if available)
        raise ValueError(f"there is no device {name!r} here; there is {have}")
    return torch.device(name)


def open_data(spec: str) -> Data:
    """The training and, where there are any, test images of a specification."""
    train_images = open_source(spec, "train")
    assert train_images is not None
    return Data(train_images, open_source(spec, "test"))


def trained_encoder(out: Path, device: torch.device) -> Encoder:
    """The query encoder of a run's newest whole checkpoint, in evaluation mode.

    Raises:
        FileNotFoundError: if the folder holds no run, or no checkpoint yet.
    """
    values, run = read_run(out)
    found = Checkpoints(out / "checkpoints").load(device, resuming=False)
    if found is None:
        raise FileNotFoundError(f"{out} has no checkpoint yet")
    encoder = build_encoder(values, run["channels"]).to(device)
    encoder.load_state_dict(found[1]["f_q"])
    return encoder.eval()


def measure_knn(
    out: str | Path,
    *,
    data: str | None = None,
    k: int | None = None,
    temperature: float | None = None,
    device: str = "auto",
) -> dict[str, float]:
    """kNN accuracy in percent of a run's trunk features and head output, on all labelled images.

    Args:
        out: the run folder.
        data: labelled images, as for `pretrain`; None takes the run's own.
        k, temperature: see `moco.evaluate.knn.knn_predict`; None takes the run's own, and no
            more neighbours than there are images.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        FileNotFoundError: if there is no run or there are no images.
        ValueError: if the images have no labels, or k is out of range.
    """
    out, where = Path(out), choose_device(device)
    values, run = read_run(out)
    spec = data if data is not None else run["data"]
    sets = labelled(values, open_data(spec), where)
    if sets is None:
        raise ValueError(f"{spec} has no labels; kNN needs class folders or a labels array")
    images = len(sets[0].labels)
    k = min(values.monitor.k, images) if k is None else k
    temperature = values.monitor.temperature if temperature is None else temperature
    if not 1 <= k <= images:
        raise ValueError(f"k must be between 1 and the {images} images of the bank, got {k}")
    measured = knn(trained_encoder(out, where), *sets, k=k, temperature=temperature)
    return {"k": k, "temperature": temperature, **dict(measured)}


def baselines(values: Recipe, data: Data, device: torch.device) -> Iterator[tuple[str, float]]:
    """Yield kNN accuracy in percent of raw pixels and of the untrained network, as run from the same seed."""
    most = BASELINE_IMAGES
    if (sets := labelled(values, data, device, bank=most, queries=most)) is None:
        return
    bank, queries = sets
    monitor = values.monitor
    raw_bank, raw_queries = pixels(bank.batches()), pixels(queries.batches())
    centre = raw_bank.mean(0)
    raw = accuracy(
        raw_queries - centre, queries.labels, raw_bank - centre, bank.labels,
        k=monitor.k, temperature=monitor.temperature,
    )  # fmt: skip
    yield "raw_pixels", round(raw, 3)
    untrained = build_encoder(values, data.train.channels).to(device)
    calibrate(untrained, (images for _, images in zip(range(4), bank.batches(), strict=False)))
    for layer, value in knn(untrained, bank, queries, k=monitor.k, temperature=monitor.temperature):
        yield f"untrained_{layer.removeprefix('knn_')}", value


def backbone_about(values: Recipe, channels: int) -> dict[str, Any]:
    """What a backbone file says about itself: how to rebuild the network, and how to feed it."""
    return {
        "arch": values.encoder.arch,
        "width": values.encoder.width,
        "stem": values.encoder.stem,
        "channels": channels,
        "size": values.views.eval_size or values.views.size,
        "mean": values.views.mean,
        "std": values.views.std,
        "recipe": values.name,
        "moco": moco.__version__,
    }


def _run(
    values: Recipe,
    spec: str,
    data: Data,
    out: Path,
    device: torch.device,
    workers: int,
    observers: Sequence[Observer],
) -> Result:
    started = time.perf_counter()

    def say(sentence: str) -> None:
        for observer in observers:
            observer.say(sentence)

    checkpoints = Checkpoints(out / "checkpoints", keep=values.keep_checkpoints, say=say)
    run = build(values, data, Solo(), device=device, checkpoints=checkpoints, workers=workers)
    run.observers = list(observers)
    fingerprint = data.train.fingerprint()
    with locked(out):
        if (out / "recipe.toml").exists():
            known = read_run(out)[1]
            if known["fingerprint"] != fingerprint:
                raise ValueError(f"the images of {spec} are not those the run in {out} was begun with")
        else:
            about = provenance(spec, data, fingerprint, device)
            aside = out / "recipe.toml.tmp"
            aside.write_text(recipe_file.text(values, about), encoding="utf-8")
            aside.replace(out / "recipe.toml")
        classes = f", {len(data.train.classes)} classes for kNN" if data.train.classes else ""
        say(f"{data.train.name}: {len(data.train):,} images of {data.train.channels} channels{classes}")
        if (out / "result.json").exists():
            say(f"the run in {out} is finished already")
            return Result(**json.loads((out / "result.json").read_text()))
        if not (out / "views.png").exists():
            plot_views(
                out / "views.png", Loader(data.train, Views(values.views), values.batch, seed=values.seed)
            )
        try:
            journal = train(run, out)
            return _finish(run, values, data, out, device, journal.rows, started, say)
        except (ValueError, OSError, MemoryError) as error:
            raise RuntimeError(str(error)) from error  # after work began, it is no wrong call


def _finish(
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
    about = backbone_about(values, data.train.channels)
    write_atomically(out / "backbone.safetensors", backbone_bytes(run.f_q.trunk, about))
    table: dict[str, float] = {}
    if (sets := labelled(values, data, device)) is not None:
        say(f"measuring kNN on all {len(sets[0].labels):,} + {len(sets[1].labels):,} labelled images")
        k, temperature = values.monitor.k, values.monitor.temperature
        trained = knn(run.f_q, *sets, k=k, temperature=temperature)
        table = {name.replace("knn", "trained"): value for name, value in trained}
        table |= {**dict(baselines(values, data, device)), "k": k, "temperature": temperature}
    plot_curves(out / "curves.png", rows, run.interpreter, baselines=table, title=values.name)
    last = next(row for row in reversed(rows) if "loss" in row)
    seconds = round(time.perf_counter() - started, 1)
    result = Result(str(out), run.steps, last["loss"], last["accuracy"], table, seconds)
    write_atomically(out / "result.json", json.dumps(result.__dict__, indent=1).encode())
    return result

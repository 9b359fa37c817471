"""Does `moco plan` give better values than the defaults of v2? CIFAR-10 subsets, equally many images seen.

    python benchmarks/plan.py CIFAR10 WORK [--seen 32000] [--sizes 1000 5000 50000]

Both sides train the same narrow network at the same learning steps; "v2" keeps that recipe's own
dictionary, momentum, temperature, head, views, batch and optimizer, at the size of the images and with own
keys masked, without which a queue of 65,536 is refused. One seed; kNN on 2,000 test images. Writes
`results/plan.toml`.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import tomli_w
import torch

import moco
from moco import chance
from moco.data.open import open_source
from moco.data.source import ArraySource
from moco.plan import _length, plan
from moco.recipe import MomentumQueue, Recipe
from moco.recipes import get

ROOT = Path(__file__).parents[1]


def subset(folder: str, work: Path, count: int) -> Path:
    """The first `count` of all images in a keyed order, and 2,000 test images, as one file."""
    path = work / f"cifar-{count}.npz"
    if path.exists():
        return path
    arrays = {}
    for prefix, split, size in ("", "train", count), ("test_", "test", 2000):
        source = open_source(folder, split)
        assert isinstance(source, ArraySource)
        assert source.labels is not None
        chosen = chance.permute(np.arange(size), len(source), 0, "subset")
        arrays[f"{prefix}images"] = source.pixels[chosen].permute(0, 2, 3, 1).numpy()
        arrays[f"{prefix}labels"] = source.labels[chosen].numpy()
    work.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def defaults_of_v2(planned: Recipe, seen: int) -> Recipe:
    """v2's values around the planned network."""
    v2 = get("v2")
    size = planned.views.eval_size or planned.views.size
    encoder = dataclasses.replace(planned.encoder, head=v2.encoder.head, bn_group=v2.encoder.bn_group)
    return dataclasses.replace(
        v2,
        name="v2-small",
        encoder=encoder,
        views=dataclasses.replace(v2.views, size=size, mean=planned.views.mean, std=planned.views.std),
        dictionary=MomentumQueue(65_536, mask_own=True),
        epochs=None,
        iterations=seen // v2.batch,
        monitor=dataclasses.replace(planned.monitor, every=0),
        journal_every=10,
        precision=planned.precision,
    )


def main() -> None:
    """Train both sides at every size and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cifar")
    parser.add_argument("work", type=Path)
    parser.add_argument("--seen", type=int, default=32_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 5000, 50_000])
    call = parser.parse_args()
    rows = []
    for count in call.sizes:
        data = subset(call.cifar, call.work, count)
        found = plan(str(data), torch.device("cpu"), budget=3600.0)
        found.advice = [a for a in found.advice if a.name not in ("epochs", "iterations")]
        _length(found, call.seen / found.speed / 0.85 + 1e-6, said=True)
        planned = dataclasses.replace(
            found.recipe, monitor=dataclasses.replace(found.recipe.monitor, every=0)
        )
        row: dict[str, object] = {"images": count, "seen": call.seen}
        for name, values in ("planned", planned), ("v2", defaults_of_v2(planned, call.seen)):
            result = moco.pretrain(values, data=str(data), out=call.work / f"{name}-{count}")
            row[name] = result.knn["trained_trunk"]
            row[f"{name}_seconds"] = result.seconds
            row["untrained"] = result.knn["untrained_trunk"]
            row["raw_pixels"] = result.knn["raw_pixels"]
            print(row, flush=True)
        row["values"] = {a.name: str(a.value) for a in found.advice}
        rows.append(row)
        about = {"what": "kNN top-1 on the trunk, %, k = 200, T = 0.1, 2,000 test images, one seed"}
        content = tomli_w.dumps(about | {"row": rows})
        (ROOT / "results" / "plan.toml").write_text(content)


if __name__ == "__main__":
    main()

"""A whole grid of linear classifiers in one pass: how long it takes, and is each what it is alone?

    python benchmarks/linear_grid.py CIFAR10 [--threads 2] [--alone]

The features are 512 numbers from an untrained ResNet-18, of all 50,000 images; 24 settings (8 learning rates,
3 weight decays), 100 epochs, batch 256. --alone also trains every setting by itself, from the same start and
in the same batches, and compares accuracies on the test images. Writes `results/linear-grid.toml`.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import tomli_w
import torch

from moco.build import build_encoder, resolve
from moco.data.open import open_source
from moco.evaluate.features import extract
from moco.evaluate.linear import LRS, WEIGHT_DECAYS, LinearProtocol, train_linear
from moco.images import Data, Portion
from moco.recipes.small import cifar
from moco.run_folder import machine

ROOT = Path(__file__).parents[1]


def features(spec: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training features and labels, test features and labels."""
    train, test = open_source(spec), open_source(spec, "test")
    assert train is not None
    assert test is not None
    values = resolve(cifar(), Data(train, test), torch.device("cpu"))
    values = replace(values, encoder=replace(values.encoder, stem="imagenet"))  # a sixteenth of the work
    net = build_encoder(values, 3).eval()
    found = []
    for source in train, test:
        assert source.labels is not None
        portion = Portion(source, torch.arange(len(source)), source.labels)
        found += [extract(net, portion.plain(values, torch.device("cpu")).batches()).trunk, source.labels]
    return tuple(found)  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "linear-grid.pt")
    call = parser.parse_args()
    torch.set_num_threads(call.threads)
    if not call.cache.exists():
        call.cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save(features(call.data), call.cache)
    x, y, x_test, y_test = torch.load(call.cache)
    grid = [(lr, decay) for decay in WEIGHT_DECAYS for lr in LRS[:8]]

    def train(settings: list[tuple[float, float]]) -> tuple[torch.Tensor, float]:
        """Accuracy of each setting, and the seconds they took."""
        start = time.perf_counter()
        found = train_linear(
            x[None], y, 10, lrs=[lr for lr, _ in settings], weight_decays=[decay for _, decay in settings],
            protocol=LinearProtocol(),
        )  # fmt: skip
        spent = time.perf_counter() - start
        return 100 * (found.predict(x_test) == y_test).double().mean(1), spent

    together, seconds = train(grid)
    print(f"{len(grid)} settings together: {seconds:.1f} s, {together.min():.2f} to {together.max():.2f} %")
    about = machine(torch.device("cpu"))
    row = {
        "command": f"python benchmarks/linear_grid.py {Path(call.data).name}",
        "images": len(x), "features": x.shape[1], "settings": len(grid), "epochs": LinearProtocol().epochs,
        "grid_seconds": round(seconds, 1), "best": round(together.max().item(), 2),
        "hardware": about["hardware"], "threads": call.threads, "torch": about["torch"],
    }  # fmt: skip
    if call.alone:
        alone = [train([setting]) for setting in grid]
        gaps = (together - torch.cat([accuracy for accuracy, _ in alone])).abs()
        row["alone_seconds"] = round(sum(spent for _, spent in alone), 1)
        row["largest_gap"] = round(gaps.max().item(), 3)
        row["mean_gap"] = round(gaps.mean().item(), 3)
        print(f"one by one: {row['alone_seconds']} s; accuracies apart by {gaps.tolist()}")
    (ROOT / "results" / "linear-grid.toml").write_text(tomli_w.dumps(row))


if __name__ == "__main__":
    main()

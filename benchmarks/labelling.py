"""What `moco fit` promises, measured: labels it asked for beside random ones, and are confidences true?

    python benchmarks/labelling.py RUN CIFAR10 [--repeats 10] [--rounds 4] [--count 50]

Each trial begins with one random labelled image per class and labels `count` more in every round: those
that `label_next` proposes, or random ones; both begin with the same images. Accuracy and calibration are
those of the head on the test images. Writes `results/labelling.toml`.
"""

import argparse
from pathlib import Path

import numpy as np
import tomli_w
import torch
from torch import Tensor

from moco import chance
from moco.embeddings import embed, joined
from moco.evaluate.fewlabel import Amount, interval, split
from moco.evaluate.labelling import fit_head, label_next
from moco.run_folder import read_run
from moco.weights import images_of, open_weights

ROOT = Path(__file__).parents[1]


def measured(
    features: Tensor, labels: Tensor, chosen: Tensor, test: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    """Percent of test images right, and mean confidence less that, of a head fitted to the chosen images."""
    head = fit_head(features[chosen], labels[chosen], int(labels.max()) + 1)
    sure, best = head.probabilities(test[0]).max(1)
    right = 100 * (best == test[1]).double().mean().item()
    return right, 100 * sure.double().mean().item() - right


def trial(
    features: Tensor, labels: Tensor, test: tuple[Tensor, Tensor], call: argparse.Namespace, repeat: int
):
    """(accuracy, overconfidence) after each round, of proposed and of random labels."""
    first = split(labels, Amount(per_class=1), repeat)
    order = torch.from_numpy(
        chance.permute(np.arange(len(labels)), len(labels), repeat, "random labels", step=0)
    )
    order = order[~torch.isin(order, first)]
    asked = [first]
    rows = []
    for number in range(call.rounds + 1):
        if number:
            asked.append(label_next(features, torch.cat(asked), call.count, seed=repeat))
        drawn = torch.cat([first, order[: number * call.count]])
        rows.append([measured(features, labels, chosen, test) for chosen in (torch.cat(asked), drawn)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("data")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--count", type=int, default=50)
    call = parser.parse_args()
    weights = open_weights(call.run)
    values, about = read_run(call.run)
    sides = []
    for part in ("train", "test"):
        source = images_of(weights, call.data, part)
        assert source.labels is not None
        sides.append((joined(embed(weights, source)).features, source.labels))
    (features, labels), test = sides
    trials = [trial(features, labels, test, call, repeat) for repeat in range(call.repeats)]
    rounds = []
    for number in range(call.rounds + 1):
        asked, drawn = ([t[number][side] for t in trials] for side in (0, 1))
        gains = interval([a[0] - d[0] for a, d in zip(asked, drawn, strict=True)])
        row = {"labels": int(labels.max()) + 1 + number * call.count}
        for name, side in ("asked", asked), ("random", drawn):
            found = interval([one[0] for one in side])
            row[name] = [round(x, 2) for x in (found.mean, found.low, found.high)]
            row[f"{name}_overconfidence"] = round(sum(one[1] for one in side) / len(side), 2)
        row["gain"] = [round(x, 2) for x in (gains.mean, gains.low, gains.high)]
        rounds.append(row)
        print(row)
    result = {
        "command": f"python benchmarks/labelling.py RUN {Path(call.data).name}",
        "recipe": values.name,
        "epochs": values.epochs,
        "images": len(labels),
        "test_images": len(test[1]),
        "repeats": call.repeats,
        "hardware": about["hardware"],
        "torch": torch.__version__,
        "label_rounds": rounds,
    }
    (ROOT / "results" / "labelling.toml").write_text(tomli_w.dumps(result))


if __name__ == "__main__":
    main()

"""`moco knn`: what a run's features are worth without training anything on them."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from moco.cli.show import FLAGS, Weights, print_table
from moco.recipe import trained_by
from moco.recipe_file import read


@dataclass(frozen=True)
class Knn:
    """kNN accuracy of a run's features on labelled images."""

    run: Weights
    """A run folder, a backbone.safetensors, or a checkpoint of the released code, lightly or solo-learn."""
    data: str | None = None
    """Labelled images, as for pretrain; None takes those the run was trained on."""
    k: int | None = None
    """Neighbours that vote; None takes the run's own number."""
    temperature: float | None = None
    """Votes weigh exp(similarity / temperature); None takes the run's own."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print the result as JSON."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    call = tyro.cli(Knn, args=words, prog="moco knn", config=FLAGS)
    from moco.assess import measure_knn
    from moco.console import tell_lost

    lost: list[str] = []
    values = measure_knn(
        call.run, data=call.data, k=call.k, temperature=call.temperature, device=call.device, lost=lost
    )
    tell_lost(lost)
    if call.json:
        print(json.dumps(values))
    else:
        path = Path(call.run)
        when = ", last checkpoint" if path.is_dir() else ""
        print(f"kNN accuracy, k = {values['k']}, T = {values['temperature']}{when}")
        made = f"trained by {trained_by(read(path / 'recipe.toml')[0])}" if path.is_dir() else path.name
        print_table({name.replace("knn", "trained"): value for name, value in values.items()}, made)
    return 0

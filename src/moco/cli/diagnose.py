"""`moco diagnose`: how a representation does, without any label."""

import json
from dataclasses import dataclass

import tyro

from moco.cli.show import FLAGS, RunFolder

MEANINGS = {
    "retrieval": "% of images whose other view is the nearest of all",
    "alignment": "mean squared distance of two views: 0 equal, 2 unrelated",
    "uniformity": "log mean exp(-2 d²) over pairs: 0 collapsed, about -4 even",
    "rankme": "directions the trunk features use (RankMe)",
    "effective_rank": "directions that carry their variance",
    "deviation": "spread of the output: 1 even, 0 one point",
}


@dataclass(frozen=True)
class Diagnose:
    """Label-free measures of a run's features on held-out images, and their trend during the run."""

    run: RunFolder
    """The run folder."""
    data: str | None = None
    """Images, as for pretrain; None takes those of the run, its test images where there are any."""
    images: int = 2000
    """How many to look at."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print the result as JSON."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    call = tyro.cli(Diagnose, args=words, prog="moco diagnose", config=FLAGS)
    from moco.assess import diagnose_run

    found = diagnose_run(call.run, data=call.data, images=call.images, device=call.device)
    if call.json:
        print(json.dumps(found))
        return 0
    for name, meaning in MEANINGS.items():
        print(f"  {name:15}{found[name]:>10.3f}   {meaning}")
    print(f"trend over the run: {found['trend']}")
    return 0

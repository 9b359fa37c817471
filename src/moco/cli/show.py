"""What commands share: how flags are made, and tables for a terminal."""

from pathlib import Path
from typing import Annotated

import tyro

FLAGS = (tyro.conf.AvoidSubcommands,)
Images = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="IMAGES")]
RunFolder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
RunFolders = Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...")]
Weights = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="WEIGHTS")]


def print_table(values: dict[str, float], trained: str) -> None:
    """Rows of features, columns of layers; `trained` says what made the first row."""
    names = {
        "trained": trained,
        "untrained": "same network, untrained",
        "raw_pixels": "raw pixels",
    }
    print(f"  {'':30}{'trunk':>8}{'head output':>14}")
    for row, label in names.items():
        if row in values:
            print(f"  {label:30}{values[row]:8.2f}")
        elif f"{row}_trunk" in values:
            output = values.get(f"{row}_output")
            shown = "-" if output is None else f"{output:.2f}"  # a file may hold no head
            print(f"  {label:30}{values[f'{row}_trunk']:8.2f}{shown:>14}")

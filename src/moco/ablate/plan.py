"""What a study will run: one job for each distinct cell and seed, each with a folder of its own."""

import contextlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from moco import recipe_file
from moco.files import ASIDE, held, write_atomically
from moco.recipe import Recipe
from moco.studies import Study

KEPT = ("finished", "diverged", "out of memory")
"""Outcomes that running the cell again would not change."""


def refuse_foreign(out: Path) -> None:
    """Raise a FileExistsError if a folder holds something that is no study."""
    if (out / "study.json").exists() or not out.exists():
        return
    if any(path.name != "images.npz" and path.suffix != ASIDE for path in out.iterdir()):  # left by a kill
        raise FileExistsError(f"{out} holds no study; choose another --out, nothing was overwritten")


@dataclass(frozen=True)
class Job:
    """One recipe with one seed.

    Attributes:
        cell: the cell's name.
        recipe: with the seed.
        out: the study's folder.
    """

    cell: str
    recipe: Recipe
    out: Path

    @cached_property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.cell}-seed{self.recipe.seed}"

    @property
    def folder(self) -> Path:
        """The run folder, as `moco pretrain` makes it."""
        return self.out / "cells" / self.name

    @property
    def request(self) -> Path:
        """The recipe to run."""
        return self.out / "recipes" / f"{self.name}.toml"

    @property
    def note(self) -> Path:
        """What became of it, and what it cost."""
        return self.out / "outcomes" / f"{self.name}.json"

    def outcome(self) -> dict[str, Any]:
        """What is known: "status" is finished, diverged, out of memory, failed or open."""
        told: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            told = json.loads(self.note.read_text())
        if (self.folder / "result.json").exists():
            return told | {"status": "finished"}
        if told.get("status") == "finished":  # its folder was taken away, to run it anew
            return {"status": "open"}
        return {"status": "open"} | told

    @property
    def settled(self) -> bool:
        """Whether there is nothing left to run."""
        return self.outcome()["status"] in KEPT

    def tell(self, **values: Any) -> None:
        """Write what became of it."""
        self.note.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.note, (json.dumps(values, indent=1) + "\n").encode())


@dataclass(frozen=True)
class Plan:
    """A study on a data set, with seeds, in a folder.

    Raises:
        ValueError: if a seed is given twice or none is.
        FileExistsError: if the folder holds something else; nothing is overwritten.
    """

    study: Study
    data: str
    seeds: tuple[int, ...]
    out: Path

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be one number or more, each once, got {self.seeds}")
        refuse_foreign(self.out)
        about = self.about()
        if about and about["study"] != self.study.name:
            raise FileExistsError(f"{self.out} holds the study {about['study']}; choose another --out")
        if about and about["data"] != self.data:
            raise FileExistsError(f"{self.out} was begun on {about['data']}; choose another --out")

    def about(self) -> dict[str, Any]:
        """What the folder says of itself; empty before the study has begun."""
        path = self.out / "study.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @cached_property
    def jobs(self) -> list[Job]:
        """All jobs, one whole pass over the cells for each seed, so that first results come early."""
        recipes = self.study.recipes()
        return [
            Job(name, replace(recipe, name=name, seed=seed), self.out)
            for seed in self.seeds
            for name, recipe in recipes.items()
        ]

    def of(self, cell: str) -> list[Job]:
        """The jobs of one cell, in the order of the seeds."""
        return [job for job in self.jobs if job.cell == cell]

    def begin(self, threads: int, **circumstances: str) -> int:
        """Write what will run; returns the threads of each run, which a study keeps for good.

        Args:
            threads: of each run, if the study has not begun.
            circumstances: what else the folder says of itself from now on.

        Raises:
            FileExistsError: if a finished or open cell was begun with another recipe.
        """
        for job in self.jobs:
            if (job.folder / "recipe.toml").exists():
                # what was asked for: the run's own recipe also holds what images and device filled in
                asked = job.request if job.request.exists() else job.folder / "recipe.toml"
                if recipe_file.read(asked)[0] != job.recipe:
                    raise FileExistsError(
                        f"{job.folder} was begun with another recipe; choose another --out, or the base, "
                        "values and settings it was begun with"
                    )
        known = self.about()
        about = {
            "study": self.study.name,
            "question": self.study.question,
            "data": self.data,
            "threads": known.get("threads", threads),
            **circumstances,
            "cells": {name: recipe_file.to_dict(recipe) for name, recipe in self.study.recipes().items()},
        }
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out / "study.json", (json.dumps(about, indent=1) + "\n").encode())
        (self.out / "recipes").mkdir(exist_ok=True)
        for job in self.jobs:
            write_atomically(job.request, recipe_file.text(job.recipe).encode())
        return about["threads"]


def claimed(job: Job) -> contextlib.AbstractContextManager[int | None]:
    """Hold a cell against other processes on the same folder; None if somebody else has it (see `held`)."""
    return held(job.out / "claims" / job.name)

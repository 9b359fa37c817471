"""One HTML file that shows runs: no other file, no address, no network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch

from moco import recipe_file
from moco.files import write_atomically
from moco.recipe import trained_by
from moco.report.atlas import Atlas, build_atlas
from moco.report.command import command
from moco.report.facts import RunFacts, charts, read_facts
from moco.weights import describe, images_if_any, images_of, open_weights
from moco.words import some

QUERIES = 8  # images whose neighbours are shown


def write_report(
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    data: str | None = None,
    images: int = 800,
    projection: str = "pca",
    device: torch.device | str = "cpu",
) -> Path:
    """Write a page about one run, or about several in the same charts.

    Args:
        runs: run folders, finished or not.
        out: the file; None takes report.html in the run's folder, for several runs comparison.html in the
            first one's.
        data: images for the map and the neighbours, as for `pretrain`; None takes the run's own test
            images, or its training images where there are none. Several runs are shown without.
        images: how many of them at most.
        projection: of the map: "pca", or "tsne" to have both.
        device: where they are encoded.

    Returns:
        The file.

    Raises:
        FileNotFoundError: if a folder holds no run.
        ValueError: if there is nothing to show yet.
    """
    folders = [Path(run) for run in runs]
    names = [folder.resolve().name for folder in folders]
    facts = [
        read_facts(folder, name if names.count(name) == 1 else str(folder))
        for folder, name in zip(folders, names, strict=True)
    ]
    for run in facts:
        if not any("loss" in row for row in run.rows):
            raise ValueError(f"{run.out} has no row in its journal yet; there is nothing to show")
    atlas, why_not = None, ""
    if len(facts) == 1:
        atlas, why_not = _atlas(facts[0], data, images, projection, device)
    name = "report.html" if len(folders) == 1 else "comparison.html"
    path = Path(out) if out is not None else folders[0] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render(facts, atlas, why_not).encode(errors="backslashreplace"))
    return path


def render(facts: list[RunFacts], atlas: Atlas | None = None, why_not: str = "") -> str:
    """The page as text.

    Args:
        facts: the runs; one is shown whole, several are compared.
        atlas: what the features of the only run put together.
        why_not: why there is none.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("moco.report", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    drawn = charts(facts)
    run = facts[0]
    return environment.get_template("report.html").render(
        facts=facts,
        run=run,
        alone=len(facts) == 1,
        title=run.name if len(facts) == 1 else " and ".join(one.name for one in facts),
        sentence=_sentence(run) if len(facts) == 1 else "",
        tiles=_tiles(run) if len(facts) == 1 else [],
        table=_table(facts),
        votes=_votes(facts),
        notes=run.notes() if len(facts) == 1 else [],
        charts=drawn,
        chart_data=[chart.data() for chart in drawn],
        commands=[command(one.values, one.run, one.out) for one in facts],
        environment=_environment(run),
        recipe=recipe_file.text(run.values),
        differences=_differences(facts),
        atlas=atlas,
        why_not=why_not,
        atlas_data=_atlas_data(atlas) if atlas is not None else None,
        queries=_queries(atlas) if atlas is not None else [],
        architecture=describe_run(run),
    )


def describe_run(run: RunFacts) -> str:
    """The network of a run in a few words."""
    encoder = run.values.encoder
    return describe({"arch": encoder.arch, "width": encoder.width, "stem": encoder.stem})


def _atlas(
    run: RunFacts, data: str | None, images: int, projection: str, device: torch.device | str
) -> tuple[Atlas | None, str]:
    """The atlas, or why there is none."""
    try:
        weights = open_weights(run.out, device)
        source = images_if_any(weights, data, "test")
        if source is None or len(source) < 10:
            source = images_of(weights, data)
        return build_atlas(weights, source, images=images, projection=projection), ""
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        if data is not None:
            raise
        return None, str(error)  # images that have moved away do not keep the curves from being seen


def _sentence(run: RunFacts) -> str:
    """What the run is worth, in one sentence."""
    if run.verdict.get("sentence"):
        return str(run.verdict["sentence"])
    table = run.result.get("knn", {})
    if "trained_trunk" in table and "untrained_trunk" in table and "raw_pixels" in table:
        return (
            f"A vote of the {table['k']} nearest neighbours names the class of "
            f"{table['trained_trunk']:.1f} % of the images; on the same network untrained it names "
            f"{table['untrained_trunk']:.1f} %, on raw pixels {table['raw_pixels']:.1f} %."
        )
    last = next(row for row in reversed(run.rows) if "loss" in row)
    ended = "" if run.result else "The run has not ended. "
    if measured := run.column("knn_trunk"):
        (epoch, value), k = measured[-1], run.values.monitor.k
        return (
            f"{ended}After {some(epoch, 'epoch')}, a vote of the nearest neighbours (at most {k}) names the "
            f"class of {value:.1f} % of the images."
        )
    others = run.interpreter.negatives
    return (
        f"{ended}After {last['step']:,} steps, {100 * last['accuracy']:.1f} % of the queries find their key "
        f"among {f'{others:,}' if others else 'all'} others; no labels say what the features are worth."
    )


def _tiles(run: RunFacts) -> list[tuple[str, str, str]]:
    """The figures to see first: what, how much, of what."""
    table, last = run.result.get("knn", {}), next(row for row in reversed(run.rows) if "loss" in row)
    tiles = []
    if "trained_trunk" in table:
        against = f"untrained {table['untrained_trunk']:.1f}, raw pixels {table['raw_pixels']:.1f}"
        tiles.append(("kNN accuracy", f"{table['trained_trunk']:.1f} %", against))
    tiles.append(("loss", f"{last['loss']:.3f}", _against_guessing(run)))
    for name, unit in ("retrieval", " %"), ("rankme", ""):
        if column := run.column(name):
            what = {"retrieval": "two-view retrieval", "rankme": "RankMe"}[name]
            tiles.append((what, f"{column[-1][1]:.1f}{unit}", f"{column[0][1]:.1f}{unit} at first"))
    tiles.append(
        ("images", f"{run.run['images']:,}", f"{some(last['epoch'], 'epoch')}, {last['step']:,} steps")
    )
    if (speed := run.speed()) is not None:
        many = run.run["threads"]
        threads = f", {some(many, 'thread')}" if run.run["device"] == "cpu" else ""
        took = f"; the last call took {_duration(run.result['seconds'])}" if run.result else ""
        tiles.append(("speed", f"{speed:,.0f}/s", f"images, {run.run['device']}{threads}{took}"))
    return tiles


def _against_guessing(run: RunFacts) -> str:
    guessing = run.interpreter.guessing
    return f"guessing costs {guessing:.2f}" if guessing is not None else ""


def _table(facts: list[RunFacts]) -> list[dict[str, Any]]:
    """kNN accuracies, a row per run and two rows of baselines."""
    rows = []
    for run in facts:
        table = run.result.get("knn", {})
        if "trained_trunk" in table:
            name = f"trained by {trained_by(run.values)}" if len(facts) == 1 else run.name
            rows.append({"name": name, "trunk": table["trained_trunk"], "output": table["trained_output"]})
    table = facts[0].result.get("knn", {})
    if rows and "untrained_trunk" in table:
        of = "" if len(facts) == 1 else f" ({facts[0].name})"
        rows.append(
            {
                "name": f"same network, untrained{of}",
                "trunk": table["untrained_trunk"],
                "output": table["untrained_output"],
            }
        )
        rows.append({"name": f"raw pixels{of}", "trunk": table["raw_pixels"], "output": None})
    return rows


def _votes(facts: list[RunFacts]) -> str:
    """With how many neighbours and which temperature the table was measured."""
    tables = [run.result["knn"] for run in facts if run.result.get("knn")]
    return "; ".join(dict.fromkeys(f"k = {of['k']}, T = {of['temperature']}" for of in tables))


def _environment(run: RunFacts) -> list[tuple[str, str]]:
    """Where the run took place and on what."""
    known = {name.replace("_", " "): str(value) for name, value in run.run.items() if value != ""}
    known["network"] = describe_run(run)
    known["precision"] = run.values.precision
    order = ["data", "images", "channels", "fingerprint", "network", "precision", "device", "hardware"]
    names = [*order, *(name for name in known if name not in order)]
    return [(name, known[name]) for name in names if name in known]


def _differences(facts: list[RunFacts]) -> list[tuple[str, list[str]]]:
    """Values in which recipes differ, and what each run has."""
    flat = [recipe_file.flat(run.values) for run in facts]
    names = dict.fromkeys(name for values in flat for name in values)
    rows = [(name, [str(values.get(name, "–")) for values in flat]) for name in names]
    return [row for row in rows if len(set(row[1])) > 1 and row[0] != "name"]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _atlas_data(atlas: Atlas) -> dict[str, Any]:
    """What the page's script needs of an atlas."""
    return {
        "places": [
            {"how": how, "place": [[round(x, 4), round(y, 4)] for x, y in place.tolist()]}
            for _, how, place in atlas.places
        ],
        "names": atlas.names,
        "labels": atlas.labels,
        "cluster": atlas.cluster.tolist(),
        "neighbours": atlas.neighbours.tolist(),
        "similarity": [[round(s, 3) for s in row] for row in atlas.similarity.tolist()],
        "columns": atlas.columns,
    }


def _queries(atlas: Atlas) -> list[int]:
    """Images whose neighbours are shown: of as many classes as there are, the first of each."""
    seen: dict[str, int] = {}
    for image, label in enumerate(atlas.labels):
        seen.setdefault(label or str(image), image)
        if len(seen) == QUERIES:
            break
    return list(seen.values())

"""What a study found: means and spreads of its finished cells, differences with intervals, as files.

Everything here is a function of the cells' results; time and memory are kept apart (`costs`), so
that a study killed anywhere ends with the same table.
"""

import json
import statistics
from collections.abc import Sequence
from typing import Any

from moco.ablate.plan import Job, Plan
from moco.evaluate.fewlabel import interval
from moco.files import write_atomically
from moco.words import some

COLUMNS = {
    "knn_trunk": "kNN, trunk",
    "knn_output": "kNN, head output",
    "linear": "linear",
    "accuracy": "pretext accuracy",
    "loss": "loss",
}
"""Columns by name; others that a cell's measures.json holds follow under their own names."""

BASELINES = {"untrained_trunk": "untrained, trunk", "untrained_output": "untrained, output"}
BASELINES |= {"raw_pixels": "raw pixels"}


def measures(job: Job) -> dict[str, float]:
    """The columns of one finished cell, and its baselines; percent but for the loss.

    A `measures.json` in the run folder, of names and numbers, adds columns (linear accuracy, say).
    """
    result = json.loads((job.folder / "result.json").read_text())
    values = {name: value for name, value in result["knn"].items() if name not in ("k", "temperature")}
    found = {name.replace("trained_", "knn_", 1) if name.startswith("trained_") else name: value
             for name, value in values.items()}  # fmt: skip
    found |= {"accuracy": round(100 * result["accuracy"], 3), "loss": round(result["loss"], 4)}
    extra = job.folder / "measures.json"
    return found | (json.loads(extra.read_text()) if extra.exists() else {})


def gather(plan: Plan) -> dict[str, Any]:
    """The study's table as plain values: a row for each place of a cell, with all that is finished."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    statuses: dict[str, list[str]] = {}
    for name in plan.study.recipes():
        jobs = plan.of(name)
        statuses[name] = [job.outcome()["status"] for job in jobs]
        found[name] = {
            job.recipe.seed: measures(job)
            for job, status in zip(jobs, statuses[name], strict=True)
            if status == "finished"
        }
    reference = found.get(plan.study.reference, {})
    metric = plan.study.metric
    rows = []
    for cell in plan.study.cells:
        by_seed = found[cell.name]
        row: dict[str, Any] = {"cell": cell.name, "series": cell.series, "x": cell.x, "n": len(by_seed)}
        lost = [status for status in statuses[cell.name] if status not in ("finished", "open")]
        if lost:
            row["ended"] = ", ".join(f"{lost.count(word)} {word}" for word in sorted(set(lost)))
        row["values"] = {
            column: spread([of[column] for of in by_seed.values() if column in of])
            for column in _columns(by_seed.values())
        }
        pairs = [
            by_seed[seed][metric] - reference[seed][metric]
            for seed in plan.seeds
            if seed in by_seed and seed in reference and metric in by_seed[seed] and metric in reference[seed]
        ]
        if pairs and cell.name != plan.study.reference:
            row["difference"] = difference(pairs)
        rows.append(row)
    return {
        "study": plan.study.name,
        "question": plan.study.question,
        "data": plan.data,
        "seeds": list(plan.seeds),
        "metric": metric,
        "reference": plan.study.reference,
        "open": sum(status == "open" for of_cell in statuses.values() for status in of_cell),
        "rows": rows,
        "baselines": _baselines([reference, *found.values()]),
    }


def _baselines(cells: Sequence[dict[int, dict[str, float]]]) -> dict[str, Any]:
    """Those of the first cell that has any, one value for each seed: other cells may be other networks."""
    first = next((list(by_seed.values()) for by_seed in cells if by_seed), [])
    seen = {name: [of[name] for of in first if name in of] for name in BASELINES}
    return {
        name: spread(values if len(set(values)) > 1 else values[:1])  # raw pixels know no seed
        for name, values in seen.items()
        if values
    }


def costs(plan: Plan) -> list[dict[str, Any]]:
    """Time and memory of every settled job, as its machine measured them."""
    kept = ("status", "reason", "seconds", "seconds_per_step", "peak_mib", "hardware", "threads", "commit")
    told = [(job, job.outcome()) for job in plan.jobs]
    return [
        {"cell": job.cell, "seed": job.recipe.seed} | {name: known[name] for name in kept if name in known}
        for job, known in told
        if known["status"] != "open"
    ]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, number and, of two or more, standard deviation."""
    result: dict[str, Any] = {"mean": round(statistics.mean(values), 3), "n": len(values)}
    return result | ({"std": round(statistics.stdev(values), 3)} if len(values) > 1 else {})


def difference(pairs: Sequence[float]) -> dict[str, Any]:
    """Mean of paired differences and, of two or more, its 95 % interval by Student's t."""
    found = interval(pairs)
    result: dict[str, Any] = {"mean": round(found.mean, 3), "n": len(pairs)}
    return result | ({"low": round(found.low, 3), "high": round(found.high, 3)} if len(pairs) > 1 else {})


def markdown(table: dict[str, Any]) -> str:
    """The table for documents, with what each column means below."""
    rows = table["rows"]
    columns = [name for name in _order(rows) if any(name in row["values"] for row in rows)]
    against = any("difference" in row for row in rows)
    series = any(row["series"] not in ("", row["x"]) for row in rows)
    heads = ["cell", *(["curve"] if series else []), *(COLUMNS.get(name, name) for name in columns)]
    heads += [f"against {table['reference']}"] if against else []
    lines = ["| " + " | ".join([*heads, "n"]) + " |", "|" + "---|" * (len(heads) + 1)]
    for row in rows:
        cells = [str(row["cell"]), *([row["series"]] if series else [])]
        cells += [_number(row["values"].get(name), name) for name in columns]
        if against:
            cells.append(_difference(row.get("difference")))
        cells.append(str(row["n"]) + (f" ({row['ended']})" if "ended" in row else ""))
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    told = [f"{BASELINES[name]} {_number(value, name)}" for name, value in table["baselines"].items()]
    note = "Percent (loss: nats), mean ± standard deviation over n seeds"
    if against:
        note += f"; against: paired difference of {COLUMNS.get(table['metric'], table['metric'])}"
        note += " with its 95 % interval"
    lines.append(note + ("; " + ", ".join(told) if told else "") + ".")
    if table["open"]:
        lines.append(f"{some(table['open'], 'run')} open.")
    return "\n".join(lines) + "\n"


def write(plan: Plan) -> dict[str, Any]:
    """Write table.json, table.md and cost.json into the study's folder; returns the table."""
    table = gather(plan)
    write_atomically(plan.out / "table.json", (json.dumps(table, indent=1) + "\n").encode())
    write_atomically(plan.out / "table.md", markdown(table).encode())
    write_atomically(plan.out / "cost.json", (json.dumps(costs(plan), indent=1) + "\n").encode())
    return table


def _columns(found) -> list[str]:
    names = {name for of in found for name in of} - BASELINES.keys()
    return [name for name in COLUMNS if name in names] + sorted(names - COLUMNS.keys())


def _order(rows: list[dict[str, Any]]) -> list[str]:
    return _columns([row["values"] for row in rows])


def _number(value: dict[str, Any] | None, name: str) -> str:
    if value is None:
        return ""
    digits = 3 if name == "loss" else 1
    return f"{value['mean']:.{digits}f}" + (f" ± {value['std']:.{digits}f}" if "std" in value else "")


def _difference(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    bounds = f" [{value['low']:+.1f}, {value['high']:+.1f}]" if "low" in value else ""
    return f"{value['mean']:+.1f}{bounds}"

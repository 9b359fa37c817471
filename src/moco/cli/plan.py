"""`moco plan`: a recipe for your images, your machine and your time."""

import contextlib
import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from moco.cli.show import FLAGS, Images
from moco.data.reading import Reading
from moco.words import duration, some


@dataclass(frozen=True)
class PlanCall:
    """Look at images, measure a few steps, and write a recipe with a reason for each value."""

    data: Images
    """Images, as for pretrain."""
    budget: str | None = None
    """Time for training, such as 6h, 30m or 1h30m; None takes 20 minutes on a CPU, 6 hours on a
    GPU, 2 on an Apple GPU."""
    out: Path = Path("plan.toml")
    """The recipe file, for moco pretrain --from; an existing one is replaced."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    reading: Reading = field(default_factory=Reading)
    workers: int = 2
    """Threads that decode image files."""
    json: bool = False
    """Print the result as JSON."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    call = tyro.cli(PlanCall, args=words, prog="moco plan", config=FLAGS)
    budget = parse_budget(call.budget) if call.budget is not None else None
    from moco.device import choose_device
    from moco.plan import plan

    device = choose_device(call.device)
    found = plan(call.data, device, budget=budget, reading=call.reading, workers=call.workers)
    found.write(call.out)
    if call.json:
        values = {"look": found.look, "advice": found.advice}
        table = {name: _plain(value) for name, value in values.items()}
        numbers = {"speed": found.speed, "seconds": found.seconds, "memory": found.memory}
        print(json.dumps({"file": str(call.out), **table, **numbers}))
        return 0
    look = found.look
    print(
        f"{some(look.images, 'image')} of {some(look.channels, 'channel')}, "
        f"short side about {look.short_side} pixels, {100 * look.grey:.0f} % grey\n"
    )
    width = max(len(f"{a.name} {a.value}") for a in found.advice)
    for a in found.advice:
        print(f"{f'{a.name} {a.value}':{width}}  {a.reason} [{a.source}]")
    print(
        f"\n{found.speed:,.0f} images/s measured: training takes about {duration(found.seconds)}; "
        f"{found.memory / 2**30:.1f} GiB held\n\n  moco pretrain --from {call.out} --out runs/planned"
    )
    return 0


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]


def parse_budget(text: str) -> float:
    """Seconds of "6h", "30m", "90s" or "1h30m".

    Raises:
        ValueError: if it is none of these.
    """
    found = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m(?:in)?)?(?:([\d.]+)s)?", text.replace(" ", ""))
    seconds = 0.0
    with contextlib.suppress(ValueError):
        parts = found.groups() if found is not None else ()
        seconds = sum((float(n) * unit for n, unit in zip(parts, (3600, 60, 1), strict=False) if n), 0.0)
    if not seconds > 0:
        raise ValueError(f"--budget must be a time such as 6h, 30m, 90s or 1h30m, got {text!r}")
    return seconds

"""`moco doctor`: what is in a set of images, before anything is trained on it."""

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from moco.cli.show import FLAGS, Images
from moco.data.reading import Reading
from moco.recipes import get
from moco.words import some

_SHOWN = 3  # names per line


@dataclass(frozen=True)
class Doctor:
    """Decode every image, say what was found and done, and list what cannot be read."""

    images: Images
    """Images, as for pretrain."""
    against: str | None = None
    """Test images, as for pretrain, that should not be among them; None: their own, where there are any."""
    out: Path = Path("doctor")
    """Folder for doctor.json, quarantine.jsonl (for pretrain --quarantine) and views.png."""
    recipe: str = "photos"
    """The recipe whose views are drawn."""
    reading: Reading = field(default_factory=Reading)
    workers: int = 2
    """Threads that decode."""
    json: bool = False
    """Print the result as JSON."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    call = tyro.cli(Doctor, args=words, prog="moco doctor", config=FLAGS)
    recipe = get(call.recipe)
    from moco.run_folder import is_free

    if not is_free(call.out) and not (call.out / "doctor.json").exists():
        raise FileExistsError(
            f"{call.out} holds something else; choose another --out, nothing was overwritten"
        )
    from moco.data.doctor import report
    from moco.data.open import locate, open_source
    from moco.data.quarantine import quarantine_text
    from moco.files import write_atomically

    if call.workers < 1:
        raise ValueError(f"workers must be at least 1 thread, got {call.workers}")
    source = open_source(locate(call.images), reading=call.reading)
    if call.against is None:
        against = open_source(locate(call.images), "test", reading=call.reading)
    else:
        against = _test_images(locate(call.against), call.reading)
    assert source is not None
    result = {"data": source.name} | report(source, against, workers=call.workers, progress=_progress)
    call.out.mkdir(parents=True, exist_ok=True)
    bad = [{"file": name, "reason": reason} for name, reason in result["unreadable"].items()]
    write_atomically(call.out / "doctor.json", json.dumps(result, indent=1).encode())
    write_atomically(call.out / "quarantine.jsonl", quarantine_text(bad).encode())
    drawn = bool(result["readable"]) and _draw(call, source, recipe)
    if call.json:
        print(json.dumps(result))
        return 0
    _print(result)
    sheet = ", views.png" if drawn else ""
    print(f"\n{call.out}: doctor.json, quarantine.jsonl{sheet}")
    return 0


def _test_images(spec: str, reading: Reading) -> Any:
    """The test images of a specification; if it has none, all of its images."""
    from moco.data.open import open_source

    test = open_source(spec, "test", reading=reading)
    return test if test is not None else open_source(spec, reading=reading)


def _draw(call: Doctor, source: Any, recipe: Any) -> bool:
    """The contact sheet of what the network will see."""
    from moco.data.loader import Loader
    from moco.data.statistics import fitted
    from moco.data.views import Views
    from moco.report.plots import plot_views

    size = min(12, len(source))
    try:
        views = Views(fitted(dataclasses.replace(recipe.views, mean=None, std=None), source))
        plot_views(call.out / "views.png", Loader(source, views, size), count=size)
    except RuntimeError as error:
        print(f"no contact sheet: {error}", file=sys.stderr)
        return False
    return True


def _progress(done: int, images: int) -> None:
    if sys.stderr.isatty() or done == images:
        end = "\n" if done == images else ""
        print(f"\r{done:,} of {images:,} images", end=end, file=sys.stderr, flush=True)


def _print(result: dict[str, Any]) -> None:
    print(
        f"{result['data']}: {result['images']:,} images, {result['readable']:,} readable, "
        f"{some(result['channels'], 'channel')} of {result['depth']}"
    )
    reasons: dict[str, list[str]] = {}
    for name, reason in result["unreadable"].items():
        reasons.setdefault(_general(reason), []).append(name)
    _section("cannot be read", reasons)
    _section("read, with a remark", result["remarks"])
    kinds: dict[str, list[str]] = {}
    for name, why in result["skipped"].items():
        kinds.setdefault(why, []).append(name)
    _section("skipped", kinds)
    _pairs("duplicates", result["duplicates"])
    if "leakage" in result:
        _pairs(f"also in {result['leakage']['against']}", result["leakage"])
    if result["sizes"]:
        sides = result["sizes"]
        words = (f"{name} {s['least']} to {s['most']}, median {s['median']}" for name, s in sides.items())
        print(f"\npixels: {'; '.join(words)}")
        print(f"channels: mean {result['statistics']['mean']}, deviation {result['statistics']['std']}")
    if classes := result["classes"]:
        counts = sorted(classes.values())
        print(f"classes: {len(classes)}, {counts[0]:,} to {counts[-1]:,} images each")


def _general(reason: str) -> str:
    """A reason without what is particular to one file."""
    words = {"no image of a known format": "no image, or cut off in its header",
             "reading.max_pixels": "too large (--reading.max-pixels)", "truncated": "truncated",
             "reading.max_memory": "too large (--reading.max-memory)"}  # fmt: skip
    return next((general for part, general in words.items() if part in reason), reason[:70])


def _section(title: str, lines: dict[str, list[str]]) -> None:
    if lines:
        print(f"\n{title}")
    for what, names in sorted(lines.items(), key=lambda line: -len(line[1])):
        shown = ", ".join(name[:40] for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        print(f"  {len(names):>7,}  {what}: {shown}")


def _pairs(title: str, found: dict[str, Any]) -> None:
    if "not compared" in found:
        print(f"\n{title}: not compared, {found['not compared']}")
        return
    print(f"\n{title}: {len(found['exact']):,} exact, {len(found['near']):,} nearly"
          + (f" (not sought {found['near not sought']})" if "near not sought" in found else ""))  # fmt: skip
    for group in found["exact"][:_SHOWN]:
        print(f"           {' = '.join(name[:40] for name in group[:4])}")
    for first, second, similarity in found["near"][:_SHOWN]:
        print(f"  {similarity:>7.3f}  {first[:40]} ~ {second[:40]}")
    if max(len(found["exact"]), len(found["near"])) > _SHOWN:
        print("           ... (all of them in doctor.json)")

"""`moco pack`: a folder of images as tar shards, for sets too large for files."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from moco.cli.show import FLAGS
from moco.words import some

MOST_SKIPPED = 0.01  # share of the files that may be unreadable before the exit code says so


@dataclass(frozen=True)
class Pack:
    """Write a folder of images as tar shards in random order, or check shards with --verify."""

    images: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """A folder of image files; class folders become classes. With --verify, a folder of shards."""
    out: Path | None = None
    """The folder to write, new or empty."""
    shard_images: int = 10_000
    """Images per shard."""
    short_side: int | None = None
    """Resize 8-bit grey and RGB images whose short side is longer, pixels; None keeps every file as it is."""
    seed: int = 0
    """Of the random order."""
    workers: int = 2
    """Threads that read."""
    verify: bool = False
    """Compare shards with their checksums instead of writing any."""
    json: bool = False
    """Print the result as JSON."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    call = tyro.cli(Pack, args=words, prog="moco pack", config=FLAGS)
    if call.verify:
        return _verify(call)
    if call.out is None:
        raise ValueError("--out is needed: the folder to write the shards into")
    if call.short_side is not None and call.short_side < 1:
        raise ValueError(f"short_side must be at least 1 pixel, got {call.short_side}")
    from moco.data.encoded import FolderSource
    from moco.data.open import parts_of
    from moco.data.pack import Member, pack, smaller

    if call.images.is_dir() and (part := parts_of(call.images).get("train")):
        raise ValueError(
            f"{call.images} has a folder {part}/; pack each split by itself, such as "
            f"{call.images / part} --out {call.out / 'train'}"
        )
    source = FolderSource(call.images)
    labels = source.labels
    left: list[str] = []

    def read(number: int) -> Member:
        path = source.root / source.sample_name(number)
        ending = path.suffix.lower()
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RuntimeError(f"{path}: {error}") from error
        if not content:
            raise RuntimeError(f"{path}: it is empty")
        if call.short_side is not None:
            small = smaller(content, ending, call.short_side, str(path))
            content, ending = small.content, small.ending
            if small.left:
                left.append(str(path))
        return Member(ending, content, -1 if labels is None else int(labels[number]))

    with _bar(len(source), "images") as progress:
        packed = pack(
            read,
            len(source),
            call.out,
            classes=tuple(source.classes),
            shard_images=call.shard_images,
            seed=call.seed,
            workers=call.workers,
            progress=progress,
        )
    for reason in packed.skipped[:20]:
        print(f"skipped {reason}", file=sys.stderr)
    if len(packed.skipped) > 20:
        print(f"skipped {len(packed.skipped) - 20:,} more", file=sys.stderr)
    if left:
        print(
            f"{len(left):,} larger images were left as they are: only 8-bit grey and RGB are resized "
            f"({', '.join(sorted(left)[:3])}{' ...' if len(left) > 3 else ''})",
            file=sys.stderr,
        )
    if call.json:
        print(json.dumps(dataclasses.asdict(packed) | {"left": len(left)}))
    else:
        print(
            f"{call.out}: {some(packed.images, 'image')} in {some(packed.shards, 'shard')}, "
            f"{packed.bytes / 1e6:,.1f} MB, {len(packed.skipped):,} skipped; "
            f"moco pretrain RECIPE --data {call.out}"
        )
    if len(packed.skipped) > MOST_SKIPPED * len(source):
        print(f"moco: more than {100 * MOST_SKIPPED:g} % of the files could not be packed", file=sys.stderr)
        return 1
    return 0


def _verify(call: Pack) -> int:
    from moco.data.pack import verify
    from moco.data.shard_table import SHARDS, read_table

    if not (call.images / SHARDS).exists():
        raise FileNotFoundError(f"{call.images} holds no packed shards: there is no {SHARDS}")
    count = len(read_table(call.images).names)
    with _bar(count, "shards") as progress:
        damaged = verify(call.images, progress)
    if call.json:
        print(json.dumps({"shards": count, "damaged": damaged}))
    else:
        print("\n".join([*damaged, f"{count - len(damaged):,} of {count:,} shards are whole"]))
    return 1 if damaged else 0


class _bar:
    """A progress bar on standard error where that is a terminal."""

    def __init__(self, total: int, what: str):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from moco.console import Plain

        columns = [TextColumn(what), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(compact=True)]
        console = Plain()
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task(what, total=total)

    def __enter__(self):
        self.bar.start()
        return lambda done: self.bar.update(self.task, completed=done)

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

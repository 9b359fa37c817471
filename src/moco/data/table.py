"""Tables as people and spreadsheets save them: with commas, semicolons or tabs, and columns in any case."""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

csv.field_size_limit(2**31 - 1)  # captions are longer than Python expects


def read_table(path: Path, *, exact: bool = False) -> tuple[list[str], list[list[str]]]:
    """The names of the columns of a CSV or TSV file, and its rows, those without any value left out.

    Columns are parted by commas; by semicolons, or else tabs, where the first line has no comma; in .tsv by
    tabs.

    Args:
        path: of the file.
        exact: values may be any bytes and begin with spaces, as names of files may; an open quotation mark
            is an error, not part of a value.

    Raises:
        UnicodeDecodeError: if it is not UTF-8, unless exact.
        ValueError: if it is no such table.
    """
    errors = "surrogateescape" if exact else "strict"
    with open(path, newline="", encoding="utf-8-sig", errors=errors) as file:
        header = file.readline()
        file.seek(0)
        marks = "\t" if path.suffix.lower() == ".tsv" else ",;\t"
        delimiter = next((mark for mark in marks if mark in header), marks[0])
        lines = csv.reader(file, delimiter=delimiter, skipinitialspace=not exact, strict=exact)
        try:
            names, *rows = [row for row in lines if any(value.strip() for value in row)] or [[]]
        except csv.Error as error:
            raise ValueError(
                f"{path} is no table from line {lines.line_num} on: {error}; look for a quotation mark there "
                "that is not closed"
            ) from None
    return names, rows


def places(names: Sequence[str], known: Iterable[str], path: Path) -> dict[str, int]:
    """Where each known column stands; capitals and spaces around its name do not count.

    Raises:
        ValueError: if there are two of one name.
    """
    tidy, known = [name.strip().lower() for name in names], set(known)
    for name, count in Counter(tidy).items():
        if name in known and count > 1:
            raise ValueError(f"{path} must have one column {name}, got {count} columns named {name} when "
                             "capitals and spaces do not count")  # fmt: skip
    return {name: place for place, name in enumerate(tidy) if name in known}


def in_order(words: Iterable[str]) -> list[str]:
    """Each word once: numbers by their value, then the others by their letters."""
    return sorted(set(words), key=lambda w: (not w.isdecimal(), int(w) if w.isdecimal() else 0, w))

"""Labelled data sets: from files where there are any, from the hub where there is a network."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectrim.errors import SpectrimError, UnavailableError
from spectrim.metrics._contract import Pair

Row = dict[str, Any]

DAMAGED = (AttributeError, LookupError, TypeError, ValueError)
"""What code that takes a row apart raises where the row is not what it should be."""


@dataclass(frozen=True)
class DataSet:
    """One data set, in a file of the folder of data and on the hub.

    file: path in that folder; .jsonl, .json, .csv or .tsv, or whatever ``parse`` reads.
    hub: "repository:config:split", the empty string where the hub has none that loads without code.
    columns: what every row must have.
    lists: those of the columns that hold several texts; all others hold one.
    parse: path → rows, where the file is none of these or has its rows nested.
    adapt: row of the hub → row with ``columns``, where its columns are others.
    """

    file: str
    hub: str
    columns: tuple[str, ...]
    parse: Callable[[Path], Iterable[Row]] | None = None
    adapt: Callable[[Row], Row] | None = None
    lists: tuple[str, ...] = ()

    def rows(self, pair: Pair, limit: int | None, *, seed: int | None = None) -> list[Row]:
        """Return up to ``limit`` rows (None: all), drawn with the evaluation's seed.

        Raises:
            UnavailableError: neither the file nor the hub's data set can be had.
            SpectrimError: the file is empty, is damaged, or its rows lack a column or hold
                something else than text in one.
        """
        path = self.local(pair)
        if path is not None:
            found = self.of_file(path)
        else:
            found = _complete(self._from_hub(pair.evaluation.data), self.columns, self.hub)
        self._refuse_other_than_text(found, str(path or self.hub))
        random.Random(pair.evaluation.seed if seed is None else seed).shuffle(found)
        return found if limit is None else found[:limit]

    def local(self, pair: Pair) -> Path | None:
        """Return the file, where the folder of data has it."""
        folder = pair.evaluation.data
        return folder / self.file if folder and (folder / self.file).is_file() else None

    def of_file(self, path: Path) -> list[Row]:
        """Return all rows of a file, in its order, whatever their columns hold.

        Raises:
            SpectrimError: the file is empty, is damaged, or its rows lack a column.
        """
        try:
            found = list(self.parse(path) if self.parse else _parsed(path))
        except (*DAMAGED, csv.Error) as error:
            raise SpectrimError(f"{path} cannot be read as data ({error}); get it again") from error
        return _complete(found, self.columns, str(path))

    def _refuse_other_than_text(self, rows: Iterable[Row], where: str) -> None:
        for number, row in enumerate(rows, start=1):
            for name in self.columns:
                if not _is_text(row[name], several=name in self.lists):
                    wanted = "a list of texts" if name in self.lists else "text"
                    raise SpectrimError(
                        f"row {number} of {where} has {json.dumps(row[name], default=str)[:40]} "
                        f"as '{name}'; expected {wanted}"
                    )

    def _from_hub(self, folder: Path | None) -> Iterable[Row]:
        where = f"no file {self.file} in {folder}" if folder else "no folder of data was given"
        if not self.hub:
            raise UnavailableError(f"{where} and no hub has {self.file}; bring it with --data")
        import datasets

        repository, _, rest = self.hub.partition(":")
        config, _, part = rest.partition(":")
        try:
            rows = datasets.load_dataset(repository, config or None, split=part or "test")
        except Exception as error:  # the hub, the network and each format fail in their own ways
            raise UnavailableError(
                f"{where} and {repository} cannot be had from the hub; "
                "give a folder that has it with --data, or a network"
            ) from error
        try:
            return [self.adapt(dict(row)) if self.adapt else dict(row) for row in rows]
        except DAMAGED as error:
            raise SpectrimError(
                f"{repository} on the hub has other columns than expected ({error!r}); "
                f"bring {self.file} with --data"
            ) from error


def _parsed(path: Path) -> list[Row]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    if path.suffix == ".json":
        found: list[Row] = json.loads(text)
        return found
    dialect = "excel-tab" if path.suffix == ".tsv" else "excel"
    return list(csv.DictReader(text.splitlines(keepends=True), dialect=dialect))


def _is_text(value: Any, several: bool) -> bool:
    if several:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    return isinstance(value, str)


def _complete(rows: Iterable[Row], columns: tuple[str, ...], where: str) -> list[Row]:
    found = list(rows)
    if not found:
        raise SpectrimError(f"{where} is empty; a measurement needs at least one row")
    for number, row in enumerate(found, start=1):
        missing = [name for name in columns if not isinstance(row, dict) or row.get(name) is None]
        if missing:
            raise SpectrimError(
                f"row {number} of {where} has no '{missing[0]}'; expected {', '.join(columns)}"
            )
    return found

"""Quality and cost of a model, with units and directions, dense and small beside each other.

To add a metric, write one file here whose ``measure(pair)`` returns scores for each model of the
pair; the file's name is the metric's name. Files that start with ``_`` are not metrics. A metric
that asks tasks names them in ``TASKS`` and measures those for which ``pair.asked(task)`` is true;
it is left alone where none is. ``settings["task"]`` of a score says what was asked. ``TASKS`` is
read without importing the file, so it is written out there. Where tasks have data sets, ``DATA`` is
the ``DataSet`` of all of them or one by task; the table of docs/evaluation.md is made of these.
"""

from __future__ import annotations

from spectrim.metrics._compare import compare
from spectrim.metrics._contract import Better, Evaluation, Measurement, Pair, Score, Suite, metrics
from spectrim.metrics._reading import Reading, read, windows
from spectrim.metrics.asking.harness_tasks import check_tasks

__all__ = [
    "Better",
    "Evaluation",
    "Measurement",
    "Pair",
    "Reading",
    "Score",
    "Suite",
    "check_tasks",
    "compare",
    "metrics",
    "read",
    "windows",
]

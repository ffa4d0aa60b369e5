"""What the model card says is kept: what is stored, not what was allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import report_folder
from spectrim.report.card import write_card


@pytest.mark.parametrize(
    ("times", "told"), [(1.0, "80% of linear kept,"), (2.0, "40% of linear kept where 80% were")]
)
def test_a_card_says_what_is_really_kept(tmp_path: Path, times: float, told: str) -> None:
    folder = report_folder.write(tmp_path / "small", blocks=2)
    plan = json.loads((folder / "plan.json").read_text())
    stored = sum(one["stored"] for one in plan["decisions"])
    plan["budget"] = {"keep": 0.8, "of": "linear", "size": times * stored}
    (folder / "plan.json").write_text(json.dumps(plan))
    assert told in write_card(folder).read_text()

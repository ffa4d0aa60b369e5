"""The HTML page: whole, self-contained, harmless, and true to the files it is made from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import report_folder
from spectrim.errors import SpectrimError
from spectrim.report.drawing import LETTER
from spectrim.report.folder import read
from spectrim.report.page import page, write_page

SVG = "{http://www.w3.org/2000/svg}"
SIZES = {"label": 11.5, "panel": 12.5, "in": 10.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_folder.write(tmp_path_factory.mktemp("outputs") / "small", blocks=4)


@pytest.fixture(scope="module")
def tree(folder: Path) -> ElementTree.Element:
    return parsed(folder)


def parsed(folder: Path) -> ElementTree.Element:
    return ElementTree.fromstring(page(read(folder)))


def edited(folder: Path, to: Path, **changes: Any) -> Path:
    """Copy the folder with top-level entries of its JSON files changed; None removes a file."""
    to.mkdir()
    for source in folder.iterdir():
        if source.suffix in (".json", ".yaml"):
            (to / source.name).write_bytes(source.read_bytes())
    for stem, change in changes.items():
        path = to / f"{stem}.json"
        if change is None:
            path.unlink()
        else:
            path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return to


def words_of(element: ElementTree.Element) -> str:
    return " ".join(" ".join(element.itertext()).replace("\u00a0", " ").split())


def assert_text_stays_inside(tree: ElementTree.Element) -> None:
    for figure in tree.iter(f"{SVG}svg"):
        width, height = map(float, figure.get("viewBox", "").split()[2:])
        for text in figure.iter(f"{SVG}text"):
            if text.get("transform"):
                continue
            size = SIZES.get((text.get("class") or "").split()[0], 11.0)
            wide = LETTER * size * len(text.text or "")
            x, y = float(text.get("x", "nan")), float(text.get("y", "nan"))
            left = x - {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor", "")] * wide
            assert left >= -3 and left + wide <= width + 3, (figure.get("aria-label"), text.text)
            assert size * 0.7 <= y <= height, (figure.get("aria-label"), text.text)


def maps(tree: ElementTree.Element) -> list[ElementTree.Element]:
    return [one for one in tree.iter(f"{SVG}svg") if one.get("class") == "map"]


def test_the_page_needs_nothing_but_itself(folder: Path) -> None:
    written = page(read(folder))
    for outside in ("<script", "src=", "href=", "url(", "@import", "<link", "<iframe", "onload"):
        assert outside not in written
    assert written.count("http") == written.count('xmlns="http://www.w3.org/2000/svg"')
    assert written.startswith("<!DOCTYPE html>") and 'charset="utf-8"' in written


def test_every_decision_appears_in_both_maps(folder: Path, tree: ElementTree.Element) -> None:
    sites = [one["site"] for one in json.loads((folder / "plan.json").read_text())["decisions"]]
    for figure in maps(tree):
        hints = [hint.text or "" for hint in figure.iter(f"{SVG}title")]
        assert sorted(hint.split(":")[0] for hint in hints) == sorted(sites)
        cells = [one for one in figure.iter(f"{SVG}rect") if one.get("data-sites")]
        assert sum(int(one.get("data-sites", "0")) for one in cells) == len(sites) == 7 * 4
        places = {(one.get("x"), one.get("y")) for one in cells}
        assert len(places) == len(cells)
    assert len(maps(tree)) == 2


def test_a_cell_tells_what_the_plan_says(folder: Path, tree: ElementTree.Element) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    one = next(item for item in plan["decisions"] if item["format"] == "pivoted")
    cell = next(
        rect
        for rect in maps(tree)[0].iter(f"{SVG}rect")
        if (rect[0].text or "").startswith(one["site"] + ":")
    )
    kept = one["stored"] / one["dense"]
    assert cell.get("class") == f"k{int(10 * kept)}"
    said = (cell[0].text or "").replace("\u00a0", " ")
    full = min(one["out_features"], one["in_features"])
    assert f"rank {one['rank']} of {full}, {100 * kept:.1f} %" in said
    whole = next(item for item in plan["decisions"] if item["format"] == "dense")
    told = [rect for rect in maps(tree)[0].iter(f"{SVG}rect") if whole["site"] in rect[0].text]  # type: ignore[operator]
    assert told[0].get("class") == "k10" and ": dense, 100.0" in str(told[0][0].text)


def test_no_text_leaves_its_figure(tree: ElementTree.Element) -> None:
    assert len(list(tree.iter(f"{SVG}svg"))) == 2 + 3 * 2 + 7
    assert_text_stays_inside(tree)


@pytest.mark.parametrize("blocks", [1, 30])
def test_models_of_any_depth(tmp_path: Path, blocks: int) -> None:
    tree = parsed(report_folder.write(tmp_path / "out", blocks=blocks))
    assert_text_stays_inside(tree)
    cells = [one for one in maps(tree)[0].iter(f"{SVG}rect")]
    assert len(cells) == 7 * blocks


def test_encoder_decoder_roles_and_ends_and_experts(folder: Path, tmp_path: Path) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    some = plan["decisions"][:14]
    turned = [
        one | {"role": f"encoder_cross_{one['role']}", "site": f"e.{i}"}
        for i, one in enumerate(some)
    ]
    experts = [some[0] | {"role": f"expert{e}_gate_up", "site": f"x.{e}"} for e in range(64)]
    ends = [some[0] | {"role": role, "block": -1, "site": role} for role in ("embed", "head")]
    plan = {"decisions": some + turned + experts + ends}
    tree = parsed(edited(folder, tmp_path / "out", plan=plan))
    assert_text_stays_inside(tree)
    cells = list(maps(tree)[0].iter(f"{SVG}rect"))
    assert sum(int(one.get("data-sites", "0")) for one in cells) == 14 + 14 + 64 + 2
    assert any("experts gate_up: 64 sites" in str(one[0].text) for one in cells)
    assert "ends" in words_of(maps(tree)[0])


@pytest.mark.parametrize("without", ["null", "missing"])
def test_formats_that_have_no_rank(folder: Path, tmp_path: Path, without: str) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    for one, form in zip(plan["decisions"], ("tensor_train", "block_sparse"), strict=False):
        one |= {"format": form, "rank": None, "stored": 1000}
        if without == "missing":
            del one["rank"]
    curves = json.loads((folder / "curves.json").read_text())
    first = plan["decisions"][0]["site"]
    curves[first] |= {"ranks": None, "singular_values": None}
    tree = parsed(edited(folder, tmp_path / "out", plan=plan, curves=curves))
    table = next(one for one in tree.iter("table") if one.get("class") == "sites")
    rows = {words_of(row[0]): [words_of(cell) for cell in row] for row in table.iter("tr")}
    assert rows[first][3:6] == ["tensor_train", "–", "1,000"]
    hints = [str(cell[0].text) for cell in maps(tree)[0].iter(f"{SVG}rect")]
    assert any(hint.startswith(f"{first}: tensor_train, ") for hint in hints)
    second = plan["decisions"][1]["site"]
    assert any(hint.startswith(f"{second}: block_sparse, ") for hint in hints)
    assert "None" not in words_of(tree)
    assert_text_stays_inside(tree)


def test_headlines_carry_the_scores(tree: ElementTree.Element) -> None:
    said = words_of(next(one for one in tree.iter("dl") if one.get("class") == "headlines"))
    for part in ("+0.140", "95 % interval 0.123 to 0.157", "Perplexity 19.9 → 22.9", "88.2 %"):
        assert part in said
    assert "× 0.89" in said and "Of dense in fp16" in said


def test_text_from_files_stays_text(folder: Path, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&{{ 7 * 7 }}{% raw %}]]><b onmouseover=x>"
    scores = json.loads((folder / "scores.json").read_text())
    plan = json.loads((folder / "plan.json").read_text())
    curves = {evil: next(iter(report_folder.curves(1, 0).values()))}
    scores |= {"model": evil, "warnings": [evil], "settings": scores["settings"] | {"text": evil}}
    scores["samples"] = [{"prompt": evil, "dense": evil, "small": evil}]
    scores["rows"][1]["texts"][evil] = scores["rows"][1]["texts"]["c4"]
    plan["decisions"] = [one | {"site": evil, "role": evil} for one in plan["decisions"][:1]]
    plan |= {"method": evil, "model": evil, "calibration": {evil: evil}}
    plan["budget"]["of"] = evil
    out = edited(folder, tmp_path / "out", scores=scores, plan=plan, curves=curves)
    (out / "recipe.yaml").write_text(evil)
    other = edited(folder, tmp_path / "<i>other", scores={"settings": scores["settings"]})
    written = page(read(out), [read(other)])
    tree = ElementTree.fromstring(written)
    assert {one.tag for one in tree.iter()}.isdisjoint({"script", "i" * 2, f"{SVG}script"})
    assert "49" not in words_of(next(tree.iter("header")))
    assert not any("onmouseover" in one.attrib for one in tree.iter())
    told = words_of(tree)
    assert told.count(evil) >= 10
    assert "<i>other" in told


def test_what_xml_cannot_hold_is_replaced(folder: Path, tmp_path: Path) -> None:
    samples = [{"prompt": "a\x00b", "dense": "\x1b[31m\ud800", "small": "\ufffe tab\there"}]
    out = edited(folder, tmp_path / "out", scores={"samples": samples})
    told = words_of(parsed(out))
    assert "a\ufffdb" in told and "\ufffd[31m\ufffd" in told and "tab here" in told


def test_a_folder_with_scores_alone_is_enough(folder: Path, tmp_path: Path) -> None:
    out = edited(folder, tmp_path / "out", plan=None, curves=None, config=None)
    (out / "recipe.yaml").unlink()
    tree = parsed(out)
    assert len(list(tree.iter(f"{SVG}svg"))) == 2
    assert "Where the numbers stayed" not in words_of(tree)


def test_broken_or_missing_scores_are_shown_as_missing(folder: Path, tmp_path: Path) -> None:
    scores = json.loads((folder / "scores.json").read_text())
    for name in ("loss", "perplexity", "excess_loss", "kl", "agreement", "decode"):
        scores["rows"][1][name] |= {"value": None, "interval": None}
    del scores["rows"][1]["bytes_of_weights"]
    more = {"prediction": None, "refinement": None, "warnings": [], "samples": []}
    tree = parsed(edited(folder, tmp_path / "out", scores=scores | more))
    said = words_of(tree)
    assert "– nats/token loss above dense" in said.replace(
        "loss above dense – nats/token", "– nats/token loss above dense"
    )
    assert "nan" not in said.lower() and "None" not in said
    assert "To know before" not in said and "What they write" not in said


def test_one_model_alone_has_no_headlines_but_a_table(folder: Path, tmp_path: Path) -> None:
    rows = json.loads((folder / "scores.json").read_text())["rows"]
    tree = parsed(edited(folder, tmp_path / "out", scores={"rows": rows[:1], "samples": []}))
    assert not [one for one in tree.iter("dl") if one.get("class") == "headlines"]
    assert "Perplexity ↓ 19.9" in words_of(tree)


def test_other_folders_join_where_their_losses_compare(folder: Path, tmp_path: Path) -> None:
    near = report_folder.write(tmp_path / "near", blocks=2, keep=0.6, excess=0.57)
    far = edited(folder, tmp_path / "far", scores={"settings": {"text": "another"}})
    said = words_of(ElementTree.fromstring(page(read(folder), [read(near), read(far)])))
    assert "Left out because measured on other text, windows or models: far." in said
    tree = ElementTree.fromstring(page(read(folder), [read(near)]))
    figure = next(tree.iter(f"{SVG}svg"))
    labels = [one.text for one in figure.iter(f"{SVG}text") if one.get("class") == "point"]
    assert sorted(map(str, labels)) == ["dense", "near", "small"]
    assert "Left out" not in words_of(tree)


def test_the_same_folder_gives_the_same_page(folder: Path) -> None:
    assert page(read(folder)) == page(read(folder))


def test_the_page_is_written_whole_or_not_at_all(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_page(folder, tmp_path / "mine.html")
    assert target.read_text(encoding="utf-8") == page(read(folder))
    assert write_page(folder) == folder / "report.html"
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_page(folder, tmp_path / "mine.html", [folder])
    assert [one.name for one in tmp_path.iterdir()] == ["mine.html"]
    assert target.read_text(encoding="utf-8") == page(read(folder))


def test_folders_that_hold_no_report(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SpectrimError, match=r"no scores.json in '.*'; expected a folder that 'spec"
    ):
        read(tmp_path)
    broken = edited(folder, tmp_path / "out")
    (broken / "plan.json").write_text("{")
    with pytest.raises(SpectrimError, match=r"'.*plan.json' is not JSON; write it again, or leave"):
        read(broken)
    (broken / "plan.json").write_text("[]")
    with pytest.raises(SpectrimError, match=r"'.*plan.json' is not a JSON object; write it again"):
        read(broken)


def test_the_report_loads_no_torch(folder: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from spectrim.report import card, page, terminal\n"
        "from spectrim.report.folder import read\n"
        f"output = read(Path({str(folder)!r}))\n"
        "page.page(output), card.card(output), terminal.render(output.scores)\n"
        "sys.exit(int('torch' in sys.modules or 'transformers' in sys.modules))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_that_was_not_measured_says_how(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(SpectrimError, match="was not measured yet; run 'spectrim evaluate "):
        read(tmp_path)

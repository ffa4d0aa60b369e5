import sys
from pathlib import Path

import pytest

from spectrim.errors import SpectrimError
from spectrim.registry import Registry


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `shapes_for_tests` with some plug-ins, and things that are none."""
    package = tmp_path / "shapes_for_tests"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('listing must not import this')\n")
    (package / "circle.py").write_text('"""Round.\n\nVery."""\ndef circle():\n    return "o"\n')
    (package / "global_.py").write_text("def global_():\n    return 'g'\n")
    (package / "empty.py").write_text("")
    (package / "_private.py").write_text("raise RuntimeError\n")
    (package / "nested").mkdir()
    (package / "nested" / "__init__.py").write_text("")
    (package / "notes.txt").write_text("no module")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package
    for name in [name for name in sys.modules if name.startswith("shapes_for_tests")]:
        del sys.modules[name]


def open_up(package: Path) -> Registry:
    (package / "__init__.py").write_text("")
    return Registry("shape", "shapes_for_tests")


def test_names_are_the_module_files_and_nothing_is_imported_for_them(folder):
    assert Registry("shape", "shapes_for_tests").names() == ["circle", "empty", "global"]
    assert "shapes_for_tests" not in sys.modules


def test_a_new_file_is_a_new_plug_in(folder):
    registry = open_up(folder)
    (folder / "square.py").write_text("square = 4\n")
    assert "square" in registry.names()
    assert registry.get("square") == 4


def test_get_returns_what_is_named_like_the_file(folder):
    registry = open_up(folder)
    assert registry.get("circle")() == "o"
    assert registry.get("global")() == "g"  # a keyword of Python keeps its underscore inside


def test_attribute_says_what_a_module_offers(folder):
    (folder / "circle.py").write_text("class Circle: ...\n")
    (folder / "__init__.py").write_text("")
    registry = Registry("shape", "shapes_for_tests", attribute=str.capitalize)
    assert registry.get("circle").__name__ == "Circle"


def test_summary_is_the_docstring_s_first_line_read_without_import(folder):
    registry = Registry("shape", "shapes_for_tests")
    assert registry.summary("circle") == "Round."
    assert registry.summary("empty") == ""
    assert "shapes_for_tests.circle" not in sys.modules


@pytest.mark.parametrize("ask", ["get", "check", "summary"])
def test_an_unknown_name_suggests_the_nearest_and_lists_all(folder, ask):
    with pytest.raises(SpectrimError) as error:
        getattr(Registry("shape", "shapes_for_tests"), ask)("circel")
    assert str(error.value) == (
        "no shape named 'circel'; did you mean 'circle'? (shapes: circle, empty, global)"
    )


def test_a_name_unlike_any_lists_all(folder):
    with pytest.raises(SpectrimError) as error:
        Registry("shape", "shapes_for_tests").check("xyz")
    assert str(error.value) == "no shape named 'xyz'; shapes: circle, empty, global"


def test_private_files_are_no_plug_ins(folder):
    with pytest.raises(SpectrimError, match="no shape named '_private'"):
        open_up(folder).get("_private")


def test_a_module_without_its_attribute_is_named(folder):
    with pytest.raises(SpectrimError) as error:
        open_up(folder).get("empty")
    assert str(error.value) == "shape 'empty' offers no 'empty'; define it in empty.py"


def test_a_package_that_does_not_exist_has_no_plug_ins():
    registry = Registry("shape", "spectrim.shapes_there_are_none_of")
    assert registry.names() == []
    with pytest.raises(SpectrimError, match="no shape named 'a'; there are no shapes yet"):
        registry.check("a")


@pytest.mark.parametrize("module", ["shapes_for_tests.circle", ".circle", "._private"])
def test_a_constant_that_is_imported_from_a_file_beside_it_is_read_there(folder, module):
    registry = open_up(folder)
    for name in ("circle", "_private"):
        (folder / f"{name}.py").write_text("raise RuntimeError\nSIDES = ('none',)\n")
    (folder / "global_.py").write_text(f"from {module} import SIDES as SIDES\n")
    (folder / "empty.py").write_text("from elsewhere.circle import SIDES\n")
    assert registry.constant("global", "SIDES") == ("none",)
    assert registry.constant("empty", "SIDES") is None

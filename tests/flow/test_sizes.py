"""A size in, a model out: what is chosen, why, and that no byte is spent twice, on tiny models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spectrim.errors import SpectrimError
from spectrim.healing.minutes import Learning
from spectrim.job.job import Job
from spectrim.metrics.size import bytes_of_weights
from spectrim.model import sources
from spectrim.model.architectures import Place
from spectrim.model.runtime import Size
from spectrim.model.sites import find
from spectrim.model.weights import Weights, quiet
from spectrim.recipe.recipe import Keep, Recipe
from spectrim.stages import quantize, stages
from spectrim.verbs import auto
from spectrim.verbs.auto import Choice
from spectrim.verbs.room import refuse_too_small
from spectrim.verbs.shrink import shrink
from tiny_runs import Made, from_pretrained, make, plan_of, without_stages


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a tiny llama, its cache shared by all runs."""
    return make("llama", tmp_path_factory.mktemp("sizes"))


def chosen(made: Made, size: str, minutes: float | None = None) -> Choice:
    with quiet():
        return auto.choose(
            without_stages(made), Keep.parse(size), made.folder / "chosen",
            cache=made.folder / "cache", progress=lambda done, total, what: None, minutes=minutes,
        )  # fmt: skip


def test_the_model_is_as_small_as_asked(plain: Made) -> None:
    choice = chosen(plain, "40%")
    small = plain.folder / "forty"
    with quiet():
        shrink(choice.recipe, small, cache=plain.folder / "cache", evaluate=False, why=choice.why)
    part = bytes_of_weights(small) / bytes_of_weights(plain.source)
    assert 0.3 < part <= 0.4
    from_pretrained(plain, small)
    assert choice.why.count(". ") == 2  # three sentences


def test_the_same_seed_chooses_the_same_and_tries_once(
    plain: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = chosen(plain, "20% of linear bytes")

    def never(*args: object) -> float:
        raise AssertionError("what was tried is known")

    monkeypatch.setattr(auto, "_measured", never)
    assert chosen(plain, "20% of linear bytes") == first


def test_what_was_tried_without_kernels_is_tried_again_with_them(
    plain: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bool] = []

    def measured(job: Job, recipe: Recipe, folder: Path) -> float:
        assert recipe.factorize is not None
        tried.append(recipe.factorize.trellis)
        return 2.0

    monkeypatch.setattr(auto, "_measured", measured)
    with monkeypatch.context() as patch:
        patch.setattr(auto, "library", lambda: None)
        chosen(plain, "21% of linear bytes")
    chosen(plain, "21% of linear bytes")
    assert tried == [False] * len(auto.CUTS) + [True] * len(auto.CUTS)


def test_where_much_is_left_nothing_is_tried(plain: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> float:
        raise AssertionError("bits alone need no trial")

    monkeypatch.setattr(auto, "_measured", never)
    choice = chosen(plain, "22% of linear bytes")
    assert choice.recipe.factorize is not None and not choice.recipe.factorize.cut
    assert choice.recipe.factorize.rounding_losses == "estimated"
    assert [stage.name for stage in choice.recipe.stages] == ["equalize", "factorize", "quantize"]
    assert "bits alone are chosen" in choice.why and "--minutes says how long" in choice.why


def test_what_is_chosen_lost_least_of_what_was_tried(
    plain: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = {"bits": "18%", "bits and factors of signs": "19%"}
    for best, size in least.items():

        def measured(job: Job, recipe: Recipe, folder: Path, best: str = best) -> float:
            assert recipe.factorize is not None
            wanted = auto.CUTS[best].get("bits", auto.BITS)
            return 2.0 if tuple(recipe.factorize.bits) == wanted else 3.0

        monkeypatch.setattr(auto, "_measured", measured)
        choice = chosen(plain, f"{size} of linear bytes")
        for key, value in auto.CUTS[best].items():
            assert getattr(choice.recipe.factorize, key) == value
        assert f"Choosing {best} for them loses 2.000 nats" in choice.why
        assert "(against " in choice.why and ": 3.000" in choice.why


def test_what_was_made_on_trial_is_not_made_again(
    plain: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = plain.folder / "chosen"
    choice = chosen(plain, "17% of linear bytes")
    assert choice.why.count(": ") == 1  # each of two ways was tried, on the model as it came
    pack = quantize._block
    made: list[bool] = []

    def watched(job: Job, options: object, place: Place, *rest: object) -> object:
        (folder,) = (one for one in rest if isinstance(one, Path))
        made.append(not job.block_file(folder, place).exists())
        return pack(job, options, place, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(quantize, "_block", watched)
    with quiet():
        shrink(choice.recipe, small, cache=plain.folder / "cache", evaluate=False, why=choice.why)
    assert made and not any(made)
    assert not list((plain.folder / "cache" / "auto").glob("*/*"))
    again = plain.folder / "again"
    with quiet():
        shrink(choice.recipe, again, cache=plain.folder / "cache", evaluate=False, why=choice.why)
    assert any(made)
    assert (small / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def test_it_learns_as_long_as_it_may_and_an_interrupted_run_goes_on(
    plain: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def within(job: Job, minutes: float) -> Learning:
        given.append(minutes)
        return Learning({}, [{"distil": {"steps": 3 + len(given), "every": 2, "warmup": 0}}])

    monkeypatch.setattr(auto, "learning_within", within)
    choice = chosen(plain, "47%", minutes=2)
    assert [stage.name for stage in choice.recipe.stages] == [
        "equalize",
        "factorize",
        "quantize",
        "distil",
    ]
    assert choice.recipe.stages[-1].options.steps == 4 and given == [2]
    assert choice.why.count(". ") == 2 and "learns from the dense model for about 2" in choice.why
    assert chosen(plain, "47%", minutes=2) == choice  # however fast the machine is by now
    small = plain.folder / "learned"
    with quiet():
        shrink(choice.recipe, small, cache=plain.folder / "cache", evaluate=False, why=choice.why)
    (told,) = plan_of(small).about["found"]["healed"]
    assert told["steps"] <= 4
    monkeypatch.setattr(auto, "learning_within", lambda job, minutes: Learning({}, []))
    few = chosen(plain, "47%", minutes=0.01)
    assert "0.01 minutes are too few" in few.why and len(few.recipe.stages) == 3


def test_sizes_are_refused_where_the_least_bits_leave_too_little(plain: Made) -> None:
    source = sources.resolve(str(plain.source), plain.folder / "cache")
    skeleton = sources.skeleton(source)
    weights, sites = Weights(source.folder, skeleton), find(skeleton)
    for allowed in ("4% of linear bytes", "50%", "100%"):
        refuse_too_small(weights, sites, Keep.parse(allowed))
    with pytest.raises(SpectrimError, match="ask for (.*) or more") as error:
        refuse_too_small(weights, sites, Keep.parse("2%"))
    least = int(re.findall(r"ask for (\d+)% of bytes", str(error.value))[0])
    refuse_too_small(weights, sites, Keep.parse(f"{least}%"))
    with pytest.raises(SpectrimError, match="no model any more"):
        refuse_too_small(weights, sites, Keep.parse(f"{least - 1}%"))
    dense = {site.role: site.out_features * site.in_features for site in sites if site.block < 0}
    assert least * weights.bytes() / 100 > sum(dense.values()) / 4  # two bits each


def test_a_part_of_the_whole_buys_embedding_and_head_as_well(plain: Made) -> None:
    of_all, of_maps = chosen(plain, "40%").recipe, chosen(plain, "40% of linear bytes").recipe
    assert of_all.factorize is not None and of_maps.factorize is not None
    assert (of_all.factorize.ends, of_all.stages[2].options.ends) == (auto.BITS, 0)
    assert (of_maps.factorize.ends, of_maps.stages[2].options.ends) == ((), auto.ENDS)
    assert (str(of_all.keep), str(of_maps.keep)) == ("40% of bytes", "40% of linear bytes")


@pytest.mark.parametrize(
    ("size", "said"), [("25% of linear", "in bytes"), ("2%", "no model any more")]
)
def test_a_size_that_cannot_be_is_one_line(plain: Made, size: str, said: str) -> None:
    with pytest.raises(SpectrimError, match=said):
        chosen(plain, size)


def test_a_folder_of_ones_own_is_refused_before_the_trials(
    plain: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")

    def never(*args: object) -> object:
        raise AssertionError("the calibration text was read")

    monkeypatch.setattr(auto, "open_job", never)
    with pytest.raises(SpectrimError, match="was not written by spectrim shrink"), quiet():
        auto.choose(
            without_stages(plain), Keep.parse("40%"), tmp_path, cache=plain.folder / "cache",
            progress=lambda done, total, what: None,
        )  # fmt: skip


def test_what_of_a_memory_is_not_for_weights_is_told(plain: Made) -> None:
    size = Size(memory=650_000_000, context=32)
    with quiet():
        choice = auto.choose(
            without_stages(plain), size, plain.folder / "fits", cache=plain.folder / "cache",
            progress=lambda done, total, what: None,
        )  # fmt: skip
    assert choice.why.startswith("Of 650.0 MB, 20.") and "transformers, which runs it" in choice.why


def test_the_whole_size_rounds_no_map(plain: Made) -> None:
    choice = chosen(plain, "100% of linear bytes")
    small = plain.folder / "whole"
    with quiet():
        shrink(choice.recipe, small, cache=plain.folder / "cache", evaluate=False)
    assert {one.bits for one in plan_of(small).decisions} == {0}


def test_a_way_that_cannot_be_as_small_is_passed_over(
    plain: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_signs(job: object, recipe: Recipe, folder: Path) -> float:
        if recipe.factorize is None or 1 not in recipe.factorize.bits:
            raise SpectrimError("cannot keep so little; keep more")
        return 2.0

    monkeypatch.setattr(auto, "_measured", only_signs)
    choice = chosen(plain, "16% of linear bytes")
    assert choice.recipe.factorize is not None and 1 in choice.recipe.factorize.bits

    def never(job: object, recipe: Recipe, folder: Path) -> float:
        raise SpectrimError("cannot keep so little; keep more")

    monkeypatch.setattr(auto, "_measured", never)
    with pytest.raises(SpectrimError, match="cannot keep so little"):
        chosen(plain, "15% of linear bytes")


def test_a_way_that_fails_late_leaves_nothing_to_the_next(
    plain: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = stages.get("quantize")
    calls: list[int] = []

    def first_fails(job: Job, options: object) -> None:
        late(job, options)
        calls.append(1)
        if len(calls) == 1:
            raise SpectrimError("late")

    monkeypatch.setattr(stages, "get", lambda name, known=stages.get: (
        first_fails if name == "quantize" else known(name)
    ))  # fmt: skip
    choice = chosen(plain, "18.5% of linear bytes")
    assert len(calls) == len(auto.CUTS) and "(against" not in choice.why

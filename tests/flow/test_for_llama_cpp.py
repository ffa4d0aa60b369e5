"""`shrink --for llama.cpp`: a GGUF file of the types that were planned, within its bytes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from spectrim.cli import main
from spectrim.cutting import table_losses, type_losses
from spectrim.cutting.table_losses import table_offers
from spectrim.cutting.type_losses import map_offers
from spectrim.exporters._spliced import Splice
from spectrim.job.job import Job
from spectrim.job.opening import open_job
from spectrim.model import sources
from spectrim.model.weights import quiet
from spectrim.recipe.recipe import Recipe
from spectrim.rounding.ggml import dequantize
from tiny_folders import tiny_folder
from tiny_places import Place, assert_told
from tiny_runs import write_text

Kind = GGMLQuantizationType
MOST = 800_000  # bytes; in bf16 the model takes 2.6 million


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny Llama with rows of 256 numbers, and its text."""
    folder = tmp_path_factory.mktemp("llama")
    text = _write_text(folder / "text.txt")
    _write_model(folder / "source", text)
    return folder


@pytest.fixture
def place(made: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    return Place(made, capsys)


def _write_text(file: Path) -> Path:
    drawn = random.Random(0)
    words = ["".join(drawn.choices("abcdefghij", k=4)) for _ in range(40)]
    file.write_text(" ".join(drawn.choices(words, k=3000)), encoding="utf-8")
    return file


def _write_model(folder: Path, text: Path) -> None:
    config = LlamaConfig(
        vocab_size=384, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    with quiet():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    plain.train([str(text)], trainer)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained(folder)


def _words(folder: Path, *options: str | Path) -> list[str]:
    """Return what a file is asked for with; options given take the place of the usual ones."""
    given = {
        "--for": "llama.cpp",
        "--calibration": folder / "text.txt",
        "--tokens": "12x64",
        "--cache": folder / "cache",
        "-o": folder / "asked.gguf",
        **dict(zip(options[::2], options[1::2], strict=True)),
    }
    return [
        "shrink", str(folder / "source"), *(str(word) for pair in given.items() for word in pair)
    ]  # fmt: skip


def _asked(place: Place, *options: str | Path) -> tuple[int, str]:
    return place.run(*_words(place.folder, *options))


@pytest.fixture(scope="module")
def small(made: Path) -> Path:
    """Return the file that is made for MOST bytes."""
    with pytest.raises(SystemExit) as leaving:
        main.main(_words(made, "--size", f"{MOST}B", "-o", made / "small.gguf"))
    assert leaving.value.code == 0
    return made / "small.gguf"


def test_the_file_holds_what_was_planned_within_its_bytes(small: Path) -> None:
    assert 0.93 * MOST < small.stat().st_size <= MOST
    tensors = {one.name: one for one in GGUFReader(str(small)).tensors}
    kinds = {one.tensor_type for name, one in tensors.items() if "norm" not in name}
    assert Kind.F32 not in kinds and len(kinds) > 1  # bits go where they pay
    assert all(one.tensor_type == Kind.F32 for name, one in tensors.items() if "norm" in name)
    assert "output.weight" not in tensors  # one table serves as both


def test_the_blocks_stand_for_the_models_own_numbers(made: Path, small: Path) -> None:
    weights = AutoModelForCausalLM.from_pretrained(made / "source").state_dict()
    tensors = {one.name: one for one in GGUFReader(str(small)).tensors}
    down = tensors["blk.1.ffn_down.weight"]
    theirs = dequantize(down.data, down.tensor_type)
    ours = weights["model.layers.1.mlp.down_proj.weight"].float()
    assert float((theirs - ours).square().sum() / ours.square().sum()) < 0.08
    # queries lie in another order of rows there; in ours they would be other numbers altogether
    query = tensors["blk.0.attn_q.weight"]
    theirs = dequantize(query.data, query.tensor_type)
    ours = weights["model.layers.0.self_attn.q_proj.weight"].float()
    halves = ours.view(4, 2, 32, 256).transpose(1, 2).reshape(256, 256)
    assert float((theirs - halves).square().sum() / ours.square().sum()) < 0.08
    assert float((theirs - ours).square().sum() / ours.square().sum()) > 0.5


def test_it_runs_in_llama_cpp_as_it_was_measured(made: Path, small: Path) -> None:
    from spectrim.engines import engines

    running = engines.get("llama_cpp")(small, 1, 64)
    try:
        ids = running.encode((made / "text.txt").read_text()[:200])[:32]
        theirs = np.asarray(running.feed(ids))
    finally:
        running.close()
    model = AutoModelForCausalLM.from_pretrained(made / "source", dtype=torch.float32)
    with torch.no_grad():
        dense = model(torch.tensor([ids])).logits[0, -1].numpy()
    assert np.corrcoef(theirs, dense)[0, 1] > 0.9


def test_half_of_the_bytes_is_a_size_too_and_the_file_is_replaced(
    place: Place, small: Path
) -> None:
    whole = sum(file.stat().st_size for file in place.source.glob("*.safetensors"))
    asked = Path(shutil.copy(small, place.folder / "half.gguf"))
    code, err = _asked(place, "--size", "50%", "-o", asked)
    assert code == 0, err
    assert 0.45 * whole < asked.stat().st_size <= 0.5 * whole


def test_the_choice_depends_on_the_request_alone(made: Path, tmp_path: Path) -> None:
    first, second = _job(made, tmp_path / "fresh"), _job(made, tmp_path / "warm")
    fresh = map_offers(first, 6.0)
    map_offers(second, 7.2)  # as an earlier request of another size
    assert map_offers(second, 6.0) == fresh


def test_a_part_of_a_tables_rows_tells_what_types_cost(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = table_offers(_job(made, tmp_path / "whole"), 6.0)
    monkeypatch.setattr(table_losses, "SAMPLE", 128)
    (part,) = table_offers(_job(made, tmp_path / "part"), 6.0)
    assert part.losses != whole.losses  # of another part
    assert part.losses == pytest.approx(whole.losses, rel=0.3)


def test_a_part_of_a_maps_rows_tells_what_types_cost(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type_losses, "SAMPLE", 1)
    whole = map_offers(_job(made, tmp_path / "whole"), 6.0)
    monkeypatch.setattr(type_losses, "SAMPLE", 2)
    part = map_offers(_job(made, tmp_path / "part"), 6.0)
    pairs = zip(part, whole, strict=True)
    found = np.concatenate([np.divide(one.losses, other.losses) for one, other in pairs])
    assert np.exp(np.log(found).mean()) == pytest.approx(1, abs=0.1)
    assert found.std() > 0.001 and found.min() > 0.6 and found.max() < 1.6


def test_runs_of_one_model_leave_each_others_work_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as changed:
        changed.setattr(Splice, "write", _killed)
        code, _ = _asked(place, "--size", "60%", "-o", place.folder / "killed.gguf")
        assert code == 130  # as by Ctrl+C
    left = _work(place)
    assert left  # what the same command would go on from
    assert not [one for one in place.folder.iterdir() if one.name.startswith((".", "spectrim-"))]
    code, err = _asked(place, "--size", "60%")
    assert code == 0, err
    assert _work(place) == left
    at = [err.find(f"step {step} of 4: ") for step in (1, 3, 4)]  # statistics are there already
    assert at[0] >= 0 and sorted(at) == at


def _work(place: Place) -> set[Path]:
    """Return the matrices that interrupted runs have left in the cache, and their dense files."""
    types = place.folder / "cache" / "types"
    return {*types.glob("*/*/*.safetensors"), *types.glob("*/dense.gguf")}


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def _job(folder: Path, cache: Path) -> Job:
    """Return a job on the tiny model with a cache of its own."""
    source, text = str(folder / "source"), str(folder / "text.txt")
    asked = Recipe.build(
        None, {"model": source, "calibration.text": text, "calibration.tokens": "12x64"}
    )
    return open_job(asked, sources.resolve(source, cache), cache, lambda done, total, what: None)


REFUSED = [
    ({"--size": "20KB"}, "llama.cpp's smallest types for this model take "),
    ({}, "--for llama.cpp needs a size; add --size 600MB, --size 40% or --fits 4GB"),
    ({"--size": "600XB"}, "cannot read size '600XB'; write the part that stays with its unit"),
    ({"--size": "40% of linear bytes"}, "--for llama.cpp makes one file; give the size of all of"),
    ({"--size": "1MB", "--fits": "4GB"}, "--size and --fits both say how large it may be; leave"),
    ({"--size": "1MB", "--context": "64"}, "--context is for --fits, whose memory it is a part of"),
    ({"--fits": "64MB"}, "64.0 MB leave nothing for weights: keys and values of 256 tokens take"),
    ({"--fits": "4GB", "--context": "300"}, "--context 300 is out of range; the model reads 1 to"),
    ({"--size": "1MB", "--method": "whitened_svd"}, "--size chooses the method itself; leave out"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "told"), REFUSED, ids=lambda one: str(one)[:40])
def test_bad_input_is_one_line(place: Place, options: dict[str, str], told: str) -> None:
    options = {"-o": str(place.folder / "refused.gguf"), **options}
    code, err = _asked(place, *(word for pair in options.items() for word in pair))
    assert_told(code, err, told)
    assert not (place.folder / "refused.gguf").exists()
    assert not list(place.folder.glob("spectrim-*"))


@pytest.mark.parametrize(
    ("family", "told"),
    [("t5", "is an encoder-decoder"), ("llama", "smallest types for this model")],
)
def test_it_is_refused_before_the_text_is_read(
    place: Place, tmp_path: Path, family: str, told: str
) -> None:
    source = tiny_folder(tmp_path / family, family)
    short = tmp_path / "short.txt"
    short.write_text("w3 w4")  # which is refused where it is read
    code, err = place.run(
        "shrink", source, "--for", "llama.cpp", "--size", "1KB", "--calibration", short,
        "--cache", tmp_path / "cache", "-o", tmp_path / "out.gguf",
    )  # fmt: skip
    assert_told(code, err, told)


def test_a_file_of_others_is_kept(place: Place) -> None:
    other = place.folder / "theirs.gguf"
    other.write_bytes(b"GGUF of somebody else")
    code, err = _asked(place, "--size", "3MB", "-o", other)
    assert_told(code, err, f"{other} is there already and was not written by spectrim")
    assert other.read_bytes() == b"GGUF of somebody else"


def test_a_mixture_of_experts_is_refused(place: Place, tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "mixtral", "mixtral")
    code, err = place.run(
        "shrink", source, "--for", "llama.cpp", "--size", "3MB", "--tokens", "12x32",
        "--calibration", write_text(tmp_path / "text.txt"), "--cache", tmp_path / "cache",
        "-o", tmp_path / "out.gguf",
    )  # fmt: skip
    assert_told(code, err, "is a mixture of experts, which GGUF files hold in one tensor each kind")

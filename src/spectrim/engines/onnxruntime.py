"""ONNX Runtime by itself, on the processor: folders with model.onnx that `spectrim export` wrote.

Keys and values of all tokens lie in buffers of the whole context, which the model reads from and
writes to, so that none are copied from token to token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from spectrim.errors import SpectrimError

READS = ("*.onnx",)
MODEL, TOKENIZER, SETTINGS = "model.onnx", "tokenizer.json", "genai_config.json"
QUIET = 3  # errors only


class OnnxRuntime:
    """A decoder in ONNX Runtime, with one sequence in its buffers."""

    def __init__(self, folder: Path, threads: int, context: int) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = QUIET
        self.context = context
        try:
            self._session = onnxruntime.InferenceSession(
                str(folder / MODEL), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # each fault is a class of its own there
            raise SpectrimError(f"ONNX Runtime cannot load {folder}; export it again") from error
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # tokenizers has no class of its own for that
            raise SpectrimError(f"{folder / TOKENIZER} is damaged; export it again") from error
        self._binding = self._session.io_binding()
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._fed = 0
        self._bind_caches()

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without any that the model puts before it."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def clear(self) -> None:
        """Forget the sequence."""
        self._fed = 0

    def feed(self, tokens: Sequence[int]) -> Float[ndarray, " vocabulary"]:
        """Go on with these tokens and return the logits behind the last one, fp32."""
        found: ndarray = self.logits(tokens, keep=1)[-1]
        return found

    def logits(self, tokens: Sequence[int], keep: int) -> Float[ndarray, "kept vocabulary"]:
        """Go on with these tokens and return the logits behind the last ``keep`` of them.

        Raises:
            SpectrimError: they do not fit into the context.
        """
        total = self._fed + len(tokens)
        if total > self.context:
            raise SpectrimError(
                f"{total} tokens do not fit into a context of {self.context}; give fewer, or open "
                "the model with a larger context"
            )
        self._input("input_ids", np.asarray([tokens], np.int64))
        self._input("attention_mask", np.ones((1, total), np.int64))
        self._input("logits_to_keep", np.asarray([keep], np.int64))
        self._binding.bind_output("logits", "cpu")
        self._session.run_with_iobinding(self._binding)
        self._fed = total
        found: ndarray = self._binding.get_outputs()[-1].numpy()[0]
        return found

    def close(self) -> None:
        """Give the memory back."""
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        del self._binding, self._session, self._buffers

    def _input(self, name: str, values: ndarray) -> None:
        self._binding.bind_ortvalue_input(name, self._value(values))

    def _bind_caches(self) -> None:
        """Bind each block's keys and values to one buffer for input and output."""
        self._buffers: list[Any] = []
        for given in self._session.get_inputs():
            if given.name.startswith("past_key_values."):
                _, heads, _, width = given.shape
                buffer = self._value(np.zeros((1, heads, self.context, width), np.float32))
                self._binding.bind_ortvalue_input(given.name, buffer)
                present = given.name.replace("past_key_values", "present", 1)
                self._binding.bind_ortvalue_output(present, buffer)
                self._buffers.append(buffer)


def onnxruntime(path: Path, threads: int, context: int) -> OnnxRuntime:
    """Return the model of a folder, running.

    context: how many tokens its buffers hold, at most the model's positions.

    Raises:
        SpectrimError: ONNX Runtime is not installed, or the folder holds no model for it, or one
            that it cannot load.
    """
    if find_spec("onnxruntime") is None:
        raise SpectrimError("ONNX models need onnxruntime; run `pip install 'spectrim[export]'`")
    if missing := [name for name in (MODEL, TOKENIZER, SETTINGS) if not (path / name).is_file()]:
        raise SpectrimError(
            f"{path} has no {missing[0]}; expected a folder that `spectrim export --to onnx` wrote"
        )
    return OnnxRuntime(path, threads, min(context, _longest(path)))


def _longest(path: Path) -> int:
    """Return how many tokens a model has rotary positions for; its tables end there.

    Raises:
        SpectrimError: its settings do not say so.
    """
    try:
        said = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        longest = said["model"]["context_length"]
    except (ValueError, KeyError, TypeError, RecursionError):
        longest = None
    if type(longest) is not int or longest < 1:
        raise SpectrimError(f"{path / SETTINGS} gives no context_length; export it again")
    return longest

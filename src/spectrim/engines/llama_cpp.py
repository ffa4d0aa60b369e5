"""llama.cpp on a GGUF file, through the C functions of the library that comes with xllamacpp.

The package's own interface is a server, which hands out no logits; its library exports llama.h
besides (https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h). Only the first fields
of its settings are known here; whether they lie where they are looked for is checked.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_char, c_char_p, c_float, c_int32, c_uint32, c_void_p
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from spectrim.errors import SpectrimError

READS = ("*.gguf",)
BATCH = 512  # tokens at a time
REST = 1024  # bytes; more than the settings have behind the known fields

_FLASH_OFF, _F32 = 0, 0
_KNOWN = {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "type_k": 1, "type_v": 1}


class _ContextParams(ctypes.Structure):
    """llama_context_params as far as it is set here."""

    _fields_ = [
        *[(name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max")],
        ("_outputs", c_uint32 * 3),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("_kinds", c_int32 * 4),
        ("flash_attn_type", c_int32),
        ("_rope", c_float * 8),
        ("_callback", c_void_p * 2),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("_rest", c_char * REST),
    ]


class _ModelParams(ctypes.Structure):
    """llama_model_params, none of which is changed."""

    _fields_ = [("_rest", c_char * REST), ("_aligned", c_void_p)]


class _Batch(ctypes.Structure):
    """llama_batch: tokens that follow each other."""

    _fields_ = [("n_tokens", c_int32), ("_arrays", c_void_p * 6)]


_Log = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)
_silent = _Log(lambda level, text, data: None)  # kept, as the library calls it


def llama_cpp(path: Path, threads: int = 1, context: int = 2048, exact: bool = False) -> LlamaCpp:
    """Return the model in a GGUF file, running.

    threads: of each product. context: how many tokens the cache holds, at most the model's own.
    exact: keep keys and values in float32 and attend without the fused kernel, for comparisons.

    Raises:
        SpectrimError: the library is not installed, or is another than is known here; the file
            cannot be loaded.
    """
    return LlamaCpp(path, threads, context, exact)


class LlamaCpp:
    """A GGUF file that llama.cpp has in memory, with one sequence in its key-value cache."""

    def __init__(self, path: Path, threads: int, context: int, exact: bool) -> None:
        self._library = library()
        self._model = self._context = None
        if not path.is_file():
            raise SpectrimError(f"there is no file '{path}'; check the path")
        model = self._library.llama_model_load_from_file(
            str(path).encode(), self._library.llama_model_default_params()
        )
        if not model:
            raise SpectrimError(f"llama.cpp cannot load {path}; export it again")
        self._model = model
        self._vocabulary = self._library.llama_model_get_vocab(model)
        self.tokens: int = self._library.llama_vocab_n_tokens(self._vocabulary)
        # Behind its positions a model says nonsense, and one that learned them ends the process.
        context = min(context, self._library.llama_model_n_ctx_train(model))
        asked = self._library.llama_context_default_params()
        asked.n_ctx, asked.n_batch, asked.n_ubatch = context, BATCH, BATCH
        asked.n_threads = asked.n_threads_batch = threads
        if exact:
            asked.flash_attn_type, asked.type_k, asked.type_v = _FLASH_OFF, _F32, _F32
        self._context = self._library.llama_init_from_model(model, asked)
        if not self._context:
            self.close()
            raise SpectrimError(f"llama.cpp has no memory for {context} tokens; ask for fewer")
        # It makes room for more than it was asked for.
        self.context: int = min(context, self._library.llama_n_ctx(self._context))
        self._batch: int = self._library.llama_n_batch(self._context)
        self._fed = 0

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, special ones by their names, none put before it."""
        raw = text.encode()
        found = (c_int32 * (len(raw) + 8))()
        count = self._library.llama_tokenize(
            self._vocabulary, raw, len(raw), found, len(found), False, True
        )
        return list(found[:count])

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones by their names."""
        ids = (c_int32 * len(tokens))(*tokens)
        size = 64
        while True:
            text = ctypes.create_string_buffer(size)
            count = self._library.llama_detokenize(
                self._vocabulary, ids, len(ids), text, size, False, True
            )
            if count >= 0:
                return text.raw[:count].decode(errors="replace")
            size = -count

    def clear(self) -> None:
        """Forget the sequence."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        self._fed = 0

    def feed(self, tokens: Sequence[int]) -> Float[ndarray, " vocabulary"]:
        """Go on with these tokens and return the logits behind the last one, fp32.

        Raises:
            SpectrimError: they are none, or there are more than the cache has room for.
        """
        if not tokens:
            raise SpectrimError("there are no tokens to go on with; give one at least")
        if self._fed + len(tokens) > self.context:
            raise SpectrimError(
                f"a text is longer than the {self.context} tokens of context; give fewer"
            )
        for begin in range(0, len(tokens), self._batch):
            some = tokens[begin : begin + self._batch]
            ids = (c_int32 * len(some))(*some)
            batch = self._library.llama_batch_get_one(ids, len(some))
            if failed := self._library.llama_decode(self._context, batch):
                raise SpectrimError(f"llama.cpp could not go on (its code is {failed}); clear it")
            self._fed += len(some)
        logits = self._library.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self.tokens,)).copy()

    def close(self) -> None:
        """Give the memory back."""
        if self._context:
            self._library.llama_free(self._context)
        if self._model:
            self._library.llama_model_free(self._model)
        self._context = self._model = None


@lru_cache(maxsize=1)
def library() -> Any:
    """Return llama.cpp's library, its functions declared and its log silent.

    Raises:
        SpectrimError: it is not installed, or its settings lie elsewhere than is known here.
    """
    found = find_spec("xllamacpp")
    where = find_spec("xllamacpp.xllamacpp") if found else None
    if where is None or where.origin is None:
        raise SpectrimError("llama.cpp is not installed; pip install 'spectrim[export]'")
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # a fault in it would start a debugger
    loaded: Any = ctypes.CDLL(where.origin)
    for name, (result, *parameters) in _FUNCTIONS.items():
        if not hasattr(loaded, name):
            raise SpectrimError(
                f"the library of xllamacpp exports no {name} here; use it on Linux or macOS"
            )
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, parameters
    asked = loaded.llama_context_default_params()
    if any(getattr(asked, name) != value for name, value in _KNOWN.items()):
        raise SpectrimError(
            "this xllamacpp has a llama.cpp whose settings lie elsewhere than spectrim knows; "
            "pip install xllamacpp==2026.10.11549"
        )
    loaded.llama_log_set(_silent, None)
    loaded.llama_backend_init()
    return loaded


_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "llama_backend_init": (None,),
    "llama_log_set": (None, _Log, c_void_p),
    "llama_model_default_params": (_ModelParams,),
    "llama_context_default_params": (_ContextParams,),
    "llama_model_load_from_file": (c_void_p, c_char_p, _ModelParams),
    "llama_model_free": (None, c_void_p),
    "llama_model_get_vocab": (c_void_p, c_void_p),
    "llama_model_n_ctx_train": (c_int32, c_void_p),
    "llama_vocab_n_tokens": (c_int32, c_void_p),
    "llama_init_from_model": (c_void_p, c_void_p, _ContextParams),
    "llama_free": (None, c_void_p),
    "llama_n_ctx": (c_uint32, c_void_p),
    "llama_n_batch": (c_uint32, c_void_p),
    "llama_get_memory": (c_void_p, c_void_p),
    "llama_memory_clear": (None, c_void_p, c_bool),
    "llama_batch_get_one": (_Batch, POINTER(c_int32), c_int32),
    "llama_decode": (c_int32, c_void_p, _Batch),
    "llama_get_logits_ith": (POINTER(c_float), c_void_p, c_int32),
    "llama_tokenize": (
        c_int32, c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool,
    ),
    "llama_detokenize": (
        c_int32, c_void_p, POINTER(c_int32), c_int32, c_char_p, c_int32, c_bool, c_bool,
    ),
}  # fmt: skip

"""Run as a script, in a process of its own: times a model as engines/_timed_process.py does.

    python benchmarks/native_llama_cpp.py package/bins/linux-x64/

llama.cpp's library is that of the folder, which has a kernel for this very processor: for Linux the
npm package @node-llama-cpp/linux-x64 has such folders. xllamacpp's library knows AVX2 only.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

from spectrim.engines import _timed_process, llama_cpp

BASE, GGML, LLAMA = "libggml-base*.so", "libggml.*so", "libllama.*so"


@cache
def library(folder: Path) -> Any:
    """Return the library of a folder, its functions declared and its log silent."""
    files = [next(folder.glob(pattern)) for pattern in (BASE, GGML, LLAMA)]
    _, ggml, loaded = (ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL) for file in files)
    for name, (result, *parameters) in llama_cpp._FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, parameters
    loaded.llama_log_set(llama_cpp._silent, None)
    ggml.ggml_backend_load_all_from_path(ctypes.c_char_p(str(folder).encode()))
    asked = loaded.llama_context_default_params()
    assert all(getattr(asked, name) == value for name, value in llama_cpp._KNOWN.items())
    loaded.llama_backend_init()
    return loaded


if __name__ == "__main__":
    there = Path(sys.argv[1])
    llama_cpp.library = lambda: library(there)  # type: ignore[assignment]
    _timed_process.main()

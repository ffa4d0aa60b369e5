"""Packed codes entropy-coded on disk by zstd's Huffman codes, decoded once when a model is read.

Codes are not equally frequent: of 2, 3 and 4 bits they hold about 1.92, 2.83 and 3.78, the codes of
scales 6.9 and those of offsets 5.3 of 8. A Huffman code over whole bytes comes within a hundredth
of a bit of that wherever codes begin at bytes. Codes of 3 bits lie across bytes; pairs of them, six
bits, are then the symbols. Nothing is lost, and nothing differs in memory.

A tensor ``name`` is stored as ``name_zstd``, one zstd frame (RFC 8878) of its bytes, or, where that
is shorter, as ``name_zstd6``: a frame with a byte for every six bits. Three bytes are read as one
number, lowest byte and lowest six bits first; one or two left at the end follow as they are.
"""

from __future__ import annotations

import numpy
import torch
import zstandard
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from spectrim.errors import SpectrimError

BYTES, SIX_BITS = "_zstd", "_zstd6"
PARTS = ("packed", "scale_code", "offset_code")
"""What is coded: the last part of a tensor's name."""
HEAD = 18  # bytes: the longest header of a frame
LEVEL = 3  # of zstd; higher ones look for repetitions longer, of which codes have none


def coded(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Return the name and the bytes under which a tensor is written: coded where that is shorter.

    Every other tensor comes back as it is.
    """
    if name.rpartition(".")[2] not in PARTS:
        return name, tensor
    plain = tensor.contiguous().view(torch.uint8).flatten().numpy()
    best = (name, tensor)
    for suffix, symbols in ((BYTES, plain), (SIX_BITS, _six_bits(plain))):
        frame = zstandard.ZstdCompressor(level=LEVEL).compress(symbols.data)
        if len(frame) < best[1].nbytes:
            best = (name + suffix, torch.frombuffer(bytearray(frame), dtype=torch.uint8))
    return best


def decoded(frame: UInt8[Tensor, " bytes"], name: str, like: Tensor) -> Tensor:
    """Return the tensor that was coded.

    name: under which it is stored. like: of its shape and dtype, maybe on the meta device.

    Raises:
        SpectrimError: the frame is damaged, or holds another number of bytes.
    """
    try:
        found = zstandard.ZstdDecompressor().decompress(frame.cpu().numpy().data)
    except zstandard.ZstdError as error:
        raise SpectrimError(f"{name} is damaged ({error}); fetch the model again") from error
    plain = numpy.frombuffer(bytearray(found), dtype=numpy.uint8)
    if name.endswith(SIX_BITS):
        plain = _whole_bytes(plain)
    if len(plain) != like.nbytes:
        raise SpectrimError(
            f"{name} holds {len(plain)} bytes where config.json says {like.nbytes}; fetch the "
            "model again"
        )
    return torch.from_numpy(plain).view(like.dtype).reshape(like.shape)


def plain_name(name: str) -> str:
    """Return the name that a tensor has in memory."""
    return name.removesuffix(SIX_BITS).removesuffix(BYTES)


def plain_bytes(name: str, head: bytes) -> int:
    """Return how many bytes a coded tensor has once it is decoded.

    head: the first ``HEAD`` bytes of its frame, or all of them.

    Raises:
        SpectrimError: no frame begins so.
    """
    try:
        symbols = zstandard.get_frame_parameters(head).content_size
    except zstandard.ZstdError as error:
        raise SpectrimError(f"{name} is damaged ({error}); fetch the model again") from error
    return 3 * (symbols // 4) + symbols % 4 if name.endswith(SIX_BITS) else symbols


def is_coded(name: str) -> bool:
    """Return whether a tensor of this name is stored coded."""
    return name.endswith((BYTES, SIX_BITS))


def _six_bits(plain: NDArray[numpy.uint8]) -> NDArray[numpy.uint8]:
    """Return every three bytes as four symbols, byte by byte: wider numbers would take memory."""
    parts, rest = len(plain) // 3, len(plain) % 3
    symbols = numpy.empty(4 * parts + rest, numpy.uint8)
    low, middle, high = plain[: 3 * parts].reshape(-1, 3).T
    made = symbols[: 4 * parts].reshape(-1, 4).T
    made[0] = low & 63
    made[1] = low >> 6 | (middle & 15) << 2
    made[2] = middle >> 4 | (high & 3) << 4
    made[3] = high >> 2
    symbols[4 * parts :] = plain[3 * parts :]
    return symbols


def _whole_bytes(symbols: NDArray[numpy.uint8]) -> NDArray[numpy.uint8]:
    parts, rest = len(symbols) // 4, len(symbols) % 4
    plain = numpy.empty(3 * parts + rest, numpy.uint8)
    first, second, third, fourth = symbols[: 4 * parts].reshape(-1, 4).T
    made = plain[: 3 * parts].reshape(-1, 3).T
    made[0] = first & 63 | second << 6
    made[1] = second >> 2 & 15 | third << 4
    made[2] = third >> 4 & 3 | fourth << 2
    plain[3 * parts :] = symbols[4 * parts :]
    return plain

"""The end of a GGUF file that is written: closed, and known to be whole."""

from __future__ import annotations

import errno
import os

from gguf import GGUFWriter


def close_whole(writer: GGUFWriter) -> None:
    """Close a writer's file.

    Raises:
        OSError: the file is shorter than what was written, as on a full disk; numpy, which writes
            the tensors, says nothing where a short one does not fit.
    """
    ends = {stream.name: stream.tell() for stream in writer.fout or ()}
    writer.close()
    for name, end in ends.items():
        if os.stat(name).st_size < end:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

"""Which of llama.cpp's types is chosen for which matrix, and which are offered at all."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from spectrim.cutting.type_choice import choose, predicted
from spectrim.cutting.type_losses import Offer, offered
from spectrim.errors import SpectrimError
from spectrim.exporters._spliced import row_order

Kind = GGMLQuantizationType


def test_the_choice_spends_the_bytes_where_they_pay() -> None:
    kinds = (Kind.Q2_K, Kind.Q4_K, Kind.Q8_0)
    dear = Offer("dear", (64, 256), kinds, (4.0, 1.0, 0.01))
    cheap = Offer("cheap", (64, 256), kinds, (0.04, 0.01, 0.0001))
    room = dear.bytes(Kind.Q8_0) + cheap.bytes(Kind.Q2_K)
    chosen = choose([dear, cheap], room)
    assert chosen == {"dear": Kind.Q8_0, "cheap": Kind.Q2_K}
    assert predicted([dear, cheap], chosen) == pytest.approx(0.05)
    assert choose([dear, cheap], 10**6) == {"dear": Kind.BF16, "cheap": Kind.BF16}
    with pytest.raises(SpectrimError, match="smallest types"):
        choose([dear, cheap], room // 4)


def test_types_are_offered_by_the_width_of_rows() -> None:
    assert {kind.name for kind in offered(576, 4.5)} == {
        "MXFP4", "IQ4_NL", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"
    }  # fmt: skip
    assert Kind.IQ4_XS in offered(1536, 4.5) and Kind.IQ4_NL not in offered(1536, 4.5)
    assert Kind.IQ2_XS in offered(1536, 3.0) and Kind.IQ2_XS not in offered(1536, 4.6)
    assert offered(100, 4.5) == []


def test_other_numbers_are_no_other_order() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert row_order(rows, rows, "x") is None
    assert row_order(rows, rows[[2, 0, 3, 1]], "x").tolist() == [2, 0, 3, 1]
    with pytest.raises(SpectrimError, match="x holds other numbers"):
        row_order(rows, rows + 1, "x")

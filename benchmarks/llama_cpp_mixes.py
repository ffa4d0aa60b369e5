"""llama.cpp's own mixes of types, tensor by tensor, as its `llama_tensor_get_type` gives them out.

Written anew after src/llama-quant.cpp of llama.cpp, with an importance matrix, for dense models of
families other than Falcon.
"""

from __future__ import annotations

from gguf import GGMLQuantizationType as Kind

MIXES = ("Q3_K_M", "IQ4_XS", "Q4_K_M")
FEW = ("IQ3_XXS", "Q2_K", "IQ2_XS")  # mixes of two to three bits
# where rows are no multiple of 256
FALLS_BACK = {
    **dict.fromkeys(
        (Kind.IQ2_XS, Kind.IQ2_S, Kind.IQ3_XXS, Kind.IQ3_S, Kind.Q2_K, Kind.Q3_K,
         Kind.IQ4_XS),
        Kind.IQ4_NL,
    ),
    Kind.Q4_K: Kind.Q5_0,
    Kind.Q5_K: Kind.Q5_1,
    Kind.Q6_K: Kind.Q8_0,
}  # fmt: skip
BASE = {
    "Q3_K_M": Kind.Q3_K,
    "IQ4_XS": Kind.IQ4_XS,
    "Q4_K_M": Kind.Q4_K,
    **{name: Kind[name] for name in FEW},
}
IN_IQ3_XXS = {"q": Kind.IQ2_S, "k": Kind.IQ2_S, "o": Kind.IQ3_S, "embed": Kind.IQ3_S}
IN_Q2_K = dict.fromkeys(("v", "o", "down"), Kind.Q3_K)


def type_of(mix: str, role: str, block: int, blocks: int, width: int, queries: int) -> Kind:
    """Return the type of a matrix.

    role: q, k, v, o, gate, up, down, embed or head; a table that serves as both is a head.
    width: of its rows. queries: heads of queries that read one head of keys.
    """
    if role == "head" and width % 256:
        return Kind.Q8_0
    kind = _wanted(mix, role, block, blocks, queries)
    return kind if width % 256 == 0 else FALLS_BACK.get(kind, kind)


def _wanted(mix: str, role: str, block: int, blocks: int, queries: int) -> Kind:
    if role == "head":
        return Kind.Q5_K if mix.startswith("IQ") and mix in FEW else Kind.Q6_K
    if mix in FEW:
        return _of_few_bits(mix, role, block, blocks, queries)
    if mix == "Q3_K_M":
        if role == "v":
            return Kind.Q5_K if block < 2 else Kind.Q4_K
        if role == "down":
            return Kind.Q5_K if block < blocks // 16 else Kind.Q4_K
        return Kind.Q4_K if role == "o" else Kind.Q3_K
    if mix == "Q4_K_M" and role in ("v", "down") and _more_bits(block, blocks):
        return Kind.Q6_K
    if mix == "IQ4_XS" and role == "v" and queries >= 4:
        return Kind.Q5_K
    return BASE[mix]


def _of_few_bits(mix: str, role: str, block: int, blocks: int, queries: int) -> Kind:
    if role == "v" and queries >= 4:
        return Kind.Q4_K
    if mix == "IQ3_XXS":
        return IN_IQ3_XXS.get(role, BASE[mix])
    if mix == "Q2_K":
        return IN_Q2_K.get(role, BASE[mix])
    wide = role in ("v", "embed") or (role == "down" and block < blocks // 8)
    return Kind.Q2_K if wide else BASE[mix]


def _more_bits(block: int, blocks: int) -> bool:
    eighth = blocks // 8
    return block < eighth or block >= 7 * blocks // 8 or (block - eighth) % 3 == 2

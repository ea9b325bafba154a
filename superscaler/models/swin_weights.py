"""The weights of a ``transformers`` Swin, under our names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from superscaler.errors import UsageError

# From the names of transformers (those of version 5, then those of its older files) to ours.
_RENAMED = (
    (r"^swin\.embeddings\.patch_embeddings\.projection\.", "embed."),
    (r"^swin\.embeddings\.norm\.", "embed_norm."),
    (r"^swin\.encoder\.layers\.", "stages."),
    (r"^swin\.layernorm\.", "norm."),
    (r"^classifier\.", "head."),
    (r"\.downsample\.reduction\.", ".merge.reduce."),
    (r"\.downsample\.", ".merge."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(self\.)?(relative_position_bias\.)?relative_position_bias_table$", ".attention.bias"),
    (r"\.attention\.(self\.query|q_proj)\.", ".attention.query."),
    (r"\.attention\.(self\.key|k_proj)\.", ".attention.key."),
    (r"\.attention\.(self\.value|v_proj)\.", ".attention.value."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attention.project."),
    (r"\.(intermediate\.dense|mlp\.fc1)\.", ".up."),
    (r"\.(output\.dense|mlp\.fc2)\.", ".down."),
)


def from_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a ``transformers`` ``SwinForImageClassification`` under the names of our ``Swin``.

    Raises :class:`UsageError` for weights that this Swin does not have (absolute positions, a mask token).
    """
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith("relative_position_index"):
            continue  # older files store it; here it is computed
        renamed = name
        for pattern, replacement in _RENAMED:
            renamed = re.sub(pattern, replacement, renamed)
        if renamed.startswith("swin."):
            raise UsageError(f"swin has no place for the weight {name!r}", hint="a model without absolute positions")
        ours[renamed] = value.flatten(1) if renamed == "embed.weight" else value
    return ours

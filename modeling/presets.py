"""The shapes Septet comes in. A preset gives the shape alone: vocabulary, special ids and length come from the data."""

from __future__ import annotations

from typing import Any

from septet.data.errors import UserError, suggestion


def _shape(
    hidden: int, feed_forward: int, layers: int, heads: int, key_value_heads: int, head_dim: int, **fields: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "head_dim": head_dim,
        "tie_word_embeddings": True,
        **fields,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": _shape(64, 128, 2, 4, 2, 16),  # tests: a forward pass in milliseconds
    "nano": _shape(192, 512, 4, 6, 2, 32),  # the demo: 2.4 M parameters with 4,096 tokens, minutes on two CPU cores
    "small": _shape(512, 1024, 6, 8, 8, 64, hidden_dropout=0.1),  # 21 M with 10,000 tokens: task models from scratch
    "base": _shape(768, 2048, 12, 12, 4, 64),  # 126 M with 65,536 tokens, as the two below: near GPT-2 small, BERT base
    "1b": _shape(2048, 6144, 20, 16, 8, 128),  # 1.14 G
    "7b": _shape(4096, 13312, 32, 32, 8, 128, tie_word_embeddings=False),  # 7.11 G, SeptetConfig's defaults
}


def preset_config(name: str, **fields: Any) -> Any:
    """The `SeptetConfig` of a preset, with further fields (vocabulary, special ids, length) set.

    Raises:
        UserError: there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"preset {name!r} is unknown; {suggestion(name, PRESETS)}")
    from septet.modeling.configuration_septet import SeptetConfig

    return SeptetConfig(**{**PRESETS[name], **fields})

"""Held-out scores of a run and samples of what its model writes; all processes together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from septet.modeling.machine import Readers
    from septet.modeling.pretrain import PretrainConfig

SAMPLE_TOKENS = 24


def validate(
    accelerator: Any,
    readers: Readers,
    losses: Any,
    data: Any,
    config: PretrainConfig,
    vocabulary: Any,
    byte_lengths: Any,
) -> dict[str, dict[str, float]]:
    """Held-out scores by language: mean loss in nats a target, and bits per byte of text where the model reads causally.

    Bits per byte do not depend on the tokenizer: nats of all targets / ln 2 / bytes of their text. Every process reads
    as many batches as the others, since sharded weights are gathered by all; what is too many counts for nothing.
    """
    import numpy as np
    import torch

    from septet.modeling.objectives import LOSSES, make_inputs

    losses.eval()
    langs = np.asarray(data.data["lang"][:])
    objectives = {"joint": ("causal", "mlm_nsp")}.get(config.objective, (config.objective,))
    kinds = LOSSES[config.objective]
    out: dict[str, dict[str, float]] = {}
    for lang in sorted(set(langs)):
        rows = np.flatnonzero(langs == lang)[: config.validation_sequences]
        batches = [rows[i : i + config.micro_batch_size] for i in range(0, len(rows), config.micro_batch_size)]
        numbers = dict.fromkeys((*kinds, *(f"{kind} targets" for kind in kinds), "bytes"), 0.0)
        for first in range(0, len(batches), readers.count):
            index = min(first + readers.rank, len(batches) - 1)
            counts = float(readers.speaks and first + readers.rank < len(batches))
            batch = data.read(batches[index])
            for objective in objectives:
                generator = np.random.default_rng([config.seed, index])
                inputs = make_inputs(objective, batch, vocabulary, generator, config.mask_probability, 0.5)
                with torch.no_grad(), accelerator.autocast():
                    parts = losses(inputs.to(accelerator.device))
                for kind, value in parts.items():
                    numbers[kind] += counts * float(value)
                    numbers[f"{kind} targets"] += counts * inputs.targets[kind]
                if "causal" in parts:
                    labels = inputs.causal["labels"]
                    seen = byte_lengths[labels[labels >= 0].to(byte_lengths.device)].sum()
                    numbers["bytes"] += counts * float(seen)
        totals = torch.tensor(list(numbers.values()), device=accelerator.device)
        numbers = dict(zip(numbers, accelerator.reduce(totals, "sum").tolist(), strict=True))
        out[lang] = {f"loss_{k}": round(numbers[k] / max(numbers[f"{k} targets"], 1), 5) for k in kinds}
        if "causal" in kinds:
            out[lang]["bits_per_byte"] = round(numbers["causal"] / math.log(2) / max(numbers["bytes"], 1), 5)
    return out


def samples(
    config: PretrainConfig,
    losses: Any,
    tokenizer: Any,
    vocabulary: Any,
    opening: Mapping[str, list[int]],
    device: Any,
) -> dict[str, dict[str, Any]]:
    """What the model makes of the first held-out document of each language: a continuation, masked words, or both."""
    from septet.modeling import watch

    out = {}
    if config.objective in ("causal", "joint"):
        prompts = {lang: tokens[: len(tokens) // 2] for lang, tokens in opening.items() if len(tokens) > 1}
        texts = watch.text_samples(losses, tokenizer, prompts, SAMPLE_TOKENS, device)
        out["continued"] = {
            lang: [tokenizer.decode(prompts[lang], skip_special_tokens=True), text] for lang, text in texts.items()
        }
    if config.objective != "causal":
        out["filled"] = watch.filled_masks(losses, tokenizer, vocabulary, opening, device)
    return out

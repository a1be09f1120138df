"""Translation: a prefix-LM reads the source in both directions and writes the target.

Defaults: label smoothing 0.1 (Vaswani et al. 2017), which small bitexts need most; four beams, whose gain on top of
greedy decoding is a point of BLEU or so; ten epochs, since bitexts for small models are short. BLEU takes the tokenizer
of the target language.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from septet.tasks.harness.generation import GenerationTask
from septet.tasks.harness.task import Defaults, Example, Reading, text_of


class Translation(GenerationTask):
    name = "translation"
    title = "Translation"
    hub_id = "Helsinki-NLP/opus_books"
    columns = {"translation": "translation"}
    primary_metric = "bleu"
    metric_module = "bleu"
    source_role = "source"
    defaults = Defaults(epochs=10, label_smoothing=0.1, num_beams=4, max_new_tokens=96)

    def example(self, row: Mapping[str, Any], columns: Mapping[str, str], reading: Reading) -> Example:
        pair = row[columns["translation"]]
        if not isinstance(pair, Mapping) or not {reading.source_lang, reading.target_lang} <= set(pair):
            there = ", ".join(pair) if isinstance(pair, Mapping) else repr(pair)
            raise ValueError(
                f"column {columns['translation']!r} holds {there}; it must hold both {reading.source_lang!r} and "
                f"{reading.target_lang!r} (--source-lang, --target-lang)"
            )
        source, target = text_of(pair, reading.source_lang), text_of(pair, reading.target_lang)
        return Example(str(row["id"]), reading.target_lang, {"source": source}, target)


TASK = Translation()

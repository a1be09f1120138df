"""Question answering has no pipeline in transformers 5.5 and later: the card's decoder answers as the recipe does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from septet.modeling.checkpoint import save_model
from septet.modeling.modeling_septet import SeptetForQuestionAnswering
from septet.tasks.harness.task import Example, get_task
from septet.tasks.hub.card import write_card

PAIRS = [
    ("Who sleeps?", "The cat number 3 sleeps on the warm roof."),
    ("Qui dort ?", "Le chat numéro 3 dort sur le toit."),
    ("谁在读书？", "上周下了4场雨！谁在读第7本书？"),
]


@pytest.fixture(scope="module")
def published(config, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights, large enough that the answers differ, with its card."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("qa")
    fields = {**config.to_dict(), "attention_mode": "bidirectional", "initializer_range": 0.5}
    model = SeptetForQuestionAnswering(type(config)(**{**fields, "exact_match_embedding": True}))
    torch.nn.init.normal_(model.match_embeddings.weight)
    model.config.trained_heads = ["SeptetForQuestionAnswering"]
    save_model(model, tokenizer, folder)
    facts = {"kind": "model", "heads": model.config.trained_heads, "name": "qa", "license": "apache-2.0"}
    write_card(folder, folder, {**facts, "base_model": None})
    return folder


def test_the_card_s_decoder_answers_as_the_recipe_does(published: Path, tokenizer) -> None:
    task = get_task("qa")
    model = SeptetForQuestionAnswering.from_pretrained(published).eval()
    examples = [Example("", "en", {"question": question, "context": context}, []) for question, context in PAIRS]
    expected = [row["prediction"] for row in task.predict(model, tokenizer, examples, 4)]
    assert len(set(expected)) == len(PAIRS)

    [snippet] = re.findall(r"```python\n(.*?)```", (published / "README.md").read_text(), re.DOTALL)
    assert len(snippet.strip().split("\n")) <= 20
    code = "".join(
        f"MODEL, REVISION, QUESTION, CONTEXT = {(str(published), None, *pair)!r}\n{snippet}\n" for pair in PAIRS
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.stdout.strip().split("\n") == expected

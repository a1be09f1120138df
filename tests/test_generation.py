"""Decoding of translation and summaries: batches answer as single rows do, and the settings do what they say."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from septet.modeling.checkpoint import save_model
from septet.modeling.modeling_septet import SeptetForCausalLM
from septet.tasks.harness.generation import DECODING, frame_of
from septet.tasks.harness.task import Defaults, Example, get_task

SOURCES = ["It rained 4 times.", "Who?", "The cat number 3 sleeps on the warm roof.", "Le chat", "他读第7本书。"]
EXAMPLES = [Example(str(i), "fr", {"source": source}, "") for i, source in enumerate(SOURCES)]


@pytest.fixture(scope="module")
def own_tokenizer(tokenizer):
    """Not the one that other tests share, since `Task.finish` gives it a chat template."""
    return copy.deepcopy(tokenizer)


@pytest.fixture(scope="module")
def model(config, own_tokenizer):
    """Random weights, large enough that the answers differ, with an end of sequence that comes up now and then."""
    torch.manual_seed(1)
    fields = {**config.to_dict(), "attention_mode": "prefix", "initializer_range": 0.4}
    model = SeptetForCausalLM(type(config)(**fields)).eval()
    model.config.trained_heads = ["SeptetForCausalLM"]
    model.lm_head.weight.data[own_tokenizer.eos_token_id] *= 3
    return model


def answers(model, own_tokenizer, batch_size: int = 8, **settings) -> list[str]:
    task = get_task("translation")
    task.finish(model, own_tokenizer, SimpleNamespace(**{"max_new_tokens": 16, **settings}))
    return [row["prediction"] for row in task.predict(model, own_tokenizer, EXAMPLES, batch_size)]


@pytest.mark.parametrize("num_beams", [1, 4])
def test_a_batch_answers_as_its_rows_do_alone(num_beams: int, model, own_tokenizer) -> None:
    together, alone = (answers(model, own_tokenizer, size, num_beams=num_beams) for size in (len(EXAMPLES), 1))
    assert together == alone
    assert len(set(together)) == len(EXAMPLES)


def test_beams_find_what_is_likelier_than_greedy_decoding(model, own_tokenizer) -> None:
    task = get_task("translation")

    def log_probability(source: str, answer: list[int]) -> float:
        prompt, _ = task.prompt_ids(source, own_tokenizer, frame_of(own_tokenizer), 43)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer]), prefix_lengths=torch.tensor([len(prompt)])).logits[0]
        steps = logits[len(prompt) - 1 : -1].log_softmax(-1)
        return float(steps.gather(1, torch.tensor(answer)[:, None]).sum())

    def generated(source: str, **settings) -> list[int]:
        prompt, _ = task.prompt_ids(source, own_tokenizer, frame_of(own_tokenizer), 43)
        out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long))
        return out[0, len(prompt) :].tolist()

    found = {}
    for beams in (1, 8):
        task.finish(model, own_tokenizer, SimpleNamespace(num_beams=beams, max_new_tokens=6, length_penalty=0.0))
        found[beams] = [log_probability(source, generated(source)) for source in SOURCES]
    assert sum(found[8]) > sum(found[1])
    assert all(wide >= narrow - 1e-4 for wide, narrow in zip(found[8], found[1], strict=True))


def test_a_higher_length_penalty_gives_longer_answers(model, own_tokenizer) -> None:
    def tokens(penalty: float) -> int:
        texts = answers(model, own_tokenizer, num_beams=4, length_penalty=penalty)
        return sum(len(own_tokenizer(text)["input_ids"]) for text in texts)

    assert tokens(-5.0) < tokens(5.0)


def test_no_run_of_tokens_comes_twice(model, own_tokenizer) -> None:
    def repeats(size: int) -> int:
        answers(model, own_tokenizer, num_beams=2, max_new_tokens=30, no_repeat_ngram_size=size)
        task, found = get_task("translation"), 0
        for example in EXAMPLES:
            prompt, _ = task.prompt_ids(example.input["source"], own_tokenizer, frame_of(own_tokenizer), 33)
            ids = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long))
            answer = ids[0, len(prompt) :].tolist()
            runs = [tuple(answer[i : i + 2]) for i in range(len(answer) - 1)]
            found += len(runs) - len(set(runs))
        return found

    assert repeats(0) > 0
    assert repeats(2) == 0


def test_the_settings_are_stored_and_read_again(model, own_tokenizer, tmp_path: Path) -> None:
    task = get_task("summarization")
    chosen = {"num_beams": 3, "max_new_tokens": 9, "length_penalty": 0.6, "no_repeat_ngram_size": 3}
    task.finish(model, own_tokenizer, SimpleNamespace(**chosen))
    save_model(model, own_tokenizer, tmp_path / "beams")
    stored = json.loads((tmp_path / "beams" / "generation_config.json").read_text())
    assert {name: stored[name] for name in DECODING} == chosen
    assert stored["do_sample"] is False
    again = SeptetForCausalLM.from_pretrained(tmp_path / "beams").generation_config
    assert {name: getattr(again, name) for name in DECODING} == chosen

    task.finish(model, own_tokenizer, SimpleNamespace(num_beams=1))
    save_model(model, own_tokenizer, tmp_path / "greedy")  # a length penalty beside one beam would be refused
    stored = json.loads((tmp_path / "greedy" / "generation_config.json").read_text())
    assert stored["max_new_tokens"] == task.defaults.max_new_tokens
    assert "length_penalty" not in stored


def test_every_decoding_setting_is_a_default() -> None:
    assert set(DECODING) <= set(Defaults.__dataclass_fields__)

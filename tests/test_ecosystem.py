"""The model in the hands of the libraries around transformers, loaded from its folder with the code that lies there."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
import transformers
from datasets import Dataset
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    get_peft_model,
    prepare_model_for_kbit_training,
)
from safetensors.torch import load_file
from torch.nn import functional
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
from transformers import (
    AttentionInterface,
    BitsAndBytesConfig,
    ContinuousBatchingConfig,
    DataCollatorWithFlattening,
    TorchAoConfig,
    Trainer,
    TrainingArguments,
)

from septet.data.documents import write_jsonl
from septet.data.errors import UserError
from septet.modeling.checkpoint import save_model
from septet.modeling.modeling_septet import SeptetForPreTraining
from septet.modeling.objectives import OBJECTIVES
from septet.tasks.hub import serve_api

PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
               "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
CPU = {"use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}


@pytest.fixture(scope="module")
def folder(config, tokenizer, unregistered, tmp_path_factory: pytest.TempPathFactory):
    """A checkpoint with the weights of every language-model head, in a process whose Auto classes do not know Septet."""
    torch.manual_seed(0)
    model = SeptetForPreTraining(type(config)(**{**config.to_dict(), "trained_heads": OBJECTIVES["joint"][1]}))
    with torch.no_grad():  # what was read must matter, or a wrong mask would not show
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(8)
    place = tmp_path_factory.mktemp("model") / "tiny"
    save_model(model, tokenizer, place)
    with unregistered():
        yield place


def load(place: Path, auto_class: str = "AutoModelForCausalLM", **options: Any) -> Any:
    model = getattr(transformers, auto_class).from_pretrained(place, trust_remote_code=True, **options).eval()
    assert type(model).__module__.startswith("transformers_modules."), "the class came from this package"
    return model


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(16, 384, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """What the plain model answers."""
    with torch.no_grad():
        return load(folder)(ids).logits


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# peft


def projections(config: Any, prefix: str = "model") -> list[str]:
    return sorted(
        f"{prefix}.layers.{layer}.{name}" for layer in range(config.num_hidden_layers) for name in PROJECTIONS
    )


def test_lora_reaches_every_projection_and_can_be_merged_or_taken_off(folder, ids, logits, tmp_path: Path) -> None:
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, init_lora_weights=False)
    model = get_peft_model(load(folder), lora).eval()
    assert sorted(model.targeted_module_names) == projections(model.config)
    with torch.no_grad():
        adapted = model(ids).logits
        assert (adapted - logits).abs().max() > 0.1
        model.merge_adapter()
        close(model(ids).logits, adapted)
        model.unmerge_adapter()
        close(model(ids).logits, adapted)
        with model.disable_adapter():
            close(model(ids).logits, logits)

        model.save_pretrained(tmp_path / "adapter")
        again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", trust_remote_code=True).eval()
        close(again(ids).logits, adapted, 0)

        merged = model.merge_and_unload()
        close(merged(ids).logits, adapted)
        merged.save_pretrained(tmp_path / "merged")
        assert (tmp_path / "merged" / "modeling_septet.py").read_text() == (folder / "modeling_septet.py").read_text()
        close(load(tmp_path / "merged")(ids).logits, merged(ids).logits, 0)
        close(again.unload()(ids).logits, logits, 0)


def test_a_lora_classifier_keeps_its_head(folder, ids, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = load(folder, "AutoModelForSequenceClassification", num_labels=3)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=4))
    assert sorted(model.targeted_module_names) == projections(model.config)
    trained = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad and "lora" not in name}
    assert trained == {"classifier"}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(ids, labels=torch.tensor([0, 2])).loss.backward()
    optimizer.step()
    model.eval().save_pretrained(tmp_path)
    again = AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path, trust_remote_code=True, num_labels=3
    ).eval()
    with torch.no_grad():
        close(again(ids).logits, model(ids).logits, 0)


# quantisation


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("kind", [Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig])
def test_torchao_int8_survives_saving(kind: type, folder, ids, logits, tmp_path: Path) -> None:
    model = load(folder, quantization_config=TorchAoConfig(kind()))
    quantised = {name for name, p in model.named_parameters() if type(p).__name__ == "Int8Tensor"}
    assert quantised == {f"{name}.weight" for name in projections(model.config)}
    with torch.no_grad():
        answer = model(ids).logits
        assert 0 < relative_error(answer, logits) < 0.05
        text = model.generate(ids, max_new_tokens=8, do_sample=False)
        model.save_pretrained(tmp_path)
        again = load(tmp_path)
        close(again(ids).logits, answer, 0)
        assert torch.equal(again.generate(ids, max_new_tokens=8, do_sample=False), text)


@pytest.mark.parametrize(
    ("settings", "layer", "limit"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}, "Linear4bit", 0.4),
        ({"load_in_8bit": True}, "Linear8bitLt", 0.05),
    ],
)  # fmt: skip
def test_bitsandbytes_on_the_cpu(settings: dict, layer: str, limit: float, folder, ids, logits) -> None:
    model = load(folder, quantization_config=BitsAndBytesConfig(**settings), dtype=torch.float32)
    quantised = {name for name, module in model.named_modules() if isinstance(module, getattr(bitsandbytes.nn, layer))}
    assert sorted(quantised) == projections(model.config)
    with torch.no_grad():
        assert 0 < relative_error(model(ids).logits, logits) < limit
        assert model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False).shape == (2, 24)


def test_a_qlora_step_lowers_the_loss(folder, ids) -> None:
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = prepare_model_for_kbit_training(
        load(folder, quantization_config=settings), gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4)).train()
    assert model.is_gradient_checkpointing
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    before = model(ids, labels=ids).loss
    before.backward()
    assert all(p.grad is not None for p in trained)
    optimizer.step()
    assert model(ids, labels=ids).loss < before - 0.01


# packed documents


def split_documents(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The documents of a packed batch of one row, each (1, T)."""
    [starts] = (batch["position_ids"][0] == 0).nonzero(as_tuple=True)
    return list(batch["input_ids"].tensor_split(starts[1:], dim=1))


def mean_loss(model: Any, documents: list[torch.Tensor]) -> torch.Tensor:
    """The loss per predicted token of documents that are read one at a time."""
    predicted = [document.shape[1] - 1 for document in documents]
    losses = [model(document, labels=document).loss * n for document, n in zip(documents, predicted, strict=True)]
    return sum(losses) / sum(predicted)


@pytest.fixture(scope="module")
def texts(documents: list[dict[str, str]]) -> Dataset:
    """Pieces of 5 to 30 characters, so that several fit into a sequence of 64 tokens."""
    return Dataset.from_dict({"text": [row["text"][: 5 + n * 5 % 26] for n, row in enumerate(documents)]})


@pytest.mark.parametrize("options", [{"packing": True, "max_length": 64}, {"padding_free": True, "max_length": None}])
def test_trl_trains_on_packed_documents_as_on_single_ones(options, folder, texts, tokenizer, tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    model = load(folder)
    arguments = SFTConfig(output_dir=tmp_path, per_device_train_batch_size=4, max_steps=1, **CPU, **options)
    trainer = SFTTrainer(model, arguments, train_dataset=texts, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    assert "attention_mask" not in batch
    documents = split_documents(batch)
    assert len(documents) >= 4
    with torch.no_grad():
        alone = mean_loss(model, documents)
        close(model(**batch).loss, alone, 1e-5)
        leaking = model(batch["input_ids"], labels=batch["labels"]).loss
        assert (leaking - alone).abs() > 1e-3
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(alone.item(), abs=1e-4)


def test_transformers_flattening_collator(folder) -> None:
    model = load(folder)
    lengths = (7, 12, 4)
    features = [{"input_ids": torch.randint(16, 384, (n,)).tolist()} for n in lengths]
    for options in ({}, {"return_flash_attn_kwargs": True}, {"return_seq_idx": True}):
        batch = DataCollatorWithFlattening(**options)(features)
        with torch.no_grad():
            loss = model(**batch).loss
            close(loss, mean_loss(model, [torch.tensor([f["input_ids"]]) for f in features]))


def test_trl_preference_training_lowers_its_loss(folder, tokenizer, tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    rows = {"prompt": ["The cat"] * 4, "chosen": [" sleeps."] * 4, "rejected": [" rains."] * 4}
    remote = {"model_init_kwargs": {"trust_remote_code": True, "dtype": torch.float32}}  # for the reference model too
    arguments = DPOConfig(output_dir=tmp_path, learning_rate=1e-3, max_steps=3, **remote, **CPU)
    trainer = DPOTrainer(
        str(folder), None, arguments, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer
    )
    trainer.train()
    first, *_, last = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert first == pytest.approx(math.log(2), abs=1e-4)  # the model is still its own reference
    assert last < first - 0.01


# Trainer


def rows_for(head: str) -> list[dict[str, torch.Tensor]]:
    """Eight rows of 16 tokens with labels for a head; a row has one labelled token more than the one before.

    (For MLM + NSP all rows have as many: one divisor cannot serve a loss per token and a loss per row.)
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(16, 384, (8, 16), generator=generator)
    labelled = torch.arange(16) <= (4 if head == "PreTraining" else torch.arange(8)[:, None])
    tokens, kinds = ids.where(labelled, -100), torch.arange(8) % 2
    labels: dict[str, dict[str, torch.Tensor]] = {
        "CausalLM": {"labels": tokens},
        "MaskedLM": {"labels": tokens},
        "PreTraining": {"labels": tokens, "next_sentence_label": kinds},
        "NextSentencePrediction": {"labels": kinds},
        "SequenceClassification": {"labels": kinds},
        "SequenceClassification, a number": {"labels": torch.rand(8, generator=generator)},
        "SequenceClassification, several": {"labels": torch.rand(8, 3, generator=generator).round()},
        "TokenClassification": {"labels": (ids % 3).where(labelled, -100)},
        "QuestionAnswering": {"start_positions": kinds, "end_positions": kinds + 3},
    }
    columns = {"input_ids": ids, **labels[head]}
    return [{name: column[row] for name, column in columns.items()} for row in range(8)]


@pytest.mark.parametrize(
    "head",
    [
        "CausalLM",
        "MaskedLM",
        "PreTraining",
        "NextSentencePrediction",
        "SequenceClassification",
        "SequenceClassification, a number",
        "SequenceClassification, several",
        "TokenClassification",
        "QuestionAnswering",
    ],
)
def test_accumulated_gradients_are_those_of_the_whole_batch(head: str, folder, tmp_path: Path) -> None:
    rows = rows_for(head)
    labels = 1 if "number" in head else 3
    steps = []
    for accumulation in (1, 4):
        torch.manual_seed(0)  # the heads without weights in the folder
        model = load(folder, f"AutoModelFor{head.split(',', maxsplit=1)[0]}", num_labels=labels)
        arguments = TrainingArguments(
            tmp_path, per_device_train_batch_size=8 // accumulation, gradient_accumulation_steps=accumulation,
            max_steps=1, max_grad_norm=1e9, **CPU,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train()
        steps.append(trainer.state.log_history[0])
    whole, accumulated = steps
    assert accumulated["loss"] == pytest.approx(whole["loss"], abs=2e-4)
    assert accumulated["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


# lm-evaluation-harness


def test_evaluation_harness_scores_are_the_models_log_likelihoods(folder, tokenizer, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate

    questions = [
        {"context": "The cat sleeps on the", "choices": [" warm roof.", " 第三本书", " toit chaud."], "answer": 0},
        {"context": "Le chat dort sur le", "choices": [" roof", " toit chaud.", "?"], "answer": 1},
        {"context": "第一只猫睡在", "choices": ["温暖的屋顶上。", "rained last week"], "answer": 0},
    ]
    write_jsonl(tmp_path / "questions.jsonl", questions)
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "questions.jsonl")}, "cache_dir": str(tmp_path)},
        "test_split": "test",
        "doc_to_text": "{{context}}",
        "target_delimiter": "",
    }
    choose = {
        "task": "choose", "output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}], **common,
    }  # fmt: skip
    write = {
        "task": "write", "output_type": "generate_until", "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}], **common,
    }  # fmt: skip
    results = simple_evaluate(
        "hf",
        {"pretrained": str(folder), "trust_remote_code": True, "dtype": "float32"},
        [choose, write],
        batch_size=2,
        device="cpu",
        bootstrap_iters=0,
    )
    model = load(folder)

    def log_likelihood(context: str, choice: str) -> float:
        given, whole = tokenizer(context).input_ids, tokenizer(context + choice).input_ids
        read = torch.tensor([given + whole[len(given) :]])
        with torch.no_grad():
            log_probabilities = model(read).logits[0, :-1].log_softmax(-1)
        return log_probabilities.gather(1, read[0, 1:, None])[len(given) - 1 :].sum().item()

    correct = []
    for sample in results["samples"]["choose"]:
        question = sample["doc"]
        expected = [log_likelihood(question["context"], choice) for choice in question["choices"]]
        assert [answer[0] for answer in sample["filtered_resps"]] == pytest.approx(expected, abs=1e-3)
        correct.append(expected.index(max(expected)) == question["answer"])
    assert results["results"]["choose"]["acc,none"] == pytest.approx(sum(correct) / 3)

    for sample in results["samples"]["write"]:
        prompt = tokenizer(sample["doc"]["context"], return_tensors="pt")
        written = model.generate(**prompt, max_new_tokens=6, do_sample=False)[0, prompt.input_ids.shape[1] :]
        expected = tokenizer.decode(written, skip_special_tokens=True).split("\n")[0]
        assert sample["resps"][0][0] == expected


# transformers' servers


def test_continuous_batching_writes_what_generate_writes(folder) -> None:
    model = load(folder)
    prompts = [[1, 20, 30, 40], [1, 50], [1, 60, 70, 80, 90, 100]]
    settings = transformers.GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=2)
    answers = model.generate_batch(prompts, settings, ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64))
    for prompt, answer in zip(prompts, answers.values(), strict=True):
        alone = model.generate(torch.tensor([prompt]), settings)[0, len(prompt) :]
        assert answer.generated_tokens == alone.tolist()


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_the_api_server_answers_as_generate_does(folder, tokenizer, tmp_path: Path) -> None:
    place = tmp_path / "chat"
    shutil.copytree(folder, place)
    chatty = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=True)
    chatty.chat_template = "{% for message in messages %}{{ message.content }}<|sep|>{% endfor %}"
    chatty.save_pretrained(place)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = (tmp_path / "log").open("w+")
    command = [sys.executable, "-m", "septet.tasks.hub.serve_api", str(place), "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            assert server.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        options = {"max_tokens": 12, "temperature": 0.0}
        message = {"role": "user", "content": "The cat sleeps"}
        chat = post(f"{url}/v1/chat/completions", {"messages": [message], **options})
        plain = post(f"{url}/v1/completions", {"prompt": "Le chat", **options})
    finally:
        server.send_signal(signal.SIGINT)
        status = server.wait(timeout=20)
    log.seek(0)
    assert "Traceback" not in log.read()
    assert status == 130

    model = load(folder)
    prompts = (
        chatty.apply_chat_template([message], return_tensors="pt", return_dict=True),
        chatty("Le chat", return_tensors="pt"),
    )
    for prompt, answer in zip(
        prompts, (chat["choices"][0]["message"]["content"], plain["choices"][0]["text"]), strict=True
    ):
        written = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert answer == chatty.decode(written, skip_special_tokens=True)
        assert answer


def test_transformers_serve_alone_still_needs_help(folder, monkeypatch) -> None:
    """When this fails, `septet serve-api` and the line that helps strangers are not needed any more."""
    from transformers.cli.serving import model_manager

    manager, name = model_manager.ModelManager(device="cpu", trust_remote_code=True), f"{folder}@main"
    with pytest.raises(AttributeError, match="SeptetForPreTraining"):
        manager._load_model(name)
    auto_class = transformers.AutoModelForCausalLM
    monkeypatch.setattr(model_manager.transformers, "SeptetForPreTraining", auto_class, raising=False)
    assert type(manager._load_model(name)).__name__ == "SeptetForCausalLM"


@pytest.mark.parametrize(
    ("heads", "message"),
    [(["SeptetForMaskedLM"], "no trained SeptetForCausalLM"), (["SeptetForCausalLM"], "cannot be had on 127.0.0.1")],
)
def test_what_the_api_server_refuses(heads: list[str], message: str, folder, tmp_path: Path) -> None:
    place = tmp_path / "model"
    shutil.copytree(folder, place)
    described = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**described, "trained_heads": heads}))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match=message):
        serve_api.run(serve_api.ServeApiConfig(place, port=taken.getsockname()[1]))


# serving engines that bring their own attention: vLLM's and SGLang's Transformers backends


def engine_model(folder: Path, attention: str, **fields: Any) -> Any:
    """The decoder without a head as those engines make it: from the configuration, then weights by name."""
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True, **fields)
    config._attn_implementation = attention
    model = transformers.AutoModel.from_config(config, trust_remote_code=True).eval()
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): w for name, w in weights.items() if name.startswith("model.")})
    return model


def test_a_foreign_attention_gets_all_it_needs(folder, ids) -> None:
    calls = []

    def engine_attention(module, query, key, value, attention_mask, scaling=None, requests=None, **kwargs):
        """Attention over requests that lie one after another in one row, with states of (T, heads * D)."""
        calls.append((module.layer_idx, query.shape, key.shape, value.shape, attention_mask, scaling))
        outputs = [
            functional.scaled_dot_product_attention(*parts, is_causal=True, scale=scaling, enable_gqa=True)
            for parts in zip(*(states.split(requests[module.layer_idx], 2) for states in (query, key, value)), strict=True)
        ]  # fmt: skip
        return torch.cat(outputs, 2).transpose(1, 2).flatten(2)[0], None

    AttentionInterface.register("engine", engine_attention)
    model = engine_model(folder, "engine")
    assert model.is_backend_compatible()
    config, lengths = model.config, (13, 7)
    row = torch.cat([ids[0, :13], ids[1, :7]])[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    with torch.no_grad():
        outputs = model(
            input_ids=row, inputs_embeds=None, use_cache=False, position_ids=positions, return_dict=False,
            requests=dict.fromkeys(range(config.num_hidden_layers), lengths),
        )  # fmt: skip
        plain = load(folder, "AutoModel")
        alone = [plain(part).last_hidden_state for part in row.split(lengths, 1)]
    close(outputs[0], torch.cat(alone, 1))
    heads, shared = ((1, n, 20, config.head_dim) for n in (config.num_attention_heads, config.num_key_value_heads))
    scaling = config.head_dim**-0.5
    assert calls == [(layer, heads, shared, shared, None, scaling) for layer in range(config.num_hidden_layers)]


def test_engines_find_the_plans_and_the_direction_of_reading(folder) -> None:
    model = engine_model(folder, "sdpa")
    assert model.supports_pp_plan
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    styles = {name: {s for p, s in model.tp_plan.items() if re.fullmatch(p, name)} for name in linear}
    by_row = {name for name in linear if name.endswith(("o_proj", "down_proj"))}
    assert styles == {name: {"rowwise" if name in by_row else "colwise"} for name in linear}
    stages = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    assert list(model._pp_plan) == stages == ["embed_tokens", "layers", "norm"]
    for mode in ("causal", "bidirectional"):
        attention = [m for m in engine_model(folder, "sdpa", attention_mode=mode).modules() if hasattr(m, "layer_idx")]
        assert {module.is_causal for module in attention} == {mode == "causal"}


def test_a_pipeline_of_two_stages_gives_the_whole_models_states(folder, ids) -> None:
    class Elsewhere(torch.nn.Module):
        """What an engine puts where another stage's module was."""

        def forward(self, states: torch.Tensor, **_: Any) -> torch.Tensor:
            return states

    whole, first, second = (engine_model(folder, "sdpa") for _ in range(3))
    first.layers[1], first.norm = Elsewhere(), Elsewhere()
    second.layers[0], second.embed_tokens = Elsewhere(), Elsewhere()
    with torch.no_grad():
        between = first(ids, use_cache=False, return_dict=False)[0]
        states = second(inputs_embeds=between, use_cache=False, return_dict=False)[0]
        close(states, whole(ids).last_hidden_state, 1e-6)


def test_engines_keep_the_head_of_the_checkpoint(folder) -> None:
    ignored = engine_model(folder, "sdpa")._keys_to_ignore_on_load_unexpected or []
    for name in ("lm_head.weight", "classifier.weight", "classifier.bias"):
        assert not any(re.search(pattern, name) for pattern in ignored)
    for name in ("nsp_head.weight", "token_classifier.bias", "qa_outputs.weight"):  # of no use to an engine
        assert any(re.search(pattern, name) for pattern in ignored)

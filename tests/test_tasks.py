"""The recipes: what they encode they decode again, what breaks their rules is refused, and the whole of a task runs."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer

from septet.data.documents import write_jsonl
from septet.data.errors import UserError
from septet.data.pack import load_tokenizer
from septet.modeling.checkpoint import save_model
from septet.modeling.modeling_septet import SeptetForPreTraining
from septet.tasks.harness import finetune, predict
from septet.tasks.harness.generation import frame_of
from septet.tasks.harness.metrics import score
from septet.tasks.harness.task import Reading, all_tasks, get_task, read_examples

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
CONTEXT = "Marie lives in Paris. " * 9 + "Tom Thumb moved to Lyon in 1990. " + "Nobody knows why. " * 9
ROWS = {
    "translation": [{"translation": {"en": f"The {n} cats sleep.", "fr": f"Les {n} chats dorment."}} for n in range(40)],
    "classification": [
        {"text": f"{'Goal' if n % 2 else 'Stew'} number {n}", "label": "sports" if n % 2 else "cooking", "lang": "en"}
        for n in range(40)
    ],
    "qa": [
        {"id": str(n), "title": "t", "question": "Where did Tom move?", "context": CONTEXT, "lang": "en",
         "answers": {"text": ["Lyon"], "answer_start": [CONTEXT.index("Lyon")]}}
        for n in range(24)
    ],
    "generative_qa": [
        {"question": f"Who came on day {n}?", "context": f"On day {n} the baker came. " * 3, "lang": "en",
         "answers": ["the baker"] if n % 5 else []}
        for n in range(40)
    ],
    "multilabel": [
        {"text": f"{'Goal' if n % 2 else ''} {'Stew' if n % 3 else ''} number {n}", "lang": "en",
         "labels": ["sports"] * (n % 2) + ["cooking"] * (n % 3 > 0)}
        for n in range(40)
    ],
    "regression": [{"sentence": "Very " * (n % 5) + "good", "label": 0.5 * (n % 5), "lang": "en"} for n in range(40)],
    "summarization": [
        {"document": f"在第{n}天，张三去了北京。天气很好。", "summary": f"第{n}天张三去北京", "lang": "zh"} for n in range(40)
    ],
    "ner": [
        {"tokens": list(f"张三第{n}次去北京旅游"), "lang": "zh",
         "ner_tags": ["B-PER", "I-PER", *["O"] * (3 + len(str(n))), "B-LOC", "I-LOC", "O", "O"]}
        for n in range(40)
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    for task, rows in ROWS.items():
        for split, part in (("train", rows[:-12]), ("validation", rows[-12:-6]), ("test", rows[-6:])):
            write_jsonl(root / task / f"{split}.jsonl.gz", part)
    return root


@pytest.fixture(scope="module")
def base(config, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base") / "final"
    config = type(config)(**{**config.to_dict(), "trained_heads": ["SeptetForCausalLM"]})
    save_model(SeptetForPreTraining(config), tokenizer, folder)
    return folder


def with_room(config, task, examples, tokenizer, **fields):
    settings = {
        **config.to_dict(),
        **task.config_fields(examples, tokenizer),
        "attention_mode": task.attention_mode,
        **fields,
    }
    return type(config)(**settings)


def test_the_folder_is_the_registry() -> None:
    assert sorted(all_tasks()) == sorted(ROWS)
    with pytest.raises(UserError, match="task 'traduction' is unknown; did you mean 'translation'"):
        get_task("traduction")


def oracle(task, features, logits_of):
    """A model that knows the features' labels, in the order in which the recipe batches them."""

    class Oracle:
        device = torch.device("cpu")

        def __call__(self, input_ids, attention_mask):
            rows = [tuple(row[mask.bool()].tolist()) for row, mask in zip(input_ids, attention_mask, strict=True)]
            known = {tuple(feature["input_ids"]): feature for feature in features}
            return logits_of([known[row] for row in rows], input_ids.shape[1])

    return Oracle()


def test_ner_gives_back_what_it_encodes_over_windows(config, tokenizer) -> None:
    task = get_task("ner")
    rows = [ROWS["ner"][7], {"tokens": ["Anna", "Smith", "saw", "New", "York", "!"] * 30, "lang": "en",
            "ner_tags": ["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "O"] * 30}]  # fmt: skip
    examples = [task.example({"id": str(i), **row}, task.columns, Reading({})) for i, row in enumerate(rows)]
    config = with_room(config, task, examples, tokenizer)
    features = task.encode(examples, tokenizer, config)
    assert len(features) > 2  # the long one takes several windows
    assert max(len(feature["input_ids"]) for feature in features) <= config.max_position_embeddings

    def logits(found, length):
        out = torch.zeros(len(found), length, config.num_labels)
        for row, feature in enumerate(found):
            for place, label in enumerate(feature["labels"]):
                out[row, place, max(label, 0)] = 1
        return SimpleNamespace(logits=out)

    model = oracle(task, features, logits)
    model.config = config
    predictions = task.predict(model, tokenizer, examples, 4)
    assert [row["prediction"] for row in predictions] == [example.reference for example in examples]


def test_a_token_takes_its_tag_from_the_window_in_which_it_stands_deepest(config, tokenizer) -> None:
    """A model that is wrong within a quarter of a window of its edges, and right farther in."""
    task = get_task("ner")
    row = {
        "id": "0",
        "tokens": ["Anna", "saw", "Rome", "."] * 60,
        "lang": "en",
        "ner_tags": ["B-PER", "O", "B-LOC", "O"] * 60,
    }
    example = task.example(row, task.columns, Reading({}))
    config = with_room(config, task, [example], tokenizer)
    features = task.encode([example], tokenizer, config)
    assert len(features) > 3

    def logits(found, length):
        out = torch.zeros(len(found), length, config.num_labels)
        for row, feature in enumerate(found):
            size = len(feature["labels"])
            for place, label in enumerate(feature["labels"]):
                is_deep = min(place, size - place) >= size // 4 - 2
                out[row, place, max(label, 0) if is_deep else config.label2id["I-LOC"]] = 1
        return SimpleNamespace(logits=out)

    model = oracle(task, features, logits)
    model.config = config
    [predicted] = task.predict(model, tokenizer, [example], 4)
    inner = slice(40, 200)  # the ends of the text stand at an edge in whatever window
    assert predicted["prediction"][inner] == example.reference[inner]


def test_qa_gives_back_what_it_encodes_over_windows(config, tokenizer) -> None:
    task = get_task("qa")
    chinese = {"id": "z", "question": "谁去了北京？", "context": "天气很好。" * 30 + "张三去了北京。",
               "lang": "zh", "answers": {"text": ["张三"], "answer_start": [150]}}  # fmt: skip
    examples = [task.example(row, task.columns, Reading({})) for row in (ROWS["qa"][0], chinese)]
    config = with_room(config, task, examples, tokenizer)
    features = task.encode(examples, tokenizer, config)
    assert len(features) > 4
    assert any(feature["start_positions"] == 0 for feature in features)  # windows without the answer

    def logits(found, length):
        start, end = torch.zeros(len(found), length), torch.zeros(len(found), length)
        for row, feature in enumerate(found):
            start[row, feature["start_positions"]] = end[row, feature["end_positions"]] = 9
        return SimpleNamespace(start_logits=start, end_logits=end)

    model = oracle(task, features, logits)
    model.config = config
    predictions = task.predict(model, tokenizer, examples, 4)
    assert [row["prediction"] for row in predictions] == ["Lyon", "张三"]


@pytest.fixture(scope="module")
def imported_tokenizer(tokenizer):
    """One of a model from elsewhere: the same merges, special tokens of other names, the first three in use."""
    from transformers import PreTrainedTokenizerFast

    described = tokenizer.backend_tokenizer.to_str()
    for ours, theirs in (("<|source|>", "<|im_start|>"), ("<|target|>", "<repo>"), ("<|sep|>", "<unk>")):
        assert ours in described
        described = described.replace(ours, theirs)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(described), pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|eos|>",
        unk_token="<unk>", mask_token="<|mask|>",
    )  # fmt: skip


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<repo>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def chatting_tokenizer(imported_tokenizer):
    """The same with a chat template of its own, which its model knows."""
    tokenizer = copy.deepcopy(imported_tokenizer)
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.mark.parametrize("name", ["translation", "summarization"])
@pytest.mark.parametrize("which", ["tokenizer", "imported_tokenizer", "chatting_tokenizer"])
def test_a_prompt_is_what_the_chat_template_renders(name: str, which: str, config, request) -> None:
    from septet.tasks.harness.generation import chat_template

    task, tokenizer = get_task(name), request.getfixturevalue(which)
    text = "{{ messages[-1]['content'] }}"
    assert (
        chat_template(tokenizer)
        == {
            "tokenizer": f"{{{{ bos_token }}}}<|source|>{text}<|target|>",
            "imported_tokenizer": f"{{{{ bos_token }}}}<|im_start|>{text}<repo>",
            "chatting_tokenizer": CHAT,
        }[which]
    )
    example = task.example({"id": "0", **ROWS[name][0]}, task.columns, Reading({}))
    roomy = with_room(config, task, [example], tokenizer, max_position_embeddings=512)
    [feature] = task.encode([example], tokenizer, roomy)
    prompt = feature["input_ids"][: feature["prefix_lengths"]]
    assert None not in prompt and tokenizer.unk_token_id not in prompt
    message = [{"role": "user", "content": example.input[task.source_role]}]
    rendered = tokenizer.apply_chat_template(
        message, chat_template=chat_template(tokenizer), add_generation_prompt=True, return_dict=False
    )
    assert rendered == prompt
    answer = feature["input_ids"][feature["prefix_lengths"] :]
    assert answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(answer[:-1]) == example.reference
    assert feature["labels"] == [-100] * len(prompt) + answer


def test_a_tokenizer_that_cannot_tell_prompt_from_answer_is_refused(config) -> None:
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", eos_token="<unk>")
    with pytest.raises(UserError, match=r"has no .*, no chat template, and of special tokens without a use only"):
        frame_of(tokenizer)


def test_what_is_cut_is_counted(config, tokenizer) -> None:
    """A target longer than half the context, a question longer than half a window."""
    long = "The cat sleeps. " * 60
    for name, changes in (
        ("translation", {"translation": {"en": "A cat.", "fr": long}}),
        ("qa", {"question": long}),
    ):
        task = get_task(name)
        rows = [{"id": "0", **ROWS[name][0]}, {"id": "1", **ROWS[name][0], **changes}]
        examples = [task.example(row, task.columns, Reading({})) for row in rows]
        features = task.encode(examples, tokenizer, with_room(config, task, examples, tokenizer))
        assert features[0]["truncated"] is False and features[-1]["truncated"] is True
        assert max(len(feature["input_ids"]) for feature in features) <= config.max_position_embeddings


def answered(name: str, config, tokenizer, rows: list[dict], start: float = 0.0, end: float = 0.0) -> list[dict]:
    """What the QA recipe answers when every score of a first and last token is the same."""
    task = get_task(name)
    examples = [task.example({"id": str(n), **row}, task.columns, Reading({})) for n, row in enumerate(rows)]

    class Model:
        device = torch.device("cpu")

        def __call__(self, input_ids, attention_mask):
            scores = torch.zeros(input_ids.shape)
            return SimpleNamespace(start_logits=scores + start, end_logits=scores + end)

    model = Model()
    model.config = with_room(config, task, examples, tokenizer)
    return task.predict(model, tokenizer, examples, 4)


def test_answers_that_no_span_can_give_are_counted(config, tokenizer) -> None:
    def asked(context: str, start: int, end: int) -> dict:
        answers = (
            {"text": [context[start:end]], "answer_start": [start]} if end > start else {"text": [], "answer_start": []}
        )
        return {"question": "Who?", "context": context, "answers": answers, "lang": "en"}

    pieces = tokenizer(CONTEXT, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    first, last = max(pieces, key=lambda piece: len(CONTEXT[slice(*piece)].strip()))
    first = last - len(CONTEXT[first:last].strip())
    assert last - first >= 2
    long = "Anna " * 40
    rows = [asked(CONTEXT, first, last), asked(long, 0, 199), asked("Tom moved.", 0, 0)]
    rows += [asked(CONTEXT, first + 1, last), asked(CONTEXT, first, last - 1)]
    found = answered("qa", config, tokenizer, rows)
    assert [row["out_of_reach"] for row in found] == [False, True, False, True, True]


def test_an_empty_answer_is_none_and_is_counted(config, tokenizer) -> None:
    for name in ("qa", "generative_qa"):
        task = get_task(name)
        empty = {"text": [""], "answer_start": [-1]}
        row = {"id": "0", **ROWS["qa"][0], "answers": empty}
        example = task.example(row, task.columns, Reading({}))
        assert (example.reference, example.mended) == ([], True)
        assert not task.example({**ROWS["qa"][0]}, task.columns, Reading({})).mended
    fields = get_task("qa").config_fields([get_task("qa").example(row, task.columns, Reading({}))], tokenizer)
    assert fields["task_specific_params"] == {"qa": {"unanswerable": True}}
    causal = with_room(config, get_task("qa"), [example], tokenizer, attention_mode="causal")
    unanswerable = get_task("qa").example(row, task.columns, Reading({}))
    with pytest.raises(UserError, match="--attention-mode causal: that a question has no answer is read off the first"):
        get_task("qa").encode([unanswerable], tokenizer, causal)


def test_tags_of_the_older_scheme_are_read_and_counted() -> None:
    task = get_task("ner")
    row = {"id": "0", "tokens": ["Ann", "Lee", "Rome"], "lang": "en"}
    for tags, mended in ((["I-PER", "I-PER", "I-LOC"], True), (["B-PER", "I-PER", "B-LOC"], False)):
        example = task.example({**row, "ner_tags": tags}, task.columns, Reading({}))
        assert (example.reference, example.mended) == (["B-PER", "I-PER", "B-LOC"], mended)


def test_scores_that_are_no_numbers_are_no_answers(config, tokenizer) -> None:
    from septet.modeling.modeling_septet import SeptetForCausalLM, SeptetForTokenClassification

    task = get_task("ner")
    examples = [task.example({"id": "0", **ROWS["ner"][0]}, task.columns, Reading({}))]
    tagger = SeptetForTokenClassification(with_room(config, task, examples, tokenizer)).eval()
    tagger.token_classifier.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="scores are not finite"):
        task.predict(tagger, tokenizer, examples, 2)
    for bad in ({"start": torch.nan}, {"end": torch.nan}):
        with pytest.raises(UserError, match="scores are not finite"):
            answered("qa", config, tokenizer, ROWS["qa"][:1], **bad)
    task = get_task("translation")
    examples = [task.example({"id": "0", **ROWS["translation"][0]}, task.columns, Reading({}))]
    writer = SeptetForCausalLM(with_room(config, task, examples, tokenizer)).eval()
    writer.model.norm.weight.data[0] = torch.nan
    for beams in (1, 3):
        task.finish(writer, copy.deepcopy(tokenizer), SimpleNamespace(num_beams=beams, max_new_tokens=4))
        with pytest.raises(UserError, match="scores are not finite"):
            task.predict(writer, tokenizer, examples, 2)


@pytest.mark.parametrize("name", ["classification", "translation"])
def test_early_stopping_ends_a_run_that_gets_no_better(name: str, sets: Path, base: Path, tmp_path: Path) -> None:
    """At a rate of next to nothing no epoch is better than the first: the run ends after two more."""
    options = {"epochs": 8, "batch_size": 14, "learning_rate": 1e-12, "early_stopping": 2, "dropout": 0.0}
    finetune.run(finetune.FinetuneConfig(name, base, str(sets / name), tmp_path / "run", **options))
    counts = json.loads((tmp_path / "run" / "manifest.json").read_text())["counts"]
    assert counts["steps"] == 3 * 2  # 28 rows
    assert len(counts["curves"]["validation_loss"]) == 3


def test_a_run_that_diverges_says_so(sets: Path, base: Path, tmp_path: Path) -> None:
    options = {"epochs": 2, "batch_size": 4, "learning_rate": 1e30}
    with pytest.raises(UserError, match="the held-out loss is nan after epoch 1: training diverged; give a lower"):
        finetune.run(finetune.FinetuneConfig("ner", base, str(sets / "ner"), tmp_path / "run", **options))


def test_options_that_do_not_fit_leave_nothing_behind(sets: Path, base: Path, tmp_path: Path) -> None:
    options = {"base": base, "data": str(sets / "ner"), "output": tmp_path / "run", "epochs": 1}
    with pytest.raises(UserError, match="--batch-size 10 is not a multiple"):
        finetune.run(finetune.FinetuneConfig("ner", **options, batch_size=10, micro_batch_size=4))
    finetune.run(finetune.FinetuneConfig("ner", **options, batch_size=8, micro_batch_size=4))


LATE = """
import os, time
if os.environ["RANK"] == "1":
    time.sleep(5)
from septet.data.errors import run_cli
from septet.tasks.harness import finetune
run_cli(finetune.run, finetune.FinetuneConfig)
"""


def test_two_processes_train_as_one_does_though_one_comes_late(sets: Path, base: Path, tmp_path: Path) -> None:
    """The losses are those of one process, up to the order of the rows, which are grouped by length a process."""
    (tmp_path / "late.py").write_text(LATE)
    losses = {}
    for processes in (1, 2):
        run = tmp_path / f"run{processes}"
        options = {"base": base, "data": sets / "translation", "output": run, "epochs": 2, "batch-size": 14, "dropout": 0,
                   "optimizer": "adamw", "learning-rate": 3e-3}  # fmt: skip
        flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        machine = Path(__file__).parents[1] / "accelerate_configs" / "cpu_2proc.yaml"
        launcher = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(machine)]
        script = [*launcher, str(tmp_path / "late.py")] if processes == 2 else ["-m", "septet.tasks.harness.finetune"]
        found = subprocess.run(
            [sys.executable, *script, "translation", *flags],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            check=False,
        )
        assert found.returncode == 0, found.stderr[-2000:]
        curves = json.loads((run / "manifest.json").read_text())["counts"]["curves"]
        losses[processes] = [loss for name in ("train_loss", "validation_loss") for _, loss in curves[name]]
    assert losses[2] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_task_from_base_to_report(name: str, sets: Path, base: Path, tmp_path: Path, capsys) -> None:
    run, report_folder = tmp_path / "run", tmp_path / "report"
    options = finetune.FinetuneConfig(name, base=base, data=str(sets / name), output=run, epochs=1, batch_size=4)
    finetune.run(options)
    evaluation = predict.EvaluateConfig(name, model=run / "final", data=str(sets / name), output=report_folder)
    predict.run(evaluation)
    report = json.loads((report_folder / "report.json").read_text())
    rows = [json.loads(line) for line in (report_folder / "predictions.jsonl").read_text().split("\n") if line]
    assert len(rows) == report["data"]["test"]["rows"] == 6
    recomputed = score(
        get_task(name).family,
        [r["prediction"] for r in rows],
        [r["reference"] for r in rows],
        [r["lang"] for r in rows],
    )
    for metric, value in recomputed.items():
        stated = report["scores"][metric]
        assert stated["value"] == pytest.approx(value)
        assert stated["low"] <= stated["value"] + 1e-9
        assert stated["value"] <= stated["high"] + 1e-9
    assert report["baselines"]
    assert len(report["curves"]["train_loss"]) > 2
    assert len(report["curves"]["validation_loss"]) == 1
    config = json.loads((run / "final" / "config.json").read_text())
    assert config["trained_heads"] == [get_task(name).head]
    assert config["exact_match_embedding"] is (name == "qa")
    assert (run / "final" / "modeling_septet.py").is_file()

    capsys.readouterr()
    finetune.run(dataclasses.replace(options, resume=True))
    predict.run(evaluation)
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(UserError, match="seed was 0, now 1"):
        finetune.run(dataclasses.replace(options, seed=1))
    begun = json.loads((run / "run.json").read_text())
    begun["inputs"]["train"]["path"] = "where/it/lay/then"  # the same set
    (run / "run.json").write_text(json.dumps(begun))
    finetune.run(dataclasses.replace(options, resume=True))
    with pytest.raises(UserError, match="batch_size = 32, now 8"):
        predict.run(dataclasses.replace(evaluation, batch_size=8))


@pytest.mark.parametrize(
    "name, method", [("classification", "lora"), ("classification", "qlora"), ("qa", "lora"), ("regression", "lora")]
)
def test_lora_trains_adapters_and_merges_them(name: str, method: str, sets: Path, base: Path, tmp_path: Path) -> None:
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    from peft import PeftModel

    from septet.modeling import modeling_septet

    run, data = tmp_path / "run", str(sets / name)
    tuned = {"tune_thresholds": True} if name == "classification" else {}
    options = {"method": method, "epochs": 2, "batch_size": 4, **tuned}
    finetune.run(finetune.FinetuneConfig(name, base=base, data=data, output=run, **options))
    head = getattr(modeling_septet, get_task(name).head)
    merged = head.from_pretrained(run / "final").eval()
    fields = {
        "attention_mode": "bidirectional",
        "num_labels": 1 if name == "regression" else 2,
        "exact_match_embedding": name == "qa",
    }
    plain = head.from_pretrained(base, **fields).eval()
    adapted = PeftModel.from_pretrained(plain, run / "adapter").eval()
    ids = torch.arange(20, 40)[None]
    for ours, theirs in zip(merged(ids).to_tuple(), adapted(ids).to_tuple(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    weights = [m.model.layers[0].mlp.up_proj.weight for m in (merged, head.from_pretrained(base, **fields))]
    assert not torch.equal(*weights)
    learned = json.loads((run / "manifest.json").read_text())["counts"]["resolved"]
    assert learned["learning_rate"] == 1e-2
    if name == "regression":  # the scale of the numbers is part of the head
        assert merged.classifier.bias.item() == pytest.approx(1.0, abs=0.5)
    if name == "qa":
        assert merged.match_embeddings.weight.abs().sum() > 0


def test_a_classifier_can_read_causally(sets: Path, base: Path, tmp_path: Path) -> None:
    from septet.modeling.modeling_septet import SeptetForSequenceClassification

    options = {"base": base, "output": tmp_path / "run", "epochs": 1, "batch_size": 4, "attention_mode": "causal"}
    finetune.run(finetune.FinetuneConfig("classification", data=str(sets / "classification"), **options))
    model = SeptetForSequenceClassification.from_pretrained(tmp_path / "run" / "final").eval()
    assert model.config.attention_mode == "causal"
    ids = torch.arange(20, 30)[None]
    states = model.model(ids).last_hidden_state
    torch.testing.assert_close(model.model(ids[:, :4]).last_hidden_state, states[:, :4])
    torch.testing.assert_close(model(ids).logits, model.classifier(states[:, -1]))


def test_a_prompt_can_be_read_causally(sets: Path, base: Path, tmp_path: Path) -> None:
    """What the model sees of a prompt's end does not change its beginning, in training as in use; losses are a causal LM's."""
    from septet.modeling.modeling_septet import SeptetForCausalLM

    data = str(sets / "translation")
    options = {"epochs": 1, "batch_size": 28, "dropout": 0.0, "label_smoothing": 0.0}
    with pytest.raises(UserError, match="--attention-mode bidirectional: translation writes from left to right"):
        finetune.run(
            finetune.FinetuneConfig("translation", base, data, tmp_path / "no", attention_mode="bidirectional")
        )
    config = finetune.FinetuneConfig("translation", base, data, tmp_path / "run", attention_mode="causal", **options)
    finetune.run(config)
    model = SeptetForCausalLM.from_pretrained(tmp_path / "run" / "final").eval()
    assert model.config.attention_mode == "causal"
    ids = torch.arange(20, 30)[None]
    torch.testing.assert_close(model(ids[:, :4]).logits, model(ids).logits[:, :4])
    losses = json.loads((tmp_path / "run" / "manifest.json").read_text())["counts"]["curves"]
    task, tokenizer = get_task("translation"), load_tokenizer(base)
    plain = SeptetForCausalLM.from_pretrained(base, attention_mode="causal").eval()
    features = task.encode(read_examples(task, data, "train", Reading({})), tokenizer, plain.config)
    assert "prefix_lengths" not in features[0]
    for feature in features:
        del feature["truncated"]
    expected = plain(**task.collate(features, tokenizer)).loss
    assert losses["train_loss"][0][1] == pytest.approx(float(expected), rel=1e-4)
    predict.run(
        predict.EvaluateConfig("translation", tmp_path / "run" / "final", data=data, output=tmp_path / "report")
    )
    assert (tmp_path / "report" / "report.json").is_file()


def test_bfloat16_and_checkpointing_change_little(sets: Path, base: Path, tmp_path: Path, monkeypatch) -> None:
    from septet.modeling.modeling_septet import SeptetMLP

    losses, calls, forward = {}, Counter(), SeptetMLP.forward

    def counted(self, *args, **kwargs):
        calls[name] += self.training
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SeptetMLP, "forward", counted)
    for name, options in {
        "plain": {},
        "bf16": {"mixed_precision": "bf16"},
        "checkpointing": {"activation_checkpointing": True},
    }.items():
        run = tmp_path / name
        config = finetune.FinetuneConfig(
            "translation",
            base=base,
            data=str(sets / "translation"),
            output=run,
            epochs=1,
            batch_size=4,
            dropout=0.0,
            **options,
        )
        finetune.run(config)
        losses[name] = json.loads((run / "manifest.json").read_text())["counts"]["curves"]["train_loss"]
    assert losses["checkpointing"] == losses["plain"]
    assert calls["checkpointing"] == 2 * calls["plain"] > 0  # each layer again in the backward pass
    assert losses["bf16"] != losses["plain"]
    for (_, one), (_, other) in zip(losses["bf16"], losses["plain"], strict=True):
        assert one == pytest.approx(other, rel=0.03)


def test_held_out_losses_do_not_depend_on_how_training_is_smoothed(sets: Path, base: Path, tmp_path: Path) -> None:
    curves = []
    for smoothing in (0.0, 0.3):
        run, data = tmp_path / str(smoothing), str(sets / "translation")
        options = {"epochs": 1, "batch_size": 4, "dropout": 0.0, "learning_rate": 1e-12, "label_smoothing": smoothing}
        finetune.run(finetune.FinetuneConfig("translation", base, data, run, **options))
        curves.append(json.loads((run / "manifest.json").read_text())["counts"]["curves"])
    assert curves[0]["validation_loss"] == curves[1]["validation_loss"]
    assert curves[0]["train_loss"] != curves[1]["train_loss"]


def test_random_tokens_replace_some_of_what_is_trained_on_and_nothing_else(
    tokenizer, sets: Path, base: Path, tmp_path: Path
) -> None:
    special = torch.tensor(tokenizer.all_special_ids)
    ids = torch.arange(len(tokenizer)).repeat(50, 1)
    found = finetune.token_replacement(0.3, tokenizer)(ids)
    changed = found != ids
    assert not changed[:, torch.isin(ids[0], special)].any()
    assert not torch.isin(found[changed], special).any()
    assert changed[:, ~torch.isin(ids[0], special)].float().mean() == pytest.approx(0.3, abs=0.02)

    losses = []
    for share in (0.0, 0.5):
        run = tmp_path / str(share)
        options = {"epochs": 1, "batch_size": 4, "dropout": 0.0, "learning_rate": 1e-12}  # one model all the way
        data = str(sets / "ner")
        finetune.run(finetune.FinetuneConfig("ner", base, data, run, token_replacement=share, **options))
        losses.append(json.loads((run / "manifest.json").read_text())["counts"]["curves"])
    assert losses[0]["validation_loss"] == losses[1]["validation_loss"]
    assert losses[0]["train_loss"] != losses[1]["train_loss"]
    with pytest.raises(UserError, match="--token-replacement 1: must be a share, from 0 to below 1"):
        finetune.run(finetune.FinetuneConfig("ner", base, str(sets / "ner"), tmp_path / "no", token_replacement=1))


def row(name: str, **changes) -> dict:
    return {**ROWS[name][0], **changes}


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("translation", [{"translation": {"en": "x", "de": "y"}}], "row 1: column 'translation' holds en, de; it must hold both 'en' and 'fr'"),
        ("translation", [row("translation", translation={"en": " ", "fr": "y"})], "column 'en' holds ' '; it must hold text"),
        ("classification", [{"text": "x", "lable": "y"}], "has no column 'label'.*did you mean 'lable'.*--columns label NAME"),
        ("classification", [{"text": "x", "label": "y", "lang": "de"}], "language 'de'; a row needs a `lang` column"),
        ("classification", [{"text": "x", "label": 1.5, "lang": "en"}], "label 1.5; a label is a string or a whole number"),
        ("qa", [row("qa", answers={"text": ["Lyon"], "answer_start": [3]})], "'Lyon' should start at character 3 of the context, but there stands 'ie l'"),
        ("qa", [row("qa", answers=None)], "row 1: answers None; they are SQuAD's"),
        ("qa", [row("qa", answers=[{"text": "Lyon"}])], "they are SQuAD's {text, answer_start}, a list each"),
        ("qa", [row("qa", answers={"text": "Lyon", "answer_start": 3})], "they are SQuAD's {text, answer_start}, a list each"),
        ("qa", [row("qa", answers={"text": ["Lyon"], "answer_start": []})], "1 answers and 0 starts"),
        ("regression", [row("regression", label="high")], "score 'high'; a score is a finite number"),
        ("ner", [row("ner", tokens=["May", 12], ner_tags=["O", "O"])], "token 12; tokens are strings"),
        ("ner", [row("ner", ner_tags=["O"])], "tokens and 1 tags; there must be one tag a token"),
        ("ner", [row("ner", tokens=["a"], ner_tags=["PER"])], "tag 'PER'; tags are O, B-TYPE or I-TYPE"),
        ("summarization", [row("summarization", summary="")], "column 'summary' holds ''; it must hold text"),
    ],
)  # fmt: skip
def test_rows_that_break_a_rule_are_named(name: str, rows: list, message: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl.gz", rows)
    with pytest.raises(UserError, match=message):
        read_examples(get_task(name), tmp_path, "train", Reading({}))


def test_numbers_of_a_csv_file_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("sentence,label,lang\nVery good,3.5,en\nBad,-1,en\n")
    examples = read_examples(get_task("regression"), tmp_path, "train", Reading({}))
    assert [example.reference for example in examples] == [3.5, -1.0]


def test_splits_columns_and_labels_that_are_not_there(sets: Path, base: Path, tmp_path: Path) -> None:
    task = get_task("classification")
    with pytest.raises(UserError, match="has no tests split.*did you mean 'test'"):
        read_examples(task, sets / "classification", "tests", Reading({}))
    with pytest.raises(UserError, match="column role 'txt'.*did you mean 'text'"):
        read_examples(task, sets / "classification", "test", Reading({"txt": "text"}))
    for split in ("train", "validation"):
        write_jsonl(tmp_path / "set" / f"{split}.jsonl.gz", ROWS["classification"][:4])
    write_jsonl(tmp_path / "set" / "test.jsonl.gz", [{"text": "x", "label": "travel", "lang": "en"}])
    options = {"base": base, "data": str(tmp_path / "set"), "output": tmp_path / "run", "epochs": 1, "batch_size": 2}
    finetune.run(finetune.FinetuneConfig("classification", **options))
    evaluation = predict.EvaluateConfig(
        "classification", model=tmp_path / "run" / "final", data=str(tmp_path / "set"), output=tmp_path / "report"
    )
    with pytest.raises(UserError, match="label 'travel' is in the set to be scored, but train never had it"):
        predict.run(evaluation)
    assert not (tmp_path / "report").exists()
    with pytest.raises(
        UserError, match="is a SeptetForSequenceClassification; ner needs a SeptetForTokenClassification"
    ):
        predict.run(dataclasses.replace(evaluation, task="ner"))


def test_model_folders_that_cannot_be_trusted_are_refused(sets: Path, base: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in base.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    def tune(folder: Path) -> None:
        finetune.run(finetune.FinetuneConfig("classification", base=folder, data=str(sets / "classification"), output=tmp_path / "run"))  # fmt: skip

    without_code = copy("without_code")
    (without_code / "modeling_septet.py").unlink()
    with pytest.raises(UserError, match=r"modeling_septet.py is missing"):
        tune(without_code)
    pickled = copy("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="a pickle, which can run code"):
        tune(pickled)
    other = copy("other_tokenizer")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "eos_token_id": 9}))
    with pytest.raises(UserError, match="eos is token 2 for the tokenizer, 9 for the model"):
        tune(other)
    assert not (tmp_path / "run").exists()

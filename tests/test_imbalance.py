"""Classes of unequal size: weights and losses equal their definitions, and what is drawn, rewritten and tuned helps."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional
from transformers import set_seed

from septet.data.documents import write_jsonl
from septet.data.errors import UserError
from septet.data.pack import load_tokenizer
from septet.modeling.checkpoint import save_model
from septet.modeling.modeling_septet import SeptetForPreTraining
from septet.tasks.harness import finetune, imbalance, predict
from septet.tasks.harness.task import Reading, get_task, read_examples

COUNTS = [90, 9, 1]


@pytest.fixture(scope="module")
def base(config, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base") / "final"
    trained = {**config.to_dict(), "trained_heads": ["SeptetForCausalLM", "SeptetForMaskedLM"]}
    save_model(SeptetForPreTraining(type(config)(**trained)), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 40, 12 and 4 rows in train."""
    folder = tmp_path_factory.mktemp("set")
    texts = {"cooking": "Stew the cat number {n}.", "sports": "It rained {n} goals last week!", "books": "第{n}本书？"}
    for split, sizes in (("train", (40, 12, 4)), ("validation", (8, 6, 4))):
        rows = [
            {"text": texts[label].format(n=n), "label": label, "lang": "en"}
            for label, size in zip(texts, sizes, strict=True)
            for n in range(size)
        ]
        write_jsonl(folder / f"{split}.jsonl.gz", rows)
    return folder


def test_weights_are_scikit_learns_and_have_mean_one_over_the_rows() -> None:
    labels = np.repeat(np.arange(3), COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(imbalance.class_weights(COUNTS, "balanced"), expected)
    for how in ("balanced", "sqrt", "effective"):
        weights = imbalance.class_weights(COUNTS, how)
        assert (weights * COUNTS).sum() == pytest.approx(100)
        assert weights[0] < weights[1] < weights[2]
    effective = [(1 - 0.999) / (1 - 0.999**n) for n in COUNTS]
    np.testing.assert_allclose(imbalance.class_weights(COUNTS, "effective") / effective, 1 / np.average(effective, weights=COUNTS))  # fmt: skip


def test_losses_equal_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 3, generator=generator), torch.randint(3, (50,), generator=generator)
    weights = imbalance.class_weights(COUNTS, "balanced")
    plain = imbalance.make_loss("cross_entropy", COUNTS, weights, 2.0, False, 100)(logits, labels)
    expected = functional.cross_entropy(logits, labels, weight=torch.tensor(weights, dtype=torch.float32))
    torch.testing.assert_close(plain, expected)

    right = logits.softmax(-1)[torch.arange(50), labels]
    focal = imbalance.make_loss("focal", COUNTS, None, 2.0, False, 100)(logits, labels)
    torch.testing.assert_close(focal, (-((1 - right) ** 2) * right.log()).mean())
    torch.testing.assert_close(
        imbalance.make_loss("focal", COUNTS, None, 0.0, False, 100)(logits, labels),
        functional.cross_entropy(logits, labels),
    )

    prior = torch.tensor(COUNTS) / 100
    adjusted = imbalance.make_loss("logit_adjusted", COUNTS, None, 2.0, False, 100)(logits, labels)
    torch.testing.assert_close(adjusted, functional.cross_entropy(logits + prior.log(), labels))

    several = torch.randint(2, (50, 3), generator=generator).float()
    weighted = imbalance.make_loss("cross_entropy", COUNTS, weights, 2.0, True, 100)(logits, several)
    expected = functional.binary_cross_entropy_with_logits(logits, several, pos_weight=torch.tensor(weights).float())
    torch.testing.assert_close(weighted, expected)


def test_rows_are_drawn_to_the_ratio_and_none_is_lost() -> None:
    labels = ["a"] * 40 + ["b"] * 12 + ["c"] * 4
    first, again = imbalance.drawn(labels, "over", 2.0, seed=0)
    assert first == list(range(56))
    assert [sum(labels[i] == x for i in [*first, *again]) for x in "abc"] == [40, 20, 20]
    often = [[*first, *again].count(i) for i in range(52, 56)]
    assert max(often) - min(often) <= 1  # each row once before any row twice
    first, again = imbalance.drawn(labels, "under", 2.0, seed=0)
    assert [sum(labels[i] == x for i in first) for x in "abc"] == [8, 8, 4]
    assert again == []
    assert imbalance.drawn(labels, "under", 2.0, seed=0)[0] == first
    assert imbalance.drawn(labels, "under", 2.0, seed=1)[0] != first


def test_rewritten_rows_keep_most_of_their_words(base: Path) -> None:
    texts = ["The cat number 3 sleeps on the warm roof. " * 6, "第3只猫睡在温暖的屋顶上。", "It rained."]
    new = imbalance.rewritten(texts, base, seed=0)
    assert new != texts
    assert imbalance.rewritten(texts, base, seed=0) == new
    assert imbalance.rewritten(texts, base, seed=1) != new
    before, after = (Counter(text.split()) for text in (texts[0], new[0]))
    assert 0.6 < (before & after).total() / before.total() < 1
    assert abs(after.total() - before.total()) < 12  # words stay apart
    assert all(text and "<|" not in text for text in new)


def test_tuned_offsets_raise_macro_f1_and_stay_where_nothing_is_gained() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), [300, 60, 20])
    logits = generator.normal(size=(380, 3))
    logits[np.arange(380), labels] += 1.5
    logits += np.log([0.8, 0.15, 0.05])  # what a classifier that knows the shares says
    offsets = imbalance.tuned_offsets(logits, labels)
    before, after = (f1_score(labels, (logits + shift).argmax(1), average="macro") for shift in (0, offsets))
    assert after > before + 0.03
    assert offsets[2] > offsets[0]
    separated = np.eye(3)[labels] * 20
    assert (imbalance.tuned_offsets(separated, labels) == 0).all()

    several = (generator.random((380, 2)) < [0.5, 0.1]).astype(float)
    scores = np.where(several > 0, 1.0, -1.0) + generator.normal(size=(380, 2)) - 1.5
    offsets = imbalance.tuned_offsets(scores, several)
    assert (offsets > 0.5).all()  # the threshold had been too high


@pytest.mark.parametrize(
    "options",
    [
        {"class_weights": "balanced", "loss": "focal"},
        {"loss": "logit_adjusted", "sampling": "over"},
        {"sampling": "synthetic", "sampling_ratio": 2.0},
        {"sampling": "under", "tune_thresholds": True},
    ],
    ids="+".join,
)
def test_each_option_trains(options: dict, base: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finetune.run(
        finetune.FinetuneConfig(
            "classification", base=base, data=str(data), output=run, epochs=1, batch_size=8, **options
        )
    )
    counts = json.loads((run / "manifest.json").read_text())["counts"]
    shown = {"over": 56 + 6, "under": 16 + 12 + 4, "synthetic": 56 + 8 + 16}
    assert counts["rows_shown"] == shown.get(options.get("sampling"), 56)
    assert ("threshold_offsets" in counts["resolved"]) == options.get("tune_thresholds", False)
    assert len(counts["validation_score"]) == 1


@pytest.mark.parametrize(
    "options", [{"class_weights": "balanced"}, {"loss": "focal"}, {"loss": "logit_adjusted"}], ids=str
)
def test_the_loss_that_is_asked_for_is_the_one_that_trains(
    options: dict, base: Path, data: Path, tmp_path: Path
) -> None:
    """The first step's loss, before anything has changed, is that of `make_loss`, and plain training's is not."""
    losses = {}
    for name, chosen in (("plain", {}), ("asked", options)):
        run = tmp_path / name
        given = {"epochs": 1, "batch_size": 56, "dropout": 0.0, **chosen}
        finetune.run(finetune.FinetuneConfig("classification", base, str(data), run, **given))
        losses[name] = json.loads((run / "manifest.json").read_text())["counts"]["curves"]["train_loss"][0][1]
    task = get_task("classification")
    train = read_examples(task, data, "train", Reading({}))
    config = finetune.FinetuneConfig("classification", base, str(data), **options)
    fields = {"attention_mode": "bidirectional", **task.config_fields(train, None)}
    set_seed(0)
    model = finetune.load_base(task, base, fields).eval()
    tokenizer = load_tokenizer(base)
    scores, _ = task.logits(model, tokenizer, train, 56)
    labels = torch.tensor([model.config.label2id[e.reference] for e in train])
    expected = finetune.loss_function(task, train, model.config, config)(torch.tensor(scores), labels)
    assert losses["asked"] == pytest.approx(float(expected), rel=1e-3)
    assert losses["plain"] != pytest.approx(float(expected), rel=1e-3)


def test_sampling_that_changes_nothing_says_so(base: Path, data: Path, capsys) -> None:
    train = read_examples(get_task("classification"), data, "train", Reading({}))
    for ratio, message in ((10.0, "finetune classification: --sampling over changes nothing"), (8.0, None)):
        config = finetune.FinetuneConfig("classification", sampling="over", sampling_ratio=ratio)
        finetune.resampled(get_task("classification"), train, config, base)
        assert capsys.readouterr().out.startswith(message) if message else not capsys.readouterr().out


def test_tuned_thresholds_are_in_the_weights(base: Path, data: Path, tmp_path: Path) -> None:
    """The same run with and without them differs in the bias by what the manifest says."""
    from safetensors.torch import load_file

    bias = {}
    for tuned in (False, True):
        run = tmp_path / str(tuned)
        given = {"epochs": 1, "batch_size": 8, "tune_thresholds": tuned, "learning_rate": 1e-4}
        finetune.run(finetune.FinetuneConfig("classification", base, str(data), run, **given))
        bias[tuned] = load_file(run / "final" / "model.safetensors")["classifier.bias"]
    offsets = json.loads((run / "manifest.json").read_text())["counts"]["resolved"]["threshold_offsets"]
    assert any(offsets.values())
    moved = torch.tensor([offsets[label] for label in sorted(offsets)])
    torch.testing.assert_close(bias[True] - bias[False], moved, rtol=0, atol=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_a_small_gamma_leaves_gradients_finite(several: bool) -> None:
    logits = torch.tensor([[40.0, -40.0], [0.0, 1.0]], requires_grad=True)
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]) if several else torch.tensor([0, 1])
    imbalance.make_loss("focal", [1, 1], None, 0.5, several, 2)(logits, labels).backward()
    assert logits.grad.isfinite().all() and logits.grad[1].abs().sum() > 0


def test_an_ensemble_is_the_mean_of_its_members(base: Path, data: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        finetune.run(
            finetune.FinetuneConfig(
                "classification",
                base=base,
                data=str(data),
                output=tmp_path / f"run{seed}",
                epochs=1,
                batch_size=8,
                seed=seed,
            )
        )
    reports = {}
    for name, members in {"one": (), "both": (tmp_path / "run1" / "final",)}.items():
        predict.run(
            predict.EvaluateConfig(
                "classification",
                model=tmp_path / "run0" / "final",
                ensemble=members,
                data=str(data),
                output=tmp_path / name,
            )
        )
        lines = (tmp_path / name / "predictions.jsonl").read_text().split("\n")
        reports[name] = [json.loads(line) for line in lines if line]
    predict.run(
        predict.EvaluateConfig("classification", tmp_path / "run1" / "final", data=str(data), output=tmp_path / "other")
    )
    other = [json.loads(line) for line in (tmp_path / "other" / "predictions.jsonl").read_text().split("\n") if line]
    for one, two, both in zip(reports["one"], other, reports["both"], strict=True):
        mean = {k: (one["probabilities"][k] + two["probabilities"][k]) / 2 for k in one["probabilities"]}
        assert both["probabilities"] == pytest.approx(mean, abs=2e-5)


def test_options_that_a_task_does_not_have_are_refused(base: Path, data: Path, tmp_path: Path) -> None:
    options = {"base": base, "data": str(data), "output": tmp_path / "no"}
    with pytest.raises(UserError, match="--loss: ner has no classes to balance"):
        finetune.run(finetune.FinetuneConfig("ner", loss="focal", **options))
    with pytest.raises(UserError, match="--sampling over: a row of multilabel has several labels"):
        finetune.run(finetune.FinetuneConfig("multilabel", sampling="over", **options))
    with pytest.raises(UserError, match="--sampling-ratio 0.5: must be 1"):
        finetune.run(finetune.FinetuneConfig("classification", sampling_ratio=0.5, **options))
    config = json.loads((base / "config.json").read_text())
    other = tmp_path / "causal"
    other.mkdir()
    for file in base.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "config.json").write_text(json.dumps({**config, "trained_heads": ["SeptetForCausalLM"]}))
    with pytest.raises(UserError, match="its masked-LM head was never trained"):
        finetune.run(finetune.FinetuneConfig("classification", sampling="synthetic", **{**options, "base": other}))

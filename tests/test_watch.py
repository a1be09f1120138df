"""Watching a run: rows survive kills, spikes are found, what is not finite is named, samples do what `generate` does."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from septet.data.packed import PackedDataset
from septet.modeling import modeling_septet, pictures, watch
from septet.modeling.objectives import Inputs, PretrainingLosses, Vocabulary
from septet.modeling.pictures import draw
from septet.modeling.plan import training_flops_per_token
from septet.modeling.watch import MetricsFile, SeenSources, Spikes


@pytest.fixture
def losses(config) -> PretrainingLosses:
    torch.manual_seed(0)
    return PretrainingLosses(modeling_septet.SeptetForCausalLM(config)).train()


@pytest.fixture
def inputs(config) -> Inputs:
    ids = torch.randint(5, config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    tensors = {"input_ids": ids, "position_ids": torch.arange(16).expand(2, -1), "labels": ids.roll(-1, 1)}
    return Inputs(causal=tensors, targets={"causal": 32})


# ---- rows


def test_rows_past_the_resumed_step_and_cut_lines_go(tmp_path: Path) -> None:
    for name in (watch.METRICS_FILE, watch.SAMPLES_FILE):
        file = MetricsFile(tmp_path, 0, enabled=True, name=name)
        assert file.rows() == []
        rows = [{"step": step, "text": "猫\x85\u2028", "value": 0.1 + step} for step in (10, 20, 30)]
        for row in rows:
            file.write(row)
        whole = file.path.read_bytes()
        file.path.write_bytes(whole + '{"step": 20, "text": "猫'.encode()[:-1])  # killed within a character
        assert file.rows() == rows
        MetricsFile(tmp_path, 20, enabled=False, name=name).write({"step": 21})
        resumed = MetricsFile(tmp_path, 20, enabled=True, name=name)
        resumed.write(rows[2])
        assert resumed.path.read_bytes() == whole


def test_a_row_is_made_flat_for_trackers() -> None:
    row = {
        "step": 3,
        "loss": 2,
        "utilisation": None,
        "validation": {"en": {"bits_per_byte": 1.5}},
        "on": True,
        "x": [1],
    }
    assert watch.flat(row) == {"loss": 2.0, "validation/en/bits_per_byte": 1.5}


def test_sources_seen_are_counted(packed: Path) -> None:
    data = PackedDataset(packed, "train")
    source_of = {int(row): name for name, rows in data.sources.items() for row in rows}
    seen, steps = SeenSources(data), [np.random.default_rng(i).integers(0, len(data), 7) for i in range(5)]
    for rows in steps[:3]:
        seen.add(rows)
    resumed = SeenSources(data)
    resumed.load(json.loads(json.dumps(seen.state())))
    for rows in steps[3:]:
        resumed.add(rows)
    brute = [source_of[int(row)] for rows in steps for row in rows]
    assert resumed.state() == {name: brute.count(name) for name in set(brute)}
    assert seen.of(steps[4]) == {n: c for n in data.sources if (c := [source_of[int(r)] for r in steps[4]].count(n))}


# ---- spikes


def falling(steps: int) -> list[tuple[float, float]]:
    """Losses and norms of a healthy run: a steep fall with noise, and norms skewed to the right."""
    noise = np.random.default_rng(0)
    time = np.arange(steps)
    losses = 3 + 7 * np.exp(-time / 60) + 0.05 * noise.standard_normal(steps)
    norms = np.exp(-time / 200 + 0.25 * noise.standard_normal(steps))
    return list(zip(losses.tolist(), norms.tolist(), strict=True))


def test_spikes_are_found_while_the_loss_still_falls() -> None:
    for place in (70, 100, 600):
        spikes, run = Spikes(), falling(1000)
        assert [spikes.check(*step) for step in run[:place]] == [None] * place
        loss, norm = run[place]
        twins = [Spikes(), Spikes(), Spikes()]
        for twin in twins:
            twin.load(spikes.state())
        assert "loss" in twins[0].check(loss + 1.5, norm) and "norm" not in Spikes.check(twins[1], loss + 1.5, norm)
        reason = twins[2].check(loss, norm * 20)
        assert reason.startswith("gradient norm") and "deviations (a factor of 1." in reason
        assert [spikes.check(*step) for step in run[place:]] == [None] * (1000 - place)
        assert spikes.check(loss - 100, norm / 100) is None  # lower is no spike


def test_a_spike_names_value_level_and_deviation() -> None:
    spikes = Spikes(threshold=6, window=64)
    for step in range(64):
        assert spikes.check(2.0 + 0.1 * (step % 2), 1.0) is None
    deviation = 1.4826 / math.sqrt(2) * 0.1
    assert spikes.check(2.05 + 6.1 * deviation, 1.0) == "loss 2.689 is 6.1 deviations of 0.105 above 2.05"
    assert spikes.check(2.05 + 5.9 * deviation, 1.0) is None


def test_no_verdict_without_a_history_and_a_lasting_level_is_taken() -> None:
    spikes, run = Spikes(), falling(400)
    assert all(spikes.check(loss, norm) is None for loss, norm in [(1.0, 1.0), (1000.0, 1000.0)])
    spikes = Spikes()
    for step in run:
        spikes.check(*step)
    lasting = [spikes.check(9.0 + 0.05 * (-1) ** step, 0.1) is not None for step in range(100)]
    assert lasting == [True] * 9 + [False] * 91  # more than a sixteenth of the window
    assert Spikes(window=8).check(0.0, 0.0) is None


def test_spikes_go_on_exactly_from_a_checkpoint() -> None:
    run = falling(300)
    run[200] = (9.0, 40.0)
    whole, parted = Spikes(), Spikes()
    expected = [whole.check(*step) for step in run]
    found = [parted.check(*step) for step in run[:150]]
    resumed = Spikes()
    resumed.load(json.loads(json.dumps(parted.state())))
    assert resumed.state() == parted.state() and len(parted.state()["losses"]) == 128
    assert found + [resumed.check(*step) for step in run[150:]] == expected
    assert resumed.state() == whole.state() and expected[200] is not None
    row = watch.spike_row(201, expected[200], *run[200], np.array([7, 9]), {"en/a": 2}, skipped=True)
    assert json.loads(json.dumps(row))["rows"] == [7, 9] and row["loss"] == 9.0 and row["sources"] == {"en/a": 2}


# ---- what is not finite


def backward(losses: PretrainingLosses, inputs: Inputs) -> None:
    losses(inputs)["causal"].backward()


def test_the_first_module_that_is_not_finite_is_named(losses: PretrainingLosses, inputs: Inputs) -> None:
    layers = losses.model.model.layers
    backward(losses, inputs)
    assert watch.first_not_finite(losses, inputs).startswith("read again, the loss and all")
    with torch.no_grad():
        layers[1].mlp.up_proj.weight[3, 4] = math.nan
    assert watch.first_not_finite(losses, inputs) == (
        "model.model.layers.1.mlp.up_proj is the first module whose output is not finite, "
        "and neither is its parameter model.model.layers.1.mlp.up_proj.weight"
    )
    with torch.no_grad():
        layers[1].mlp.up_proj.weight[3, 4] = 0
        layers[0].mlp.up_proj.weight.mul_(1e25)  # each product is finite, and so are all weights; their product is not
        layers[0].mlp.gate_proj.weight.mul_(1e25)
    assert watch.first_not_finite(losses, inputs) == (
        "model.model.layers.0.mlp.down_proj is the first module whose output is not finite"
    )
    assert not any(module._forward_hooks for module in losses.modules())


def test_a_micro_batch_among_several_is_enough(inputs: Inputs, config) -> None:
    untied = type(config)(**{**config.to_dict(), "tie_word_embeddings": False})
    losses = PretrainingLosses(modeling_septet.SeptetForCausalLM(untied))
    with torch.no_grad():
        losses.model.model.embed_tokens.weight[4] = math.inf
    bad = Inputs(causal={**inputs.causal, "input_ids": torch.full((2, 16), 4)}, targets=inputs.targets)
    assert watch.first_not_finite(losses, inputs, bad).startswith("model.model.embed_tokens is the first module")


def test_a_gradient_a_parameter_or_the_loss_alone(losses: PretrainingLosses, inputs: Inputs, config) -> None:
    backward(losses, inputs)
    layers = losses.model.model.layers
    layers[0].self_attn.q_proj.weight.grad[0, 0] = math.inf
    layers[1].mlp.gate_proj.weight.grad[5, 1] = math.nan  # the backward pass comes here first
    assert watch.first_not_finite(losses, inputs) == (
        "all modules' outputs are finite, the gradient of model.model.layers.1.mlp.gate_proj.weight is not "
        "(and 1 more after it in the backward pass)"
    )
    losses.z_loss_weight = math.inf
    assert watch.first_not_finite(losses, inputs).startswith("only the loss is not finite")
    losses.register_parameter("unread", torch.nn.Parameter(torch.tensor([1.0, -math.inf])))
    assert watch.first_not_finite(losses, inputs) == "all modules' outputs are finite, the parameter unread is not"


SHARDED = """
import sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from septet.modeling import modeling_septet, pictures, watch
from septet.modeling.objectives import Inputs, PretrainingLosses
from septet.modeling.presets import preset_config
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
torch.manual_seed(0)
losses = PretrainingLosses(modeling_septet.SeptetForCausalLM(preset_config("tiny", vocab_size=384)))
for layer in losses.model.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(losses, mesh=mesh)
ids = torch.full((2, 8), 7 if rank else 9)
inputs = Inputs(causal={"input_ids": ids, "position_ids": torch.arange(8).expand(2, -1), "labels": ids})
losses(inputs)["causal"].backward()
answers = []
if rank == 1:
    losses.model.model.layers[1].mlp.down_proj.weight.grad.to_local()[0, 0] = float("nan")
answers.append(watch.first_not_finite(losses, inputs))
losses(inputs)["causal"].backward()
if rank == 0:  # the first shard of the embedding: token 7, which the other process alone reads
    with torch.no_grad():
        losses.model.model.embed_tokens.weight.to_local()[7] = float("nan")
answers.append(watch.first_not_finite(losses, inputs))
print(*answers, sep="\\n")
dist.destroy_process_group()
"""


def test_sharded_processes_give_one_answer(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SHARDED]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    answers = [process.communicate(timeout=120)[0].strip().split("\n") for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0] == answers[1]
    assert answers[0][0].endswith("the gradient of model.model.layers.1.mlp.down_proj.weight is not")
    assert answers[0][1] == (
        "model.model.embed_tokens is the first module whose output is not finite, "
        "and neither is its parameter model.model.embed_tokens.weight"
    )


# ---- utilisation


def test_operations_are_those_that_torch_counts(config) -> None:
    from torch.utils.flop_counter import FlopCounterMode, addmm_flop

    model = modeling_septet.SeptetForPreTraining(config)
    model.set_attn_implementation("eager")  # the counter knows plain products
    losses, generator = PretrainingLosses(model), torch.Generator().manual_seed(0)
    ids = torch.randint(5, config.vocab_size, (1, 40), generator=generator)
    tensors = {"input_ids": ids, "position_ids": torch.arange(40)[None], "labels": ids}
    masked = {**tensors, "labels": torch.where(torch.arange(40) % 8 == 0, ids, -100)}
    for objective, inputs, probability in (
        ("causal", Inputs(causal=tensors), 0.0),
        ("mlm", Inputs(bidirectional=masked), 1 / 8),
        ("joint", Inputs(causal=tensors, bidirectional=masked), 1 / 8),
    ):
        rows = 2 if objective == "joint" else 1
        # The head's gradient; torch counts the other products itself.
        in_place = {torch.ops.aten.addmm_: lambda total, a, b, out_shape=None, **_: addmm_flop(total, a, b)}
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            sum(losses(inputs).values()).backward()
        expected = training_flops_per_token(config, 40, objective, probability, 0.5) * 40 * rows
        assert counter.get_total_flops() == pytest.approx(expected, rel=1e-9)


def test_utilisation_is_against_a_known_peak_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(["NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "Tesla K80"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: next(names))
    gpu = torch.device("cuda")
    assert watch.utilisation(1000, 989.4e9, 2, gpu, "bf16") == pytest.approx(0.5)
    assert [watch.utilisation(1000, 1e9, 1, gpu, "bf16") for _ in range(2)] == [None, None]
    assert watch.peak_flops(gpu, "no") is None
    monkeypatch.setattr(watch, "_measured_cpu_flops", lambda threads: 1e11)
    assert watch.utilisation(1000, 1e7, 1, torch.device("cpu"), "no") == pytest.approx(0.1)


def test_a_cpu_is_measured_once() -> None:
    before = torch.random.get_rng_state()
    peak = watch.peak_flops(torch.device("cpu"), "no")
    assert 1e8 < peak < 1e14 and watch.peak_flops(torch.device("cpu"), "no") == peak
    assert torch.equal(torch.random.get_rng_state(), before)


# ---- samples


def test_samples_are_what_generate_writes(losses: PretrainingLosses, tokenizer, packed: Path) -> None:
    prompts = watch.first_tokens(PackedDataset(packed, "validation"), num_tokens=12)
    prompts["fr"] = prompts["fr"][:5]  # lengths differ
    before = torch.random.get_rng_state()
    written = watch.text_samples(losses, tokenizer, prompts, 8, torch.device("cpu"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert losses.training and losses.model.model.layers[0].training
    for lang, prompt in prompts.items():
        given = torch.tensor([prompt])
        alone = losses.model.eval().generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=8
        )
        assert written[lang] == tokenizer.decode([t for t in alone[0, len(prompt) :].tolist() if t != 2])


def test_samples_end_at_eos(tokenizer) -> None:
    class Counts(torch.nn.Module):
        """Writes the token after the last; eos after 102."""

        def forward(self, *, input_ids, attention_mode):
            assert attention_mode == "causal" and not self.training and not torch.is_grad_enabled()
            after = torch.where(input_ids == 102, tokenizer.eos_token_id, input_ids + 1)
            return torch.nn.functional.one_hot(after, 384).float()

    prompts = {"en": [1, 100], "fr": [1, 50, 51, 200]}
    written = watch.text_samples(Counts(), tokenizer, prompts, 4, torch.device("cpu"))
    assert written == {"en": tokenizer.decode([101, 102]), "fr": tokenizer.decode([201, 202, 203, 204])}


def test_first_tokens_are_those_of_the_first_document(packed: Path) -> None:
    data = PackedDataset(packed, "validation")
    langs = [str(lang) for lang in data.data["lang"][:]]
    prompts = watch.first_tokens(data, num_tokens=10)
    assert sorted(prompts) == sorted(set(langs))
    for lang, prompt in prompts.items():
        item = data.data[langs.index(lang)]
        assert prompt == item["input_ids"][:10].tolist()


def test_first_tokens_stop_before_the_document_does() -> None:
    class Data:
        """Rows of a document of 4 tokens and one of 6."""

        sources = {"en/a": np.array([3, 5]), "fr/b": np.array([0]), "en/c": np.array([1, 2])}

        def read(self, rows):
            ids = np.stack([np.arange(10) + 100 * row for row in rows])
            return SimpleNamespace(input_ids=ids, document_lengths=[np.array([4, 6])] * len(rows))

    assert watch.first_tokens(Data()) == {"en": [100, 101, 102], "fr": [0, 1, 2]}


def test_masked_words_are_whole_and_do_not_reach_the_model(tokenizer) -> None:
    texts = {
        "en": "Who reads book 7? The cat sleeps on the warm roof, and it rained.",
        "fr": "Qui lit le livre numéro 12 ? Le chat dort sur le toit chaud.",
        "zh": "第七只猫睡在温暖的屋顶上。上周下了七场雨！谁在读第七本书？",
    }
    ids = {lang: [tokenizer.bos_token_id, *tokenizer.encode(t, add_special_tokens=False)] for lang, t in texts.items()}
    length = min(map(len, ids.values()))
    seen = []

    class Knows(torch.nn.Module):
        """Puts the token after the one that was hidden."""

        def forward(self, *, input_ids, attention_mode):
            seen.append(input_ids)
            assert attention_mode == "bidirectional" and not self.training
            put = torch.tensor([row[:length] for row in ids.values()]) + 1
            return torch.nn.functional.one_hot(put.clamp(max=383), 384).float()

    shown = watch.filled_masks(Knows(), tokenizer, Vocabulary.of(tokenizer), ids, torch.device("cpu"))
    for row, (lang, tokens) in enumerate(ids.items()):
        hidden = seen[0][row] == tokenizer.mask_token_id
        assert 0.03 < hidden.float().mean() < 0.4 and not hidden[0]
        assert torch.equal(seen[0][row][~hidden], torch.tensor(tokens[:length])[~hidden])
        asked, told = re.findall(r"\[(.*?) -> ", shown[lang]), re.sub(r"\[(.*?) -> .*?\]", r"\1", shown[lang])
        assert told == tokenizer.decode(tokens[1:length])
        masked = tokenizer.decode(
            torch.tensor(tokens[:length])[hidden].tolist()
        )  # all of a word's tokens, and no others
        assert masked.replace(" ", "") == "".join(asked).replace(" ", "")
        assert all(word in texts[lang] and word.isalnum() for word in asked) and asked
    assert shown["en"].startswith("Who reads [book -> ") and shown["zh"].startswith("第七[只")
    guess = tokenizer.decode([token + 1 for token in tokenizer.encode(" book", add_special_tokens=False)]).strip()
    assert f"[book -> {guess}] 7?" in shown["en"]


# ---- pictures


def metrics(steps: int) -> list[dict]:
    rows = []
    for step in range(1, steps + 1):
        rows.append(
            {
                "step": step, "tokens": step * 10, "loss": 2.0, "loss_causal": 1 + 1 / step, "loss_mlm": 1.0,
                "gradient_norm": 50.0 if step == steps // 2 else 1.0, "learning_rate": 1e-3, "tokens_per_second": 9.0,
                "utilisation": None, "peak_memory_gib": 1.0, "seen": {"en/a": 3 * step, "fr/b": step},
            }
        )  # fmt: skip
    rows.append({"step": steps, "validation": {"en": {"bits_per_byte": 2.0}, "fr": {"bits_per_byte": 3.0}}})
    return rows


def test_pictures_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    draw(tmp_path)
    assert list(tmp_path.iterdir()) == []
    file = MetricsFile(tmp_path, 0, enabled=True)
    file.path.write_text("".join(json.dumps(row) + "\n" for row in metrics(30)))
    spike = watch.spike_row(15, "loss", 9.0, 50.0, [1], {"en/a": 1}, skipped=True)
    MetricsFile(tmp_path, 0, enabled=True, name=watch.SPIKES_FILE).write(spike)
    draw(tmp_path, {"en/a": 0.75, "fr/b": 0.25})
    drawn = sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".jsonl")
    assert drawn == ["dynamics.png", "loss.png", "mixture.png"]  # nothing half-written is left
    for name in drawn:
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_long_run_is_thinned_without_losing_its_peaks() -> None:
    rows = metrics(30_001)
    figure = pictures._dynamics_figure(rows[:-1], [])
    norm, rate, speed, memory = figure.axes  # utilisation is unknown, so it has no panel
    assert len(norm.lines[0].get_xdata()) == pictures._POINTS
    assert norm.collections[0].get_datalim(norm.transData).y1 == pytest.approx(50)
    assert (norm.get_yscale(), speed.get_ylabel(), memory.get_ylabel()[:11]) == (
        "log",
        "tokens per second",
        "peak memory",
    )
    np.testing.assert_allclose(rate.lines[0].get_ydata(), 1e-3)


def test_the_held_out_measure_is_the_one_there_is() -> None:
    rows = metrics(5)
    left, right = pictures._loss_figure(rows[:-1], rows[-1:]).axes
    assert [line.get_label() for line in left.lines] == ["causal", "mlm"]
    assert {line.get_label(): line.get_ydata()[-1] for line in right.lines} == {"en": 2.0, "fr": 3.0}
    masked = [{"step": 5, "validation": {"zh": {"loss_mlm": 4.0}}}]
    right = pictures._loss_figure(rows[:-1], masked).axes[1]
    assert right.lines[0].get_ydata()[-1] == 4.0 and "masked" in right.get_ylabel()


def test_the_mixture_is_that_of_each_stretch_of_the_run() -> None:
    rows = [{"step": s, "seen": {"en/a": 10 * min(s, 3), "fr/b": 10 * max(0, s - 3)}} for s in range(1, 7)]
    left, right = pictures._mixture_figure(rows, {"en/a": 0.5, "fr/b": 0.5, "zh/c": 0.0}).axes
    shares = {line.get_label(): list(line.get_ydata()) for line in left.lines if line.get_label() in ("en", "fr")}
    assert shares == {"en": [1, 1, 1, 0, 0, 0], "fr": [0, 0, 0, 1, 1, 1]}
    assert [bar.get_width() for bar in right.patches] == [0.5, 0.5]

"""The plan's counts against the model itself: parameters, optimizer states of a real step, FLOPs, saved activations."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from septet.data.errors import UserError
from septet.modeling import plan
from septet.modeling.modeling_septet import SeptetForCausalLM, chunked_linear_cross_entropy
from septet.modeling.optim import OPTIMIZERS, make_optimizer
from septet.modeling.plan import PlanConfig, run
from septet.modeling.presets import preset_config

T = 32


def tiny(**fields):
    return preset_config("tiny", **{"vocab_size": 256, "max_position_embeddings": T, **fields})


def test_parameters_are_the_real_models() -> None:
    model = SeptetForCausalLM(tiny())
    made = plan.make_plan(PlanConfig("tiny", tokens="1M", vocab_size=256, sequence_length=T), 1, 8, "H100")
    assert made["num_parameters"] == sum(p.numel() for p in model.parameters())
    assert made["layouts"][0]["memory_gib"]["weights"] * 2**30 == sum(p.numel() * 4 for p in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_states_are_those_of_a_real_step(name: str, tied: bool) -> None:
    model = SeptetForCausalLM(tiny(tie_word_embeddings=tied))
    optimizer = make_optimizer(name, model, 1e-3, 0.1)
    ids = torch.randint(256, (1, T))
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    real = sum(t.numel() * t.element_size() for state in optimizer.state.values() for t in state.values())
    assert plan.optimizer_state_bytes(name, model) == real


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_are_those_that_torch_counts(checkpointing: bool) -> None:
    shape = tiny()
    shape._attn_implementation = "eager"  # the counter sees its two products
    model = SeptetForCausalLM(shape).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    ids = torch.randint(256, (2, T))
    with FlopCounterMode(display=False) as counter:
        logits = model(ids, use_cache=False).logits
        functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    expected = plan.training_flops_per_token(shape, T) + checkpointing * plan.recomputed_flops_per_token(shape, T)
    assert counter.get_total_flops() == expected * ids.numel()


def test_flops_are_six_a_parameter_and_attention() -> None:
    shape = preset_config("7b", max_position_embeddings=4096)
    vectors = 65 * 4096 + 32 * 2 * 128
    weights = 7_113_814_016 - vectors - 65536 * 4096  # without norms and the input embedding
    assert plan.training_flops_per_token(shape, 4096) == 6 * weights + 12 * 32 * 4096 * 4096


def test_activations_are_those_counted_by_hand() -> None:
    batch, h, i, n, k, d = 3, 64, 128, 4, 2, 16  # the tiny shape
    norms = 2 * (3 * h + 1)  # input, normalised, scaled; and the root mean square
    queries_and_keys = (n + k) * (2 * d + 1)  # before and after their norm
    attention = 4 * n * d + n  # queries, keys and values of all heads, output; and the log-sum-exp
    a_token = norms + queries_and_keys + attention + 4 * i  # gate, its activation, up, product
    mask = T * T  # as it is added to the scores
    assert plan.layer_bytes(tiny(), batch, T).kept == 4 * batch * (T * a_token + mask)


@pytest.mark.parametrize(("weight_bytes", "residual_bytes"), [(4, 4), (2, 4), (2, 2)])
def test_activations_are_what_a_real_pass_saves(weight_bytes: int, residual_bytes: int) -> None:
    """In float32; under autocast; and in bfloat16 under autocast, as FSDP2 computes."""
    batch, shape = 3, tiny()
    model = SeptetForCausalLM(shape).to(torch.bfloat16 if residual_bytes == 2 else torch.float32).train()
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    shapes = {p.shape for p in model.parameters()} | {p.shape[::-1] for p in model.parameters()}  # autocast's copies
    saved = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in shapes:
            saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    positions = torch.arange(T).remainder(T // 2).expand(batch, -1)  # two documents a row, hence a mask
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=weight_bytes == 2)
    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(torch.randint(256, (batch, T)), position_ids=positions, use_cache=False)
    real = sum(storage.nbytes() for key, storage in saved.items() if key not in weights)
    last_norm = shape.hidden_size * 8 + 4  # bfloat16 is kept as float32 too
    angles_and_ids = 2 * residual_bytes * shape.head_dim + 8
    layers = 2 * plan.layer_bytes(shape, batch, T, weight_bytes, residual_bytes).kept
    casts_of_norms = layers + batch * T * (last_norm + angles_and_ids) - real  # weights, which the plan may count
    assert 0 <= casts_of_norms <= 2 * 2 * 2 * shape.head_dim


def test_the_logits_chunk_is_the_models() -> None:
    assert inspect.signature(chunked_linear_cross_entropy).parameters["chunk_size"].default == plan.LOGITS_CHUNK


def benchmark():
    """benchmarks/plan_memory.py as a module: it makes real steps and sees every tensor's birth and end."""
    path = Path(__file__).parents[1] / "benchmarks" / "plan_memory.py"
    spec = importlib.util.spec_from_file_location("plan_memory", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["plan_memory"] = module
    spec.loader.exec_module(module)
    return module


SMALL = {"hidden": 64, "feed_forward": 192, "heads": 4, "layers": 3, "vocab_size": 1024, "length": 64, "rows": 4}
WEIGHTS = {"layers": 8, "length": 16, "rows": 2, "vocab_size": 64}  # and hardly more


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"micro_batches": 1, "tied": False, "optimizer": "adamw"},
        {**WEIGHTS, "optimizer": "adam"},
        {**WEIGHTS, "micro_batches": 1},
        {**WEIGHTS, "objective": "joint"},
        {"layers": 1, "rows": 16},
        {"vocab_size": 8192, "rows": 1, "optimizer": "rmsprop", "micro_batches": 1},
        {"checkpointing": True, "rows": 16},
        {"objective": "mlm"},
        {"objective": "joint", "tied": False, "micro_batches": 1, "length": 16},
    ],
)
def test_the_peak_of_each_phase_is_that_of_a_real_step(fields: dict) -> None:
    memory = benchmark()
    case = memory.Case(**{**SMALL, **fields})
    real, planned = memory.train(case), memory.planned(case)
    assert planned["bytes"] == pytest.approx(real["bytes"], rel=0.02)
    phases = {"backward": ("head", "last layer", "first layer", "embedding"), "update": ("update",)}
    if not case.checkpointing:  # there a forward pass keeps nothing, and the one in the backward pass is higher
        phases["forward"] = ("forward", "loss")
    for phase, its_moments in phases.items():
        assert max(planned["moments"][name] for name in its_moments) == pytest.approx(real["phases"][phase], rel=0.02)


def layouts_of(**fields) -> dict[str, dict]:
    nodes, per_node, device = plan.parse_machine(fields.get("machine", "8xH100"))
    return {
        layout["name"]: layout for layout in plan.make_plan(PlanConfig(**fields), nodes, per_node, device)["layouts"]
    }


def test_the_7b_on_eight_gpus(tmp_path: Path, capsys) -> None:
    made = run(PlanConfig(output=tmp_path / "plan.json", utilisation=0.5, price_per_device_hour=2.0))
    assert json.loads((tmp_path / "plan.json").read_text()) == made
    rows = {layout["name"]: layout for layout in made["layouts"]}
    assert not rows["DDP"]["fits"] and rows["FSDP2"]["fits"] and made["choice"] == "FSDP2"
    ddp, fsdp = rows["DDP"], rows["FSDP2"]
    assert fsdp["memory_gib"]["weights"] == pytest.approx(ddp["memory_gib"]["weights"] / 8)
    assert fsdp["host_gib_per_node"] == pytest.approx(made["checkpoint_gib"]) == ddp["host_gib_per_node"] / 8
    assert made["checkpoint_gib"] == pytest.approx(ddp["memory_gib"]["weights"] + ddp["memory_gib"]["optimizer"])
    seconds = made["training_flops"] / (8 * 989.4e12 * 0.5)
    assert fsdp["days"] == pytest.approx(seconds / 86400) and fsdp["us_dollars"] == pytest.approx(seconds / 3600 * 16)
    assert fsdp["tokens_per_second"] == pytest.approx(140e9 / seconds)
    least = rows["FSDP2, recomputing"]
    assert least["days"] > fsdp["days"] and least["memory_gib"]["activations"] < 0.1 * fsdp["memory_gib"]["activations"]
    text = capsys.readouterr().out
    assert "the cheapest that fits: FSDP2" in text and max(map(len, text.split("\n"))) <= 120


def test_hsdp_shards_within_a_node_and_fsdp2_over_all() -> None:
    rows = layouts_of(machine="32xH100")
    assert rows["HSDP"]["memory_gib"]["weights"] == pytest.approx(4 * rows["FSDP2"]["memory_gib"]["weights"])
    assert rows["HSDP"]["memory_gib"]["weights"] == pytest.approx(layouts_of()["FSDP2"]["memory_gib"]["weights"])
    assert rows["FSDP2 + TP 2"]["memory_gib"]["weights"] == pytest.approx(rows["FSDP2"]["memory_gib"]["weights"])
    assert rows["FSDP2 + TP 2"]["memory_gib"]["activations"] < 0.75 * rows["FSDP2"]["memory_gib"]["activations"]
    assert layouts_of(machine="4x8xH100") == rows
    assert list(layouts_of(preset="nano", machine="cpu")) == ["one device", "one device, recomputing"]


@pytest.mark.parametrize("objective", ["causal", "joint"])
def test_the_largest_micro_batch_is_the_last_that_fits(objective: str) -> None:
    fields = {"preset": "1b", "machine": "1xH100", "sequence_length": 512, "objective": objective}
    for name, layout in layouts_of(**fields, micro_batch_size=2).items():
        largest = layout["largest_micro_batch"]
        assert layouts_of(**fields, micro_batch_size=largest)[name]["fits"]
        assert not layouts_of(**fields, micro_batch_size=2 * largest)[name]["fits"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "7bb"}, "preset '7bb' is unknown; did you mean '7b'"),
        ({"machine": "8xH10"}, "machine '8xH10'.*did you mean 'H100'"),
        ({"machine": "0xH100"}, "machine '0xH100'"),
        ({"tokens": "many"}, "'many': is no number of tokens"),
        ({"machine": "12xH100"}, "machine '12xH100': more than 8 devices must be whole nodes of 8; give 8xH100"),
        ({"micro_batch_size": 0}, "--micro-batch-size 0: must be above 0"),
        ({"micro_batch_size": 1, "objective": "joint"}, "--micro-batch-size 1: joint splits it"),
        ({"utilisation": 40.0}, "--utilisation 40: is a share"),
        ({"output": Path("no/such/folder.json")}, "folder.json: cannot be written"),
        ({"machine": "RTX4090"}, "7b on RTX4090: needs at least .* GiB a device"),
    ],
)
def test_what_cannot_be_planned_says_why(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(PlanConfig(**fields))


def test_counts_with_suffixes() -> None:
    texts = {"140B": 140 * 10**9, "2.5T": 25 * 10**11, "300m": 3 * 10**8, "1_000": 1000, "1,500K": 1_500_000}
    assert {text: plan.parse_count(text) for text in texts} == texts
    assert plan.parse_machine("cpu") == (1, 1, "cpu") and plan.parse_machine("16xh200") == (2, 8, "H200")
    assert plan.parse_machine("64xcpu") == (1, 64, "cpu") and plan.parse_machine("3x4xA100") == (3, 4, "A100")

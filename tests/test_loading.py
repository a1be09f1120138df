"""Weights as they begin, and as they come back: every head, by every way of loading, bit for bit."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from accelerate.utils.modeling import get_state_dict_offloaded_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

from septet.modeling import configuration_septet, modeling_septet
from septet.modeling.checkpoint import save_model
from septet.modeling.configuration_septet import AUTO_MAP, SeptetConfig
from septet.modeling.objectives import OBJECTIVES

HEADS = {path.split(".")[1]: auto_class for auto_class, path in AUTO_MAP.items() if auto_class != "AutoConfig"}
KINDS = ("tied", "untied")
IDS = torch.randint(16, 384, (2, 20), generator=torch.Generator().manual_seed(0))
State = dict[str, torch.Tensor]


# How weights begin

SHAPES = {  # initializer_range below 0.4 / sqrt(H), and above
    "narrow": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 32},
    "wide": {"hidden_size": 512, "intermediate_size": 768, "num_hidden_layers": 3, "head_dim": 64},
}


def of_shape(shape: str, vocab_size: int, kind: str, **fields: Any) -> SeptetConfig:
    return SeptetConfig(
        vocab_size=vocab_size, tie_word_embeddings=kind == "tied", num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=64, **SHAPES[shape], **fields,
    )  # fmt: skip


def documented_std(name: str, config: SeptetConfig) -> float:
    if ".layers." in f".{name}":
        residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        std = config.initializer_range * math.sqrt(192 / config.hidden_size)
        return std / math.sqrt(2 * config.num_hidden_layers) if residual else std
    if name == "lm_head.weight" or (config.tie_word_embeddings and name.endswith("embed_tokens.weight")):
        return min(config.initializer_range, 0.4 / math.sqrt(config.hidden_size))
    if name == "nsp_head.weight":
        return min(config.initializer_range, 0.1 / math.sqrt(config.hidden_size))
    return config.initializer_range


def begins_as_documented(name: str, tensor: torch.Tensor, config: SeptetConfig) -> None:
    if "norm" in name:
        assert tensor.eq(1).all(), name
    elif name.endswith("bias"):
        assert tensor.eq(0).all(), name
    else:  # within five standard errors of both statistics
        std = documented_std(name, config)
        assert tensor.mean().abs().item() < 5 * std / math.sqrt(tensor.numel()), name
        assert tensor.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * tensor.numel())), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_tensor_begins_with_the_documented_spread(shape: str, kind: str) -> None:
    torch.manual_seed(0)
    config = of_shape(shape, 2048, kind, num_labels=50)
    for head in HEADS:
        for name, parameter in getattr(modeling_septet, head)(config).named_parameters():
            begins_as_documented(name, parameter, config)


@pytest.mark.parametrize("vocab_size", [2048, 16384])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_loss_is_that_of_guessing(shape: str, kind: str, vocab_size: int) -> None:
    torch.manual_seed(0)
    config = of_shape(shape, vocab_size, kind)
    ids = torch.randint(16, vocab_size, (16, 64))
    masked = torch.rand(ids.shape) < 0.5
    found = {"input_ids": ids.masked_fill(masked, 5), "labels": ids.where(masked, -100)}
    guessing = math.log(vocab_size)
    for head, inputs in (("CausalLM", {"input_ids": ids, "labels": ids}), ("MaskedLM", found), ("PreTraining", found)):
        model = getattr(modeling_septet, f"SeptetFor{head}")(config)
        with torch.no_grad():
            words = model(**inputs, skip_logits=True).loss.item()
        assert words == pytest.approx(guessing, rel=0.02), head

    pair = ids[:1, :8].expand(2, -1)  # the head reads the first token, which is the same in every row of a batch
    for _ in range(20):
        model.nsp_head = nn.Linear(config.hidden_size, 2)
        model._init_weights(model.nsp_head)
        with torch.no_grad():
            sentences = model(pair, next_sentence_label=torch.tensor([0, 1]), skip_logits=True).loss.item()
        assert words + sentences == pytest.approx(guessing + math.log(2), rel=0.02)


# How weights come back


def make(head: str, config: SeptetConfig, kind: str, **fields: Any) -> Any:
    """A model none of whose tensors is what initialisation would make of it."""
    config = SeptetConfig(**{**config.to_dict(), "tie_word_embeddings": kind == "tied", "num_labels": 3, **fields})
    model = getattr(modeling_septet, head)(config).eval()
    generator = torch.Generator().manual_seed(len(head))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4 + 0.1)
    return model


@pytest.fixture(scope="module")
def folders(
    config, tokenizer, unregistered, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, str], Path]]:
    """A checkpoint of each head, in a process whose Auto classes do not know Septet."""
    place, saved = tmp_path_factory.mktemp("heads"), {}
    for kind in KINDS:
        for head in HEADS:
            saved[head, kind] = place / f"{head}_{kind}"
            model = make(
                head, config, kind, trained_heads=[head], task_specific_params={"task": {"unanswerable": True}}
            )
            if model.can_generate():
                model.generation_config.update(max_new_tokens=7, repetition_penalty=1.3)
            save_model(model, tokenizer, saved[head, kind])
    with unregistered():
        yield saved


def stranger(head: str, folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The model by the code in its folder, and transformers' account of what it found there."""
    model, account = getattr(transformers, HEADS[head]).from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True, **options
    )
    assert type(model).__module__.startswith("transformers_modules."), "the class came from this package"
    return model.eval(), account


def package(head: str, folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The same by the installed package's class."""
    model, account = getattr(modeling_septet, head).from_pretrained(folder, output_loading_info=True, **options)
    return model.eval(), account


def distinct(folders: dict[tuple[str, str], Path]) -> list[tuple[str, str, Path]]:
    """Head, kind and folder of each checkpoint; without an output embedding there is nothing to tie."""
    both = [head for head in HEADS if "lm_head.weight" in stored(folders[head, "untied"])]
    return [(head, kind, folder) for (head, kind), folder in folders.items() if kind == "tied" or head in both]


def state_of(model: Any) -> State:
    """All tensors, those that accelerate keeps on disk included."""
    return get_state_dict_offloaded_model(model) if hasattr(model, "hf_device_map") else model.state_dict()


def stored(folder: Path) -> State:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def equal(actual: State, expected: State) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def complete(account: dict[str, Any]) -> None:
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not account[what], (what, account[what])


def answer(model: Any) -> torch.Tensor:
    """The first tensor of the output: it also depends on buffers, which no checkpoint holds."""
    with torch.no_grad():
        return model(IDS)[0]


def dispatched(head: str, folder: Path, load: Callable, aside: Path) -> Any:
    """accelerate's low-memory way: an empty model, then the weights."""
    config = SeptetConfig.from_pretrained(folder)
    with init_empty_weights(include_buffers=False):
        model = getattr(modeling_septet, head)(config)
    model.tie_weights()
    return load_checkpoint_and_dispatch(model, folder, device_map={"": "cpu"}).eval()


def from_state_dict(head: str, folder: Path, load: Callable, aside: Path) -> Any:
    config = SeptetConfig.from_pretrained(folder)
    return getattr(modeling_septet, head).from_pretrained(None, config=config, state_dict=stored(folder)).eval()


def by(**options: Any) -> Callable:
    def way(head: str, folder: Path, load: Callable, aside: Path) -> Any:
        model, account = load(head, folder, **options)
        complete(account)
        return model

    return way


def offloaded(head: str, folder: Path, load: Callable, aside: Path) -> Any:
    model = by(device_map="auto", max_memory={"cpu": 250_000}, offload_folder=aside / "offload")(
        head, folder, load, aside
    )
    assert "disk" in model.hf_device_map.values()
    return model


def resaved(times: int = 1, **options: Any) -> Callable:
    def way(head: str, folder: Path, load: Callable, aside: Path) -> Any:
        for time in range(times):
            model, account = load(head, folder)
            complete(account)
            folder = aside / str(time)
            model.save_pretrained(folder, **options)
        if options:
            assert len(list(folder.glob("*.safetensors"))) > 2
        model, account = load(head, folder)
        complete(account)
        return model

    return way


def resaved_from_disk(head: str, folder: Path, load: Callable, aside: Path) -> Any:
    offloaded(head, folder, load, aside).save_pretrained(aside / "again")
    return by()(head, aside / "again", load, aside)


WAYS_OF_A_FOLDER: dict[str, Callable] = {
    "from_pretrained": by(),
    "low_cpu_mem_usage": by(low_cpu_mem_usage=True),
    "device_map cpu": by(device_map="cpu"),
    "device_map auto": by(device_map="auto"),
    "offloaded to disk": offloaded,
    "offloaded to disk and saved": resaved_from_disk,
    "saved in shards": resaved(max_shard_size="100KB"),
    "saved twice": resaved(2),
}
WAYS_OF_A_CLASS: dict[str, Callable] = {"state_dict": from_state_dict, "accelerate's dispatch": dispatched}
WAYS = {**WAYS_OF_A_FOLDER, **WAYS_OF_A_CLASS}


@pytest.mark.parametrize(
    ("load", "way"), [(package, way) for way in WAYS] + [(stranger, way) for way in WAYS_OF_A_FOLDER]
)
def test_no_way_of_loading_changes_a_weight(load: Callable, way: str, folders, config, tmp_path: Path) -> None:
    for head, kind, folder in distinct(folders):
        made = make(head, config, kind)
        model = WAYS[way](head, folder, load, tmp_path / folder.name)
        equal(state_of(model), made.state_dict())
        assert torch.equal(answer(model), answer(made)), folder.name


def test_bfloat16_rounds_once_and_comes_back(folders, tmp_path: Path) -> None:
    for head, _, folder in distinct(folders):
        rounded = {name: tensor.bfloat16() for name, tensor in package(head, folder)[0].state_dict().items()}
        for load in (package, stranger):
            model, account = load(head, folder, dtype=torch.bfloat16)
            complete(account)
            equal(model.state_dict(), rounded)
            place = tmp_path / load.__name__ / folder.name
            model.save_pretrained(place)
            equal(load(head, place, dtype="auto")[0].state_dict(), rounded)
            wide, account = load(head, place, dtype=torch.float32)
            complete(account)
            equal(wide.state_dict(), {name: tensor.float() for name, tensor in rounded.items()})


def test_a_merged_adapter_comes_back(folders, tmp_path: Path) -> None:
    for head, _, folder in distinct(folders):
        model = stranger(head, folder)[0]
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        lora = LoraConfig(target_modules="all-linear", r=4, init_lora_weights=False)
        merged = get_peft_model(model, lora).merge_and_unload()
        changed = {name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed >= {name for name in before if name.endswith("_proj.weight")}
        merged.save_pretrained(tmp_path / folder.name)
        for load in (package, stranger):
            again, account = load(head, tmp_path / folder.name)
            complete(account)
            equal(again.state_dict(), merged.state_dict())


HEAD_MODULES = ("lm_head.", "nsp_head.", "classifier.", "token_classifier.", "qa_outputs.")


def base_names(tensors: State) -> State:
    """With the prefix that the base model has in every head."""
    known = ("model.", *HEAD_MODULES)
    return {name if name.startswith(known) else f"model.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(("kind", "load"), [("tied", package), ("untied", package), ("tied", stranger)])
def test_another_head_gets_the_base_and_names_what_is_new(kind: str, load: Callable, folders) -> None:
    torch.manual_seed(0)
    for saved in HEADS:
        folder = folders[saved, kind]
        there = base_names(stored(folder))
        for head in HEADS:
            model, account = load(head, folder)
            tensors = base_names(model.state_dict())
            if kind == "tied":
                tensors.pop("lm_head.weight", None)
            new = tensors.keys() - there.keys()
            assert set(account["missing_keys"]) == new, (saved, head)
            assert not account["mismatched_keys"]
            assert not account["error_msgs"]
            assert new <= {name for name in tensors if name.startswith(HEAD_MODULES)}
            equal({name: tensor for name, tensor in tensors.items() if name not in new},
                  {name: there[name] for name in tensors if name not in new})  # fmt: skip
            for name in new:
                begins_as_documented(name, tensors[name], model.config)
            assert model.config.trained_heads == [saved]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_trained_head_loads_complete(objective: str, kind: str, folders) -> None:
    trained, heads = OBJECTIVES[objective]
    for head in ["SeptetModel", *heads]:
        account = stranger(head, folders[trained, kind])[1]
        assert not account["missing_keys"], head


def test_a_stored_output_embedding_is_never_lost_to_tying(folders) -> None:
    tied, untied = (folders["SeptetForCausalLM", kind] for kind in KINDS)
    there = stored(untied)
    assert "lm_head.weight" not in stored(tied)
    model, account = stranger("SeptetForCausalLM", untied, tie_word_embeddings=True)
    assert torch.equal(model.model.embed_tokens.weight, there["model.embed_tokens.weight"])
    assert torch.equal(model.lm_head.weight, there["lm_head.weight"])
    complete(account)

    model, account = stranger("SeptetForCausalLM", tied, tie_word_embeddings=False)
    assert torch.equal(model.model.embed_tokens.weight, stored(tied)["model.embed_tokens.weight"])
    assert account["missing_keys"] == {"lm_head.weight"}
    model, account = stranger("SeptetForCausalLM", tied)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab_size", [400, 300])
def test_a_resized_vocabulary_keeps_its_rows(vocab_size: int, kind: str, folders, tmp_path: Path) -> None:
    for head in HEADS:
        model, whole = (stranger(head, folders[head, kind])[0] for _ in range(2))
        kept = min(vocab_size, whole.config.vocab_size)
        model.resize_token_embeddings(vocab_size)
        assert model.config.vocab_size == vocab_size
        for name, tensor in whole.state_dict().items():
            resized = model.state_dict()[name]
            rows = kept if name.endswith(("embed_tokens.weight", "lm_head.weight")) else len(tensor)
            assert torch.equal(resized[:rows], tensor[:rows]), name
        if head == "SeptetForCausalLM":
            ids = IDS.clamp(max=kept - 1)
            with torch.no_grad():
                torch.testing.assert_close(model(ids).logits[..., :kept], whole(ids).logits[..., :kept])
        model.save_pretrained(tmp_path / head)
        again, account = stranger(head, tmp_path / head)
        complete(account)
        equal(again.state_dict(), model.state_dict())
        assert isinstance(again.get_input_embeddings(), nn.Embedding)
        assert again.get_input_embeddings().num_embeddings == vocab_size


def test_what_stands_beside_the_weights_survives_resaving(folders, tmp_path: Path) -> None:
    for head in HEADS:
        folder = folders[head, "tied"]
        for time in ("first", "second"):
            model = stranger(head, folder)[0]
            folder = tmp_path / head / time
            model.save_pretrained(folder)
        model = stranger(head, folder)[0]
        assert model.config.trained_heads == [head]
        assert model.config.task_specific_params == {"task": {"unanswerable": True}}
        assert model.config.architectures == [head]
        assert model.config.num_labels == 3
        assert model.config.auto_map == AUTO_MAP
        if model.can_generate():
            settings = model.generation_config
            assert (settings.max_new_tokens, settings.repetition_penalty) == (7, 1.3)
            assert settings.eos_token_id == model.config.eos_token_id


@pytest.mark.parametrize("version", ["4.57.6", "5.4.0"])
def test_an_older_transformers_is_refused_with_the_way_out(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = Path(configuration_septet.__file__).read_text()
    older = ModuleType("transformers")
    older.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", older)
    monkeypatch.setitem(sys.modules, "transformers.configuration_utils", ModuleType("of old"))  # without later names
    with pytest.raises(
        ImportError, match=f"transformers {version} is installed; Septet's code needs 5.5 or newer: pip"
    ):
        exec(compile(code, "configuration_septet.py", "exec"), {"__name__": "configuration_septet"})

"""Two processes that share one model, loaded from its folder with the code that lies there, against one process.

A test starts this file twice, once as each rank (`python test_parallel.py CHECK FOLDER`); the ranks talk by gloo. What a
rank compares with is the whole model in its own memory.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

SECONDS = 100
OPTIONS = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "eos_token_id": None}
IDS = torch.randint(16, 301, (4, 24), generator=torch.Generator().manual_seed(0))
LABELS = IDS.where(torch.arange(24) >= torch.tensor([[2], [9], [5], [17]]), -100)  # each row has another number


# What a rank does


def load(folder: Path, auto_class: str = "AutoModelForCausalLM", **layout: Any) -> Any:
    """The folder's model; `layout` are fields of transformers' DistributedConfig, none for the whole model."""
    import transformers
    from transformers.distributed import DistributedConfig

    options = {"distributed_config": DistributedConfig(**layout)} if layout else {}
    model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True, **options)
    assert type(model.config).__module__.startswith("transformers_modules."), "the class came from this package"
    return model


def whole(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def close(actual: torch.Tensor, expected: torch.Tensor, what: str = "") -> None:
    torch.testing.assert_close(whole(actual), expected, rtol=1e-4, atol=2e-6, msg=lambda text: f"{what}: {text}")


def close_gradients(model: nn.Module, reference: nn.Module) -> None:
    expected = dict(reference.named_parameters())
    actual = dict(model.named_parameters())
    assert actual.keys() == expected.keys()
    for name, parameter in actual.items():
        close(parameter.grad, expected[name].grad, name)
    model.zero_grad()


def share_held(model: nn.Module, reference: nn.Module) -> float:
    """The part of the parameters that lies in this rank's memory."""
    held = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in model.parameters())
    return held / sum(p.numel() for p in reference.parameters())


def tensor_parallel(root: Path) -> None:
    for kind in ("tied", "untied"):
        reference, model = load(root / kind), load(root / kind, tp_plan="auto")
        assert 0.5 <= share_held(model, reference) < 0.52  # only the norms are on both
        layer = model.model.layers[0]
        width = model.config.hidden_size // 2
        assert layer.self_attn.o_proj.weight.to_local().shape == (2 * width, width)
        assert layer.self_attn.k_proj.weight.to_local().shape == (layer.self_attn.head_dim, 2 * width)

        expected = reference(IDS, labels=LABELS)
        expected.loss.backward()
        for skip_logits in (False, True):
            outputs = model(IDS, labels=LABELS, skip_logits=skip_logits)
            assert (outputs.logits is None) == skip_logits
            if not skip_logits:
                close(outputs.logits, expected.logits, "logits")
            close(outputs.loss, expected.loss, "loss")
            outputs.loss.backward()
            close_gradients(model, reference)
        for cache in (None, "static"):
            text = model.generate(IDS[:2], cache_implementation=cache, **OPTIONS)
            assert torch.equal(text, reference.generate(IDS[:2], **OPTIONS))
        tensor_parallel_heads(root / kind)


def tensor_parallel_heads(folder: Path) -> None:
    kinds = IDS[:, 0] % 2
    labels = {
        "MaskedLM": {"labels": LABELS},
        "PreTraining": {"labels": LABELS, "next_sentence_label": kinds},
        "NextSentencePrediction": {"labels": kinds},
        "SequenceClassification": {"labels": kinds},
        "TokenClassification": {"labels": LABELS.clamp(max=1)},
        "QuestionAnswering": {"start_positions": kinds, "end_positions": kinds + 3},
    }
    for head, columns in labels.items():
        torch.manual_seed(0)  # the heads that the folder does not hold are to be the same on both ranks
        reference, model = (load(folder, f"AutoModelFor{head}", **layout) for layout in ({}, {"tp_plan": "auto"}))
        for name, child in model.named_children():
            if name not in ("model", "lm_head", "dropout"):
                child.load_state_dict(getattr(reference, name).state_dict())
        expected, outputs = reference(IDS, **columns), model(IDS, **columns)
        close(outputs.loss, expected.loss, head)
        expected.loss.backward()
        outputs.loss.backward()
        close_gradients(model, reference)


def fully_sharded(root: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    mine = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    for kind, head in itertools.product(("tied", "untied"), ("CausalLM", "MaskedLM")):
        folder, auto_class = root / kind, f"AutoModelFor{head}"
        targets = (LABELS[:, 1 if head == "CausalLM" else 0 :] != -100).sum()
        reference = load(folder, auto_class)
        expected = reference(IDS, labels=LABELS)
        expected.loss.backward()
        by_plan, by_hand = load(folder, auto_class, fsdp_size=2), load(folder, auto_class)
        for layer in by_hand.model.layers:
            fully_shard(layer)
        fully_shard(by_hand)
        for model in (by_plan, by_hand):
            assert 0.49 < share_held(model, reference) < 0.51
            for checkpointing, skip_logits in itertools.product((False, True), (False, True)):
                if checkpointing:
                    model.train().gradient_checkpointing_enable()
                outputs = model(IDS[mine], labels=LABELS[mine], skip_logits=skip_logits, num_items_in_batch=targets)
                total = outputs.loss.detach().clone()
                dist.all_reduce(total)
                close(total, expected.loss, "loss")
                (outputs.loss * 2).backward()  # FSDP takes the ranks' mean; the loss is a sum over all targets
                close_gradients(model, reference)


class Stage(nn.Module):
    """A rank's part of a model that transformers split by its pipeline plan: ids -> hidden states -> logits."""

    def __init__(self, model: Any, first: bool):
        super().__init__()
        self.model, self.first = model, first

    def forward(self, received: torch.Tensor) -> torch.Tensor:
        if self.first:
            return self.model.model(received, use_cache=False).last_hidden_state
        return type(self.model).forward(self.model, inputs_embeds=received, use_cache=False).logits


def pipeline_parallel(root: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
    from torch.nn.functional import cross_entropy

    first = dist.get_rank() == 0
    shifted = torch.nn.functional.pad(LABELS[:, 1:], (0, 1), value=-100)

    def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")

    for kind in ("tied", "untied"):
        reference, model = load(root / kind), load(root / kind, pp_size=2)
        held = {name for name, _ in model.named_parameters()}
        kept = {name: any(parameter.startswith(name) for parameter in held) for name in model.pp_plan}
        assert kept == {
            "model.embed_tokens": first or kind == "tied",
            "model.layers": True,
            "model.norm": not first,
            "lm_head": not first and kind == "untied",  # tied, it is the embedding on both ranks
        }
        assert {int(name.split(".")[2]) for name in held if ".layers." in name} == ({0} if first else {1, 2})
        with torch.no_grad():
            close(model(IDS).logits, reference(IDS).logits, "logits")
        assert torch.equal(model.generate(IDS[:2], **OPTIONS), reference.generate(IDS[:2], **OPTIONS))

        reference.zero_grad()
        (reference(IDS, labels=LABELS).loss * (shifted != -100).sum()).backward()
        stage = PipelineStage(Stage(model, first), 0 if first else 1, 2, torch.device("cpu"))
        schedule = ScheduleGPipe(stage, n_microbatches=2, loss_fn=loss_of, scale_grads=False)
        if first:
            schedule.step(IDS)
        else:
            close(schedule.step(target=shifted), reference(IDS).logits, "logits")
        if kind == "tied":  # as a pipeline's training loop does
            dist.all_reduce(model.model.embed_tokens.weight.grad)
        expected = dict(reference.named_parameters())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-4, msg=name)


CHECKS = {check.__name__: check for check in (tensor_parallel, fully_sharded, pipeline_parallel)}


# The tests


@pytest.fixture(scope="module")
def root(config, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of three layers with QK-norm and an odd vocabulary, one tied and one untied."""
    from septet.modeling.checkpoint import save_model
    from septet.modeling.modeling_septet import SeptetForCausalLM

    place = tmp_path_factory.mktemp("parallel")
    for kind in ("tied", "untied"):
        torch.manual_seed(0)
        fields = {"vocab_size": 301, "num_hidden_layers": 3, "layer_types": None, "tie_word_embeddings": kind == "tied"}
        model = SeptetForCausalLM(type(config)(**{**config.to_dict(), **fields}))
        with torch.no_grad():  # attention must matter, or a wrong one would not show
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2:
                    parameter.mul_(4)
                elif "q_norm" in name or "k_norm" in name:
                    parameter.add_(torch.randn_like(parameter) / 4)
        save_model(model, tokenizer, place / kind)
    return place


@pytest.mark.parametrize("check", CHECKS)
def test_two_ranks_do_what_one_process_does(check: str, root: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ranks = []
    for rank in range(2):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_MODULES_CACHE": str(tmp_path / f"modules_{rank}"),
        }  # fmt: skip
        log = (tmp_path / f"{rank}.log").open("w")
        command = [sys.executable, __file__, check, str(root)]
        ranks.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    finished_by = time.monotonic() + SECONDS
    try:
        while any(rank.poll() is None for rank in ranks) and not any(rank.returncode for rank in ranks):
            assert time.monotonic() < finished_by, f"not done after {SECONDS} s\n" + "\n".join(logs(tmp_path))
            time.sleep(0.05)
    finally:  # a rank whose peer failed would wait for it
        for rank in ranks:
            rank.kill()
            rank.wait()
    failed = [log for rank, log in zip(ranks, logs(tmp_path), strict=True) if rank.returncode > 0]
    assert not failed, failed[0]
    assert [rank.returncode for rank in ranks] == [0, 0]


def logs(folder: Path) -> Iterator[str]:
    for rank in range(2):
        yield f"rank {rank}: " + (folder / f"{rank}.log").read_text()[-4000:]


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    CHECKS[sys.argv[1]](Path(sys.argv[2]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()

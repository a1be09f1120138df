"""Pre-training with weights, gradients and optimizer sharded among CPU ranks: one process's losses, any world size.

The ranks are started by `sharded_run.py`, which says how Accelerate is made to shard on a CPU.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import test_pretrain as pretraining
import torch
from safetensors.torch import load_file

from septet.modeling.pretrain import PretrainConfig
from septet.modeling.watch import MetricsFile

RUN = Path(__file__).with_name("sharded_run.py")


def config(packed: Path, output: Path) -> PretrainConfig:
    # 6 micro-batches a step: the same ones on 1, 2 and 3 ranks.
    return pretraining.options(packed, output, steps=4, tokens_per_step=768, micro_batch_size=2, validate_every=2)


def launch(config: PretrainConfig, ranks: int, **sizes: int) -> str:
    """Runs it on so many ranks, plain on one; what it said."""
    line = pretraining.command(config)
    if ranks > 1:
        line = [line[0], str(RUN), json.dumps(sizes), *line[3:]]
    done = subprocess.run(line, check=False, env=pretraining.ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_same_losses(output: Path, reference: Path) -> None:
    """The losses of all steps agree within 1e-4, and the gradients' norms within 1e-4 of themselves."""
    for kind in ("causal", "mlm", "nsp"):
        first, second = (
            [row[f"loss_{kind}"] for row in MetricsFile(folder, 4, enabled=False).rows() if "loss" in row]
            for folder in (output, reference)
        )
        assert len(first) == 4
        assert first == pytest.approx(second, abs=1e-4)
    first, second = (
        [row["gradient_norm"] for row in MetricsFile(folder, 4, enabled=False).rows() if "loss" in row]
        for folder in (output, reference)
    )
    assert first == pytest.approx(second, rel=1e-4)


@pytest.fixture(scope="module")
def one(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sharded") / "one"
    launch(config(packed, output), 1)
    return output


@pytest.fixture(scope="module")
def two(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FSDP2 on two ranks."""
    output = tmp_path_factory.mktemp("sharded") / "two"
    launch(config(packed, output), 2, dp_shard_size=2)
    return output


def test_sharded_weights_give_one_process_losses(one: Path, two: Path) -> None:
    assert_same_losses(two, one)
    shards = list((two / "step_4" / "optimizer").glob("*.safetensors"))
    assert len(shards) == 2  # each rank wrote its part
    assert not list(two.rglob("sharded"))
    whole = [load_file(output / "final" / "model.safetensors") for output in (one, two)]
    for name, tensor in whole[0].items():
        torch.testing.assert_close(whole[1][name], tensor, rtol=0, atol=1e-4)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_sharded_checkpoint_goes_on_with_another_number_of_ranks(
    one: Path, two: Path, packed: Path, tmp_path: Path, ranks: int
) -> None:
    output = tmp_path / "resumed"
    shutil.copytree(two, output)
    for later in ("final", "step_4"):
        shutil.rmtree(output / later)
    (output / "manifest.json").unlink()
    said = launch(config(packed, output), ranks, dp_shard_size=ranks)
    assert "going on from" in said and "step_2" in said
    assert_same_losses(output, one)


@pytest.mark.parametrize(
    ("ranks", "sizes"),
    [(4, {"dp_replicate_size": 2, "dp_shard_size": 2}), (2, {"tp_size": 2})],
    ids=["hsdp", "tensor parallel"],
)
def test_other_layouts_give_one_process_losses(packed: Path, tmp_path: Path, ranks: int, sizes: dict[str, int]) -> None:
    given = {"steps": 4, "tokens_per_step": 512, "micro_batch_size": 2, "validate_every": 2}
    for folder, number in (("one", 1), ("many", ranks)):
        config = pretraining.options(packed, tmp_path / folder, learning_rate=3e-3, **given)
        launch(config, number, **sizes)
    assert_same_losses(tmp_path / "many", tmp_path / "one")

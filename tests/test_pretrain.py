"""The pre-training loop: it learns, goes on after a kill with the same bytes, and does not depend on the processes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from septet.data.errors import UserError
from septet.data.manifest import read_manifest
from septet.modeling import checkpoint
from septet.modeling.pretrain import MetricsFile, PretrainConfig, plan_steps, run

ROOT = Path(__file__).resolve().parent.parent


def options(packed: Path, output: Path, **fields) -> PretrainConfig:
    settings = {
        "preset": "tiny", "objective": "joint", "steps": 8, "tokens_per_step": 512, "micro_batch_size": 4,
        "save_every": 2, "keep": 3, "validate_every": 4, "log_every": 1, "seed": 1,
    }  # fmt: skip
    return PretrainConfig(data=packed, output=output, **{**settings, **fields})


def command(config: PretrainConfig, *launch: str) -> list[str]:
    given = {
        f"--{field.name.replace('_', '-')}": getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default and field.name not in ("resume", "mixture", "max_epochs")
    }
    flags = [part for name, value in given.items() for part in (name, str(value))]
    return [sys.executable, *(launch or ("-m",)), "septet.modeling.pretrain", *flags, "--resume"]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


@pytest.fixture(scope="module")
def undisturbed(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "undisturbed"
    subprocess.run(command(options(packed, output)), check=True, env=ENVIRONMENT, capture_output=True)
    return output


def test_a_run_leaves_what_it_promises(undisturbed: Path) -> None:
    manifest = read_manifest(undisturbed, "pretrain")
    assert manifest["counts"]["steps"] == 8
    validation = manifest["counts"]["validation"]
    assert sorted(validation) == ["en", "fr", "zh"]
    for scores in validation.values():
        assert set(scores) == {"loss_causal", "loss_mlm", "loss_nsp", "bits_per_byte"}
    rows = [row for row in MetricsFile(undisturbed, 8, enabled=False).rows() if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert (undisturbed / "loss.png").stat().st_size > 5000
    assert [step for step, _ in checkpoint.checkpoints(undisturbed)] == [4, 6, 8]  # --keep 3
    for folder in (undisturbed / "step_4", undisturbed / "final"):
        config = json.loads((folder / "config.json").read_text())
        assert config["trained_heads"][0] == "SeptetForCausalLM"
        assert {"modeling_septet.py", "configuration_septet.py", "model.safetensors", "tokenizer.json"} <= {
            p.name for p in folder.iterdir()
        }
    assert not [p for p in undisturbed.rglob("*") if p.suffix in (".bin", ".pt", ".pkl", ".pth")]


@pytest.mark.parametrize("kill_at", ["step_2", ".step_4.tmp"])
def test_a_killed_run_ends_with_the_same_bytes(undisturbed: Path, packed: Path, tmp_path: Path, kill_at: str) -> None:
    output = tmp_path / "killed"
    config = options(packed, output)
    process = subprocess.Popen(command(config), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not (output / kill_at).exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = subprocess.run(command(config), check=True, env=ENVIRONMENT, capture_output=True, text=True)
    assert "going on from" in done.stdout
    for name in ("model.safetensors", "config.json"):
        assert (output / "final" / name).read_bytes() == (undisturbed / "final" / name).read_bytes()
    logged = [[row for row in MetricsFile(d, 8, enabled=False).rows() if "loss" in row] for d in (output, undisturbed)]
    assert [(row["step"], row["loss"]) for row in logged[0]] == [(row["step"], row["loss"]) for row in logged[1]]


def test_repetition_is_refused_before_anything_is_trained(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at most 1 epochs are allowed"):
        run(options(packed, tmp_path / "run", max_epochs={"all": 1}, steps=1000))
    assert not (tmp_path / "run").exists()


def test_two_processes_see_the_same_samples(undisturbed: Path, packed: Path, tmp_path: Path) -> None:
    machine = str(ROOT / "accelerate_configs" / "cpu_2proc.yaml")
    launch = ("-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", machine, "-m")
    config = options(packed, tmp_path / "two")
    subprocess.run(command(config, *launch), check=True, env=ENVIRONMENT, capture_output=True)
    one, two = (
        [row["loss"] for row in MetricsFile(d, 8, enabled=False).rows() if "loss" in row]
        for d in (undisturbed, tmp_path / "two")
    )
    assert two == pytest.approx(one, abs=1e-4)


def test_a_damaged_checkpoint_is_named_and_passed_over(undisturbed: Path, tmp_path: Path, capsys) -> None:
    for step in (4, 6):
        (tmp_path / f"step_{step}").symlink_to(undisturbed / f"step_{step}")
    damaged = tmp_path / "step_8"
    damaged.mkdir()
    for file in (undisturbed / "step_8").iterdir():
        (damaged / file.name).write_bytes(file.read_bytes()[: -1 if file.suffix == ".safetensors" else None])
    assert checkpoint.newest_whole(tmp_path) == (6, tmp_path / "step_6")
    assert "step_8 is damaged" in capsys.readouterr().err


def test_a_run_is_not_mixed_with_another(undisturbed: Path, packed: Path, tmp_path: Path, capsys) -> None:
    run(options(packed, undisturbed, resume=True))
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a finished run"):
        run(options(packed, undisturbed))
    with pytest.raises(UserError, match="learning_rate = 0.003, now 0.1"):
        run(options(packed, undisturbed, resume=True, learning_rate=0.1))
    (tmp_path / "something").write_text("mine")
    with pytest.raises(UserError, match="holds a run or other files"):
        run(options(packed, tmp_path))
    assert (tmp_path / "something").read_text() == "mine"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens_per_step": 500}, r"500 is not a multiple .* 4 × 64 × 2 = 512; the nearest that is: 512"),
        ({"steps": None}, "exactly one of --steps and --tokens"),
        ({"tokens": 9}, "exactly one of --steps and --tokens"),
        ({"micro_batch_size": 1}, "at least 2"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_run_is_refused_before_it_starts(fields: dict, message: str) -> None:
    config = options(Path("nowhere"), Path("nowhere"), **fields)
    with pytest.raises(UserError, match=message):
        plan_steps(config, sequence_length=64, num_processes=2)


def test_tokens_become_steps() -> None:
    config = options(Path("nowhere"), Path("nowhere"), steps=None, tokens=1025)
    assert plan_steps(config, sequence_length=64, num_processes=2) == (3, 2)


def test_a_loss_that_is_not_finite_stops_before_the_step(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="step .*needs finite ones"):
        run(options(packed, tmp_path / "wild", learning_rate=1e30, objective="causal"))
    assert not (tmp_path / "wild" / "manifest.json").exists()


def test_an_unknown_preset_is_named(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="preset 'nanno' is unknown; did you mean 'nano'"):
        run(options(packed, tmp_path / "none", preset="nanno"))

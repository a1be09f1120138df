"""The machines: each file of accelerate_configs/, and each variant by flags that docs/training.md names, says what it means."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands import launch as launcher
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import fsdp_utils
from accelerate.utils import launch as environments

ROOT = Path(__file__).resolve().parent.parent
MACHINES = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
DOCUMENT = ROOT / "docs" / "training.md"
COMPILED = ("--dynamo_backend", "inductor", "--dynamo_use_regional_compilation")
FP8 = ("--mixed_precision", "fp8", "--fp8_backend", "ao")


def launch_arguments(machine: str, *flags: str):
    """What `accelerate launch` makes of a file and flags, by its own parser."""
    command = ["--config_file", str(ROOT / "accelerate_configs" / f"{machine}.yaml"), *flags, "-m", "septet.x"]
    return launcher._validate_launch_command(launcher.launch_command_parser().parse_args(command))[0]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch):
    """Puts this process into the environment that `accelerate launch` gives to a machine's processes."""

    def enter(machine: str, *flags: str) -> None:
        monkeypatch.setattr(environments, "is_fp8_available", lambda: True)  # asked of the launching machine
        monkeypatch.setattr(environments, "is_port_in_use", lambda port: False)  # another run may be using it
        arguments = launch_arguments(machine, *flags)
        several = arguments.use_fsdp or arguments.multi_gpu
        prepare = environments.prepare_multi_gpu_env if several else environments.prepare_simple_launcher_cmd_env
        if arguments.use_deepspeed:
            arguments.deepspeed_fields_from_accelerate_config = ""
            prepare = environments.prepare_deepspeed_cmd_env
        made = prepare(arguments)
        for name, value in (made if isinstance(made, dict) else made[1]).items():
            monkeypatch.setenv(name, value)

    return enter


@pytest.mark.parametrize("machine", MACHINES, ids=lambda path: path.stem)
def test_each_line_is_known_commented_and_obeyed(machine: Path) -> None:
    """A line that the launcher reads and then leaves unused (rdzv_backend is one) would only mislead."""
    config = load_config_from_file(str(machine))  # refuses fields that it does not know
    assert config.num_processes % config.num_machines == 0
    text = machine.read_text(encoding="utf-8")
    assert [line for line in text.split("\n") if line and "# " not in line] == []
    arguments = vars(launch_arguments(machine.stem))
    for key, value in yaml.safe_load(text).items():
        if key in ("compute_environment", "distributed_type"):
            continue
        for name, wanted in value.items() if isinstance(value, dict) else [(key, value)]:
            assert arguments[name] == wanted, f"{name}: the launcher uses {arguments[name]}"


@pytest.mark.parametrize(
    ("machine", "flags", "sizes"),
    [
        ("fsdp2_8gpu", (), None),
        ("fsdp2_multinode", ("--machine_rank", "3", "--main_process_ip", "node1", "--rdzv_backend", "c10d"), None),
        ("hsdp", (), {"dp_replicate": 4, "dp_shard": 8, "tp": 1, "cp": 1, "sp": 1}),
        ("hsdp_tp", (), {"dp_replicate": 2, "dp_shard": 4, "tp": 2, "cp": 1, "sp": 1}),
        (
            "hsdp_tp",
            ("--parallelism_config_dp_replicate_size", "1", "--parallelism_config_dp_shard_size", "8"),
            {"dp_replicate": 1, "dp_shard": 8, "tp": 2, "cp": 1, "sp": 1},
        ),
    ],
)
def test_sharded_machines_shard_layer_by_layer(launched, config, machine: str, flags, sizes) -> None:
    from accelerate.parallelism_config import ParallelismConfig
    from accelerate.utils import FullyShardedDataParallelPlugin

    from septet.modeling.modeling_septet import SeptetDecoderLayer, SeptetForPreTraining
    from septet.modeling.objectives import PretrainingLosses

    launched(machine, *flags)
    plugin = FullyShardedDataParallelPlugin()
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.activation_checkpointing is False  # pre-training has an option for it; both would recompute twice
    assert plugin.cpu_ram_efficient_loading is False
    assert (os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG") == "true") == (sizes is not None)
    if sizes is not None:
        mesh = ParallelismConfig()
        assert mesh._sizes == sizes
        assert mesh.total_size == load_config_from_file(str(ROOT / f"accelerate_configs/{machine}.yaml")).num_processes
    # What `Accelerator.prepare` is given is the losses, not the model: its layers must be found inside them.
    losses = PretrainingLosses(SeptetForPreTraining(config))
    plugin.set_auto_wrap_policy(losses)
    is_wrapped = fsdp_utils.fsdp2_prepare_auto_wrap_policy(plugin, losses)
    wrapped = [module for module in losses.modules() if is_wrapped(module)]
    assert len(wrapped) == config.num_hidden_layers
    assert all(isinstance(module, SeptetDecoderLayer) for module in wrapped)


def test_machines_without_sharding_ask_for_none(launched) -> None:
    for machine in ("cpu", "cpu_2proc", "gpu1", "ddp_8gpu"):
        launched(machine)
        assert "ACCELERATE_USE_FSDP" not in os.environ
        assert "ACCELERATE_USE_PARALLELISM_CONFIG" not in os.environ
        assert os.environ["ACCELERATE_DYNAMO_BACKEND"] == "NO"
        assert os.environ["ACCELERATE_MIXED_PRECISION"] == ("no" if "cpu" in machine else "bf16")


def test_deepspeed_gets_stage_three(launched) -> None:
    launched("deepspeed_zero3")
    assert os.environ["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert os.environ["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] == "none"
    assert os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "1"


@pytest.mark.parametrize("machine", ["cpu", "gpu1", "fsdp2_8gpu"])
def test_flags_compile_layer_by_layer(launched, machine: str) -> None:
    from accelerate.utils import DynamoBackend, TorchDynamoPlugin

    launched(machine, *COMPILED)
    plugin = TorchDynamoPlugin()
    assert plugin.backend == DynamoBackend.INDUCTOR
    assert plugin.use_regional_compilation is True
    assert plugin.fullgraph is False


@pytest.mark.parametrize("machine", ["gpu1", "fsdp2_8gpu"])
def test_flags_turn_on_fp8(launched, machine: str) -> None:
    pytest.importorskip("torchao")
    from accelerate.utils import AORecipeKwargs

    launched(machine, *FP8)
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "fp8"
    assert os.environ["ACCELERATE_FP8_BACKEND"] == "ao"
    recipe = AORecipeKwargs().config
    assert recipe.enable_fsdp_float8_all_gather is True
    assert recipe.pad_inner_dim is True


@pytest.mark.parametrize(("machine", "processes"), [("cpu", 1), ("cpu_2proc", 2)])
def test_cpu_machines_train(machine: str, processes: int, packed: Path, tmp_path: Path) -> None:
    """Really launched, and on as many processes as the file says: Accelerate would fall back to one without a word."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(ROOT / "accelerate_configs" / f"{machine}.yaml"), "-m", "septet.modeling.pretrain"]
    command += ["--preset", "tiny", "--data", str(packed), "--output", str(tmp_path / "run"), "--objective", "causal"]
    command += ["--steps", "2", "--tokens-per-step", "512", "--micro-batch-size", "2", "--log-every", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"on {processes} process(es)" in done.stdout
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["counts"]["steps"] == 2


def test_the_document_names_each_machine_and_its_scripts_parse() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    named = set(re.findall(r"accelerate_configs/(\w+)\.yaml", text)) | set(re.findall(r"`(\w+)`", text))
    assert {machine.stem for machine in MACHINES} <= named
    assert set(re.findall(r"accelerate_configs/(\w+)\.yaml", text)) <= {machine.stem for machine in MACHINES}
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    assert sum(block.startswith("#!/bin/bash\n#SBATCH") for block in blocks) == 1
    for block in blocks:
        done = subprocess.run(["bash", "-n"], check=False, input=block, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

"""The pre-training loop: it learns, goes on after a kill with the same bytes, and does not depend on the processes."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from septet.data.errors import UserError
from septet.data.manifest import fingerprint, read_json, read_manifest, write_json
from septet.modeling import checkpoint
from septet.modeling.pretrain import PretrainConfig, run
from septet.modeling.start import alone_at
from septet.modeling.steps import plan_steps
from septet.modeling.watch import MetricsFile, Spikes

ROOT = Path(__file__).resolve().parent.parent


def options(packed: Path, output: Path, **fields) -> PretrainConfig:
    settings = {
        "preset": "tiny", "objective": "joint", "steps": 8, "tokens_per_step": 512, "micro_batch_size": 4,
        "save_every": 2, "keep": 3, "validate_every": 4, "log_every": 1, "seed": 1,
    }  # fmt: skip
    return PretrainConfig(data=packed, output=output, **{**settings, **fields})


def command(config: PretrainConfig, *launch: str) -> list[str]:
    flags = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != getattr(PretrainConfig(), field.name) and field.name != "resume":
            values = [part for pair in value.items() for part in pair] if isinstance(value, dict) else [value]
            flags += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return [sys.executable, *(launch or ("-m",)), "septet.modeling.pretrain", *flags, "--resume"]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


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
    for picture in ("loss.png", "dynamics.png", "mixture.png"):
        assert (undisturbed / picture).stat().st_size > 5000
    samples = [json.loads(line) for line in (undisturbed / "samples.jsonl").read_text().split("\n")[:-1]]
    assert [row["step"] for row in samples] == [4, 8]
    assert all(set(row[kind]) == {"en", "fr", "zh"} for row in samples for kind in ("continued", "filled"))
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
    assert read_json(tmp_path / "two" / "run.json")["environment"]["num_processes"] == 2


def test_a_damaged_checkpoint_is_named_and_passed_over(undisturbed: Path, tmp_path: Path, capsys) -> None:
    for step in (4, 6):
        (tmp_path / f"step_{step}").symlink_to(undisturbed / f"step_{step}")
    damaged = tmp_path / "step_8"
    damaged.mkdir()
    for file in (undisturbed / "step_8").iterdir():
        if file.is_file():
            (damaged / file.name).write_bytes(file.read_bytes()[: -1 if file.suffix == ".safetensors" else None])
    assert checkpoint.newest_whole(tmp_path) == (6, tmp_path / "step_6")
    assert "step_8 is damaged" in capsys.readouterr().err


def test_a_run_is_not_mixed_with_another(undisturbed: Path, packed: Path, tmp_path: Path, capsys) -> None:
    run(options(packed, undisturbed, resume=True, save_every=100))  # how often it saves does not change what it is
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a finished run"):
        run(options(packed, undisturbed))
    with pytest.raises(UserError, match="learning_rate = 0.003, now 0.1.*--allow-changes learning_rate"):
        run(options(packed, undisturbed, resume=True, learning_rate=0.1))
    with pytest.raises(UserError, match="--allow-changes lerning_rate: is no option"):
        run(options(packed, undisturbed, resume=True, allow_changes=("lerning_rate",)))
    with pytest.raises(UserError, match="is finished, and steps cannot change any more"):
        run(options(packed, undisturbed, resume=True, steps=9, allow_changes=("steps",)))
    (tmp_path / "something").write_text("mine")
    with pytest.raises(UserError, match="holds a run or other files"):
        run(options(packed, tmp_path))
    assert (tmp_path / "something").read_text() == "mine"


def unfinished(undisturbed: Path, output: Path, step: int = 4) -> Path:
    """The run as it was when it had saved this step."""
    shutil.copytree(undisturbed, output)
    shutil.rmtree(output / "final")
    (output / "manifest.json").unlink()
    for later, path in checkpoint.checkpoints(output):
        if later > step:
            shutil.rmtree(path)
    return output


def test_a_change_is_made_where_it_is_allowed_and_written_down(undisturbed: Path, packed: Path, tmp_path: Path) -> None:
    output = unfinished(undisturbed, tmp_path / "changed")
    changed = {"learning_rate": 1e-3, "steps": 10}
    with pytest.raises(UserError, match="learning_rate"):
        run(options(packed, output, resume=True, allow_changes=("steps",), **changed))
    run(options(packed, output, resume=True, allow_changes=tuple(changed), **changed))
    written = read_json(output / "run.json")
    assert written["changes"] == [{"step": 4, "changes": {"learning_rate": [3e-3, 1e-3], "steps": [8, 10]}}]
    assert written["config"]["steps"] == read_manifest(output, "pretrain")["counts"]["steps"] == 10
    rows = {row["step"]: row["learning_rate"] for row in MetricsFile(output, 10, enabled=False).rows() if "loss" in row}
    assert rows[4] == pytest.approx(3e-3) and rows[5] == pytest.approx(1e-3)


def test_a_run_is_not_cut_below_what_it_has_done(undisturbed: Path, packed: Path, tmp_path: Path) -> None:
    output = unfinished(undisturbed, tmp_path / "cut")
    with pytest.raises(UserError, match=r"is to have 3 steps, and .*step_4 is at step 4"):
        run(options(packed, output, resume=True, steps=3, allow_changes=("steps",)))
    change = {"tokens_per_step": 1024, "allow_changes": ("tokens_per_step", "batch_schedule")}
    with pytest.raises(UserError, match=r"has read 32 sequences, and these options make it 64; .*--batch-schedule"):
        run(options(packed, output, resume=True, **change))
    run(options(packed, output, resume=True, batch_schedule={0: 512, 4: 1024}, **change))
    rows = [row for row in MetricsFile(output, 8, enabled=False).rows() if "loss" in row]
    assert rows[-1]["tokens"] == 4 * 512 + 4 * 1024
    assert sum(rows[-1]["seen"].values()) * 64 == rows[-1]["tokens"]


def test_damaged_checkpoints_do_not_push_out_the_whole_one(undisturbed: Path, packed: Path, tmp_path: Path) -> None:
    output = unfinished(undisturbed, tmp_path / "damaged", step=6)
    with open(output / "step_6" / "model.safetensors", "ab") as file:
        file.write(b"more")
    run(options(packed, output, resume=True, keep=1, save_every=5))
    assert [step for step, _ in checkpoint.checkpoints(output)] == [8]
    assert [path.name.split(".")[0] for path in output.glob("damaged_*")] == ["damaged_step_6"]
    output = unfinished(undisturbed, tmp_path / "lost")
    (output / "step_4" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="all of its checkpoints are damaged"):
        run(options(packed, output, resume=True))


def test_one_run_at_a_time(undisturbed: Path, packed: Path, tmp_path: Path) -> None:
    output = unfinished(undisturbed, tmp_path / "shared")
    with alone_at(output), pytest.raises(UserError, match="another process is at work there"):
        run(options(packed, output, resume=True))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_changed_data_is_named_and_needs_leave(undisturbed: Path, packed: Path, tmp_path: Path) -> None:
    output = unfinished(undisturbed, tmp_path / "other")
    other = tmp_path / "packed"
    shutil.copytree(packed, other)
    run(options(other, output, resume=True, steps=8))  # the same set in another place
    output = unfinished(undisturbed, tmp_path / "changed")
    manifest = read_json(other / "manifest.json")
    manifest["files"]["more"] = {"bytes": 0, "sha256": "0" * 64}
    write_json(other / "manifest.json", manifest)
    with pytest.raises(UserError, match="has changed since .*--allow-changes data"):
        run(options(other, output, resume=True))


def test_a_decay_is_started_from_a_checkpoint_of_another_run(undisturbed: Path, packed: Path, tmp_path: Path) -> None:
    # The parent is at its stable rate at step 4; its own decay starts after 6 of 8 steps.
    output, start = tmp_path / "decayed", undisturbed / "step_4"
    config = options(packed, output, branch_from=start, steps=6, decay_share=2 / 6, keep=9)
    run(config)
    rows = [row for row in MetricsFile(output, 6, enabled=False).rows() if "loss" in row]
    parent = [row for row in MetricsFile(undisturbed, 8, enabled=False).rows() if "loss" in row]
    assert [row["step"] for row in rows] == [5, 6]
    assert rows[0]["loss"] == parent[4]["loss"]  # the same weights read the same samples
    assert rows[0]["rows_sha256"] == parent[4]["rows_sha256"]
    assert rows[0]["learning_rate"] == pytest.approx(3e-3)
    assert rows[1]["learning_rate"] == pytest.approx(1.5e-3)
    with pytest.raises(UserError, match="has objective joint, now causal"):
        run(options(packed, tmp_path / "no", branch_from=start, objective="causal"))
    with pytest.raises(UserError, match="is no checkpoint of a run"):
        run(options(packed, tmp_path / "no", branch_from=undisturbed / "final"))
    with pytest.raises(UserError, match=r"is to have 4 steps, and .*step_4 is at step 4; give more"):
        run(options(packed, tmp_path / "no", branch_from=start, steps=4))
    assert not (tmp_path / "no").exists()


def test_a_branch_has_the_shape_of_its_checkpoint_and_its_tokenizer(
    undisturbed: Path, packed: Path, tmp_path: Path
) -> None:
    """A run that began with a model of no preset's shape is branched, and goes on when that model's folder is gone."""
    origin = tmp_path / "origin"
    shutil.copytree(undisturbed / "final", origin)
    config = read_json(origin / "config.json")
    rope = {**config["rope_parameters"], "rope_theta": 123_456.0}
    write_json(origin / "config.json", {**config, "rope_parameters": rope})
    run(options(packed, tmp_path / "parent", init_from=origin, steps=2, save_every=1), stop_after=1)
    shutil.rmtree(origin)
    run(options(packed, tmp_path / "parent", init_from=origin, steps=2, save_every=1, resume=True))
    run(options(packed, tmp_path / "branch", branch_from=tmp_path / "parent" / "step_1", steps=2))
    for name in ("parent", "branch"):
        assert read_json(tmp_path / name / "final" / "config.json")["rope_parameters"]["rope_theta"] == 123_456.0
    other = tmp_path / "other"
    shutil.copytree(packed, other)
    tokenizer = read_json(other / "tokenizer" / "tokenizer.json")
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][1:]
    write_json(other / "tokenizer" / "tokenizer.json", tokenizer)
    with pytest.raises(UserError, match="was packed with another tokenizer"):
        run(options(other, tmp_path / "no", branch_from=undisturbed / "step_4", steps=6))


def test_a_run_starts_from_a_model_folder(undisturbed: Path, packed: Path, tmp_path: Path) -> None:
    output = tmp_path / "more"
    run(options(packed, output, init_from=undisturbed / "final", preset="nano", steps=1, warmup_share=0.0))
    first, untrained = (
        next(row for row in MetricsFile(folder, 1, enabled=False).rows() if "loss" in row)
        for folder in (output, undisturbed)
    )
    assert first["loss_causal"] < untrained["loss_causal"] - 1  # on the same samples
    assert read_json(output / "final" / "config.json")["hidden_size"] == 64  # of the folder, not of the preset
    origin = read_json(output / "manifest.json")["inputs"]["origin"]
    assert origin == {"path": str(undisturbed / "final"), "sha256": fingerprint(undisturbed / "final")}
    begun = tmp_path / "begun"  # a run that stopped before its first checkpoint
    begun.mkdir()
    write_json(begun / "run.json", {**read_json(output / "run.json"), "origin_sha256": "0" * 64})
    with pytest.raises(UserError, match=r"has changed since .*begun was started from it"):
        same = {"init_from": undisturbed / "final", "preset": "nano", "steps": 1, "warmup_share": 0.0}
        run(options(packed, begun, **same, resume=True))
    folder = tmp_path / "other vocabulary"
    shutil.copytree(undisturbed / "final", folder)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "vocab_size": 999})
    with pytest.raises(UserError, match="has vocab_size 999, and .* was packed with"):
        run(options(packed, tmp_path / "no", init_from=folder))
    write_json(folder / "config.json", config)
    tokenizer = read_json(folder / "tokenizer.json")
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][1:]
    write_json(folder / "tokenizer.json", tokenizer)
    with pytest.raises(UserError, match="was packed with another tokenizer"):
        run(options(packed, tmp_path / "no", init_from=folder))


def test_batches_and_lengths_follow_their_schedules(packed: Path, tmp_path: Path) -> None:
    output = tmp_path / "scheduled"
    run(options(packed, output, batch_schedule={0: 256, 3: 512}, length_schedule={0: 16, 2: 64}, steps=4))
    rows = [row for row in MetricsFile(output, 4, enabled=False).rows() if "loss" in row]
    assert [row["tokens"] for row in rows] == [256, 512, 768, 1280]
    assert [row["sequence_length"] for row in rows] == [16, 16, 64, 64]
    assert sum(rows[-1]["seen"].values()) == 1280 // 64


def test_old_checkpoints_go_but_the_kept_ones(packed: Path, tmp_path: Path) -> None:
    output = tmp_path / "kept"
    config = options(packed, output, steps=6, save_every=1, validate_every=2, keep=1, keep_every=3, keep_best=True)
    run(config)
    kept = dict(checkpoint.checkpoints(output))
    scores = {
        row["step"]: sum(
            score["loss_causal"] + score["loss_mlm"] + score["loss_nsp"] for score in row["validation"].values()
        )
        for row in MetricsFile(output, 6, enabled=False).rows()
        if "validation" in row
    }
    assert set(kept) == {3, 6, min(scores, key=scores.get)}


def test_a_full_disk_stops_the_run_or_is_told(packed: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    plain = checkpoint.write_json

    def full(path: Path, value: object) -> None:
        if ".step_4.tmp" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(path, value)

    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(UserError, match=r"step_4: cannot be saved .*No space left .*--resume"):
        run(options(packed, tmp_path / "stops"))
    assert [step for step, _ in checkpoint.checkpoints(tmp_path / "stops")] == [2]
    assert not list((tmp_path / "stops").glob(".step_*"))
    run(options(packed, tmp_path / "goes_on", on_save_error="go_on"))
    assert "step_4: cannot be saved" in capsys.readouterr().out
    assert [step for step, _ in checkpoint.checkpoints(tmp_path / "goes_on")] == [2, 6, 8]


def test_a_signal_has_the_run_save_and_stop(undisturbed: Path, packed: Path, tmp_path: Path, monkeypatch) -> None:
    output = tmp_path / "signalled"
    real = MetricsFile.write

    def write(self: MetricsFile, row: dict) -> None:
        real(self, row)
        if row["step"] == 3 and "loss" in row:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsFile, "write", write)
    with pytest.raises(UserError, match="stopped by a signal after step 4, which is saved"):
        run(options(packed, output, save_every=100))
    monkeypatch.undo()
    assert [step for step, _ in checkpoint.checkpoints(output)] == [4]


def test_a_signal_whose_save_fails_does_not_say_that_it_is_saved(packed: Path, tmp_path: Path, monkeypatch) -> None:
    real, plain = MetricsFile.write, checkpoint.write_json

    def write(self: MetricsFile, row: dict) -> None:
        real(self, row)
        if row["step"] == 3 and "loss" in row:
            os.kill(os.getpid(), signal.SIGTERM)

    def full(path: Path, value: object) -> None:
        if ".step_4.tmp" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(path, value)

    monkeypatch.setattr(MetricsFile, "write", write)
    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(UserError, match="stopped by a signal after step 4, which could not be saved: the newest"):
        run(options(packed, tmp_path / "run", on_save_error="go_on"))
    assert [step for step, _ in checkpoint.checkpoints(tmp_path / "run")] == [2]


def test_a_spike_is_logged_with_its_batch_and_skipped(packed: Path, tmp_path: Path, monkeypatch) -> None:
    real = Spikes.check

    def check(self: Spikes, loss: float, norm: float) -> str | None:
        real(self, loss, norm)
        return "planted" if len(self.losses) == 2 else None

    monkeypatch.setattr(Spikes, "check", check)
    norms = {}
    for skip in (False, True):
        output = tmp_path / f"skip_{skip}"
        run(options(packed, output, steps=3, skip_spikes=skip, save_every=1, keep=9))
        (row,) = (json.loads(line) for line in (output / "spikes.jsonl").read_text().split("\n")[:-1])
        assert (row["step"], row["reason"], row["skipped"], len(row["rows"])) == (2, "planted", skip, 8)
        weights = [load_file(output / f"step_{step}" / "model.safetensors") for step in (1, 2)]
        norms[skip] = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    assert norms[True] == 0 < norms[False]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens_per_step": 500}, r"500 is not a multiple .* 4 × 64 × 2 = 512; the nearest that is: 512"),
        ({"steps": None}, "exactly one of --steps and --tokens"),
        ({"tokens": 9}, "exactly one of --steps and --tokens"),
        ({"micro_batch_size": 1}, "at least 2"),
        ({"steps": 0}, "at least 1"),
        ({"length_schedule": {0: 24}}, "packed sequences of 64 tokens are cut into equal pieces of at least 16.*: 16"),
        ({"length_schedule": {0: 8}}, "at least 16; the nearest that does: 16"),
        ({"max_gradient_norm": -1.0}, "--max-gradient-norm -1; it must be at least 0"),
        ({"warmup_share": 2.0}, "between 0 and 1"),
        ({"batch_schedule": {3: 500}}, "500 is not a multiple"),
        ({"batch_schedule": {-1: 512}}, "steps count from 0"),
    ],
)
def test_what_cannot_be_run_is_refused_before_it_starts(fields: dict, message: str) -> None:
    config = options(Path("nowhere"), Path("nowhere"), **fields)
    with pytest.raises(UserError, match=message):
        plan_steps(config, packed_length=64, num_readers=2)


def test_tokens_become_steps() -> None:
    config = options(Path("nowhere"), Path("nowhere"), steps=None, tokens=1025)
    steps = plan_steps(config, packed_length=64, num_readers=2)
    assert (steps.total, steps.micro_batches(0)) == (3, 2)


def test_a_loss_that_is_not_finite_stops_before_the_step(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step .*needs finite ones"):
        run(options(packed, tmp_path / "wild", learning_rate=1e30, objective="causal"))
    assert not (tmp_path / "wild" / "manifest.json").exists()


def test_an_unknown_preset_is_named(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="preset 'nanno' is unknown; did you mean 'nano'"):
        run(options(packed, tmp_path / "none", preset="nanno"))

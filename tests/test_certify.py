"""A real run gets its certificate, with the numbers that the definition gives; any damage to it is named."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from septet.data.errors import UserError
from septet.data.manifest import fingerprint, read_json
from septet.data.packed import PackedDataset
from septet.modeling import certify, pretrain
from septet.modeling.certify import CertifyConfig, run

STEPS, PER_STEP = 12, 8
MIXTURE = {"en": 2.0, "fr": 1.0, "zh": 1.0}


@pytest.fixture(scope="module")
def whole_run(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps of eight sequences, several epochs of the small set."""
    output = tmp_path_factory.mktemp("runs") / "run"
    pretrain.run(
        pretrain.PretrainConfig(
            preset="tiny",
            data=packed,
            output=output,
            steps=STEPS,
            tokens_per_step=PER_STEP * 64,
            micro_batch_size=4,
            save_every=4,
            keep=2,
            validate_every=6,
            validation_sequences=4,
            log_every=2,
            seed=5,
            mixture=MIXTURE,
        )
    )
    return output


@pytest.fixture
def copy(whole_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_run, tmp_path / "run"))


def test_the_certificate_holds_what_was_seen_and_saved(whole_run: Path, packed: Path, capsys) -> None:
    certificate = read_json(run(CertifyConfig(whole_run)))
    assert certificate["steps"] == {"done": STEPS, "planned": STEPS}
    assert certificate["samples"] == STEPS * PER_STEP and certificate["tokens"] == STEPS * PER_STEP * 64

    data = PackedDataset(packed, "train", MIXTURE, seed=5)
    link, links = fingerprint(packed), {}
    for step in range(STEPS):
        rows = data.rows(np.arange(step * PER_STEP, (step + 1) * PER_STEP))
        link = hashlib.sha256(link.encode() + b"".join(int(row).to_bytes(8, "little") for row in rows)).hexdigest()
        links[str(step + 1)] = link
    assert certificate["rows_sha256"] == {step: links[step] for step in ("8", "12")}  # the checkpoints kept

    seen = certificate["sources"]
    assert set(seen) == {"en/test", "fr/test", "zh/test"}
    assert sum(source["samples"] for source in seen.values()) == STEPS * PER_STEP
    assert all(source["lost"] == source["repeated"] == 0 for source in seen.values())
    assert seen["en/test"]["epochs"] > 1  # or an epoch's end was never crossed

    tensors = certificate["tensors"]
    assert set(tensors) == {"step_8", "step_12", "final"}
    assert tensors["final"]["weights"] == tensors["step_12"]["weights"] != tensors["step_8"]["weights"]
    assert "optimizer" in tensors["step_8"] and "optimizer" not in tensors["final"]
    assert "12 of 12; 96 samples" in capsys.readouterr().out


def test_an_unfinished_run_is_certified_up_to_its_last_checkpoint(copy: Path) -> None:
    shutil.rmtree(copy / "step_12")
    shutil.rmtree(copy / "final")
    (copy / "manifest.json").unlink()
    certificate = read_json(run(CertifyConfig(copy)))
    assert certificate["steps"] == {"done": 8, "planned": 12} and certificate["samples"] == 8 * PER_STEP


def test_lost_and_repeated_sequences_are_counted(packed: Path) -> None:
    data = PackedDataset(packed, "train", seed=1)
    members = data.sources["en/test"]
    assert len(members) > 2
    rows = np.concatenate([members, members[:-1], members[:1], members[:1]])  # epoch 2: one twice, one never; 3 begun
    found = certify.epochs_by_source(data, rows)["en/test"]
    assert (found["samples"], found["lost"], found["repeated"]) == (2 * len(members) + 1, 1, 1)
    found = certify.epochs_by_source(data, np.array([members[0], members[0]]))["en/test"]
    assert (found["lost"], found["repeated"]) == (0, 1)  # the epoch is not over: nothing is lost yet


def test_a_digest_of_tensors_does_not_depend_on_their_files(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.zeros(())}
    for name in ("one", "two", "changed"):
        (tmp_path / name).mkdir()
    save_file(tensors, tmp_path / "one" / "model.safetensors", {"format": "pt"})
    save_file({"c": tensors["c"]}, tmp_path / "two" / "model-00001-of-00002.safetensors")
    save_file({n: tensors[n] for n in "ab"}, tmp_path / "two" / "model-00002-of-00002.safetensors")
    save_file({**tensors, "a": tensors["a"].reshape(3, 2)}, tmp_path / "changed" / "model.safetensors")
    one, two, changed = (certify.tensor_digests(tmp_path / name) for name in ("one", "two", "changed"))
    assert one == two != changed


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def rewrite_metrics(path: Path, change) -> None:
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda run: flip_a_byte(run / "step_8" / "optimizer.safetensors"),
            "step_8/optimizer.safetensors: its content",
        ),
        (lambda run: flip_a_byte(run / "final" / "model.safetensors"), "final/model.safetensors: its content"),
        (lambda run: (run / "step_12" / "config.json").unlink(), "step_12/config.json: is missing"),
        (lambda run: rewrite_metrics(run / "metrics.jsonl", lambda rows: rows.reverse()), r"metrics.jsonl: .*\(and"),
        (lambda run: shutil.rmtree(run / "step_12"), "finished after 12 steps, but its last checkpoint is of step 8"),
    ],
)
def test_damage_is_named_and_takes_the_old_certificate_away(copy: Path, damage, message: str) -> None:
    run(CertifyConfig(copy))
    damage(copy)
    with pytest.raises(UserError, match=message):
        run(CertifyConfig(copy))
    assert not (copy / "certificate.json").exists()


def test_metrics_must_rise_and_add_up(tmp_path: Path) -> None:
    good = [{"step": s, "tokens": 10 * s, "loss": 1.0} for s in (1, 2)] + [{"step": 2, "tokens": 20, "validation": {}}]
    bad = [*good, {"step": 2, "tokens": 20, "loss": 1.0}, {"step": 3, "tokens": 31, "loss": float("nan")}]
    for rows, count in ((good, 0), (bad, 3), ([], 1)):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert len(certify.metrics_problems(tmp_path, 10)) == count


def test_other_weights_in_final_are_found_though_its_manifest_agrees(copy: Path) -> None:
    path = copy / "final" / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] += 1
    save_file(weights, path, {"format": "pt"})
    manifest = read_json(copy / "manifest.json")
    manifest["files"]["final/model.safetensors"] = {"bytes": path.stat().st_size, "sha256": fingerprint(path)}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="final: its weights are not those of step 12"):
        run(CertifyConfig(copy))


def test_other_data_and_no_run_are_refused(copy: Path, packed: Path, tmp_path: Path) -> None:
    other = shutil.copytree(packed, tmp_path / "packed")
    arrow = next((other / "train").glob("*.arrow"))
    flip_a_byte(arrow)
    with pytest.raises(UserError, match=r"arrow: its content has changed"):
        run(CertifyConfig(copy, data=other))
    read_again = read_json(run(CertifyConfig(copy, data=packed)))
    assert read_again["steps"]["done"] == STEPS
    manifest = read_json(other / "manifest.json")
    manifest["files"]["train/state.json"]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is not the data of this run"):
        run(CertifyConfig(copy, data=other))
    with pytest.raises(UserError, match="is not a pre-training run"):
        run(CertifyConfig(tmp_path))
    for step in copy.glob("step_*"):
        shutil.rmtree(step)
    with pytest.raises(UserError, match="no whole checkpoint yet"):
        run(CertifyConfig(copy))

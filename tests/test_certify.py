"""A real run gets its certificate, with the numbers that the definition gives; any damage to it is named."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
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

STEPS = 12
BATCHES = {0: 4, 5: 8, 9: 4}  # sequences a step, from a step on
MIXTURE = {"en": 2.0, "fr": 1.0, "zh": 1.0}


def options(packed: Path, output: Path, **fields) -> pretrain.PretrainConfig:
    settings = {
        "preset": "tiny", "steps": STEPS, "tokens_per_step": 256, "micro_batch_size": 4, "save_every": 4, "keep": 2,
        "batch_schedule": {step: 64 * n for step, n in BATCHES.items()}, "validate_every": 6, "validation_sequences": 4,
        "log_every": 2, "seed": 5, "mixture": MIXTURE,
    }  # fmt: skip
    return pretrain.PretrainConfig(data=packed, output=output, **{**settings, **fields})


@pytest.fixture(scope="module")
def whole_run(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps of four or eight sequences, several epochs of the small set."""
    return pretrain.run(options(packed, tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture
def copy(whole_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_run, tmp_path / "run"))


@pytest.fixture
def unfinished(copy: Path) -> Path:
    """As a kill after step 8 would have left it."""
    shutil.rmtree(copy / "step_12")
    shutil.rmtree(copy / "final")
    (copy / "manifest.json").unlink()
    return copy


def rows_of(packed: Path, steps: range, mixture: dict[str, float] = MIXTURE) -> list[np.ndarray]:
    """Row numbers of each step, counted on step by step."""
    data, out, first = PackedDataset(packed, "train", mixture, seed=5), [], 0
    for step in range(steps.stop):
        size = BATCHES[max(start for start in BATCHES if start <= step)]
        out.append(data.rows(np.arange(first, first + size)))
        first += size
    return out[steps.start :]


def chain_of(rows: list[np.ndarray], link: str) -> list[str]:
    """The links after each step."""
    links = []
    for row_numbers in rows:
        link = hashlib.sha256(link.encode() + b"".join(int(n).to_bytes(8, "little") for n in row_numbers)).hexdigest()
        links.append(link)
    return links


def edit(file: Path, change: Callable[[dict], None]) -> None:
    """Changes a JSON file, and the manifest beside it so that it agrees."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    mend(file.parent, file.name)


def mend(folder: Path, name: str) -> None:
    manifest, file = read_json(folder / "manifest.json"), folder / name
    manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": fingerprint(file)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_certificate_holds_what_was_seen_and_saved(whole_run: Path, packed: Path, capsys) -> None:
    certificate = read_json(run(CertifyConfig(whole_run)))
    assert certificate["steps"] == {"first": 0, "done": STEPS, "planned": STEPS, "unproved": None}
    rows = rows_of(packed, range(STEPS))
    samples = sum(map(len, rows))
    assert samples == 5 * 4 + 4 * 8 + 3 * 4
    assert certificate["samples"] == samples and certificate["tokens"] == samples * 64
    links = chain_of(rows, fingerprint(packed))
    assert certificate["rows_sha256"] == {"8": links[7], "12": links[11]}  # the checkpoints kept

    seen = certificate["sources"]
    assert set(seen) == {"en/test", "fr/test", "zh/test"}
    assert sum(source["samples"] for source in seen.values()) == samples
    assert all(source["lost"] == source["repeated"] == 0 for source in seen.values())
    assert seen["en/test"]["epochs"] > 1  # or an epoch's end was never crossed

    tensors = certificate["tensors"]
    assert set(tensors) == {"step_8", "step_12", "final"}
    assert tensors["final"]["weights"] == tensors["step_12"]["weights"] != tensors["step_8"]["weights"]
    assert "optimizer" in tensors["step_8"] and "optimizer" not in tensors["final"]
    shown = capsys.readouterr().out
    assert f"0 to 12 of 12\nsamples     {samples} " in shown and f"step_8   {links[7]}" in shown


def test_an_unfinished_run_is_certified_up_to_its_last_checkpoint(unfinished: Path) -> None:
    certificate = read_json(run(CertifyConfig(unfinished)))
    assert certificate["steps"] == {"first": 0, "done": 8, "planned": 12, "unproved": None}
    assert certificate["samples"] == 5 * 4 + 3 * 8 == sum(s["samples"] for s in certificate["sources"].values())


def test_a_row_read_in_another_place_is_found(packed: Path, tmp_path: Path, monkeypatch) -> None:
    honest = PackedDataset.batch

    def swapped(self: PackedDataset, samples: np.ndarray):
        return honest(self, samples[[1, 0, 2, 3]] if 8 in samples else samples)  # within step 2: the same counts

    monkeypatch.setattr(PackedDataset, "batch", swapped)
    pretrain.run(options(packed, tmp_path / "run", steps=4, save_every=2, keep=9, log_every=1))
    shutil.rmtree(tmp_path / "run" / "step_2")
    with pytest.raises(UserError, match=r"metrics.jsonl: by step 3 it had not read the rows .*\(and 2 more\)"):
        run(CertifyConfig(tmp_path / "run"))


def test_training_again_gives_the_same_bytes_or_says_what_differs(copy: Path, capsys) -> None:
    certificate = read_json(run(CertifyConfig(copy, replay=8)))
    assert certificate["replayed"] == {"from": 8, "to": 12}
    assert "steps 8 to 12 again: every byte the same" in capsys.readouterr().out
    assert read_json(run(CertifyConfig(copy, replay=0)))["replayed"] == {"from": 0, "to": 8}

    (shard,) = (copy / "step_12" / "optimizer").glob("*.safetensors")
    flip_a_byte(shard)
    mend(copy / "step_12", f"optimizer/{shard.name}")
    assert read_json(run(CertifyConfig(copy)))["replayed"] is None  # nothing but training again can know
    with pytest.raises(
        UserError, match=r"trained again from step 8, step 12 differs in 1 places \(first: optimizer model"
    ):
        run(CertifyConfig(copy, replay=8))
    assert not (copy / "certificate.json").exists() and not (copy / ".replay").exists()


def test_what_cannot_be_trained_again_is_refused(copy: Path) -> None:
    with pytest.raises(UserError, match="--replay 4: .* keeps the checkpoints of steps 8, 12; give one of them"):
        run(CertifyConfig(copy, replay=4))
    with pytest.raises(UserError, match="--replay 12: .* keeps no later checkpoint"):
        run(CertifyConfig(copy, replay=12))
    edit(copy / "step_12" / "training_state.json", lambda state: state["environment"].update(num_threads=99))
    with pytest.raises(UserError, match="step 12 was trained with num_threads = 99, now .*launch certify as"):
        run(CertifyConfig(copy, replay=8))
    described = read_json(copy / "run.json")
    described["changes"] = [{"step": 10, "changes": {"learning_rate": [1, 2]}}]
    with pytest.raises(UserError, match="--replay 8: learning_rate changed at step 10, before the next checkpoint"):
        certify.end_of_replay(copy, described, [8, 12], 8)


def test_a_run_that_changed_its_mixture_is_certified_order_by_order(unfinished: Path, packed: Path) -> None:
    mixture = {"fr": 3.0, "zh": 1.0}
    pretrain.run(options(packed, unfinished, mixture=mixture, resume=True, allow_changes=("mixture",)))
    certificate = read_json(run(CertifyConfig(unfinished)))
    assert certificate["orders"] == [
        {"first_step": 0, "because": "the run's start"},
        {"first_step": 8, "because": "mixture changed"},
    ]
    rows = rows_of(packed, range(8)) + rows_of(packed, range(8, STEPS), mixture)
    assert certificate["rows_sha256"]["12"] == chain_of(rows, fingerprint(packed))[-1]
    data = PackedDataset(packed, "train")
    counts = Counter(name for row in np.concatenate(rows) for name, members in data.sources.items() if row in members)
    assert {name: source["samples"] for name, source in certificate["sources"].items()} == counts


def test_a_branch_is_certified_from_where_it_begins(whole_run: Path, packed: Path, tmp_path: Path) -> None:
    output = pretrain.run(
        options(packed, tmp_path / "branch", branch_from=whole_run / "step_8", steps=10, save_every=1)
    )
    certificate = read_json(run(CertifyConfig(output)))
    assert certificate["steps"] == {"first": 8, "done": 10, "planned": 10, "unproved": None}
    assert certificate["orders"][0]["because"] == "branched from a checkpoint of another run"
    assert certificate["samples"] == sum(map(len, rows_of(packed, range(8, 10))))
    before = read_json(whole_run / "step_8" / "training_state.json")["rows_sha256"]
    assert certificate["rows_sha256"]["10"] == chain_of(rows_of(packed, range(8, 10)), before)[-1]
    edit(output / "step_10" / "training_state.json", lambda state: state["seen"].update({"en/test": 0}))
    with pytest.raises(UserError, match="step_10/training_state.json: step 10 counts other samples"):
        run(CertifyConfig(output))


def test_steps_on_other_data_are_said_not_to_be_proved(unfinished: Path) -> None:
    described = read_json(unfinished / "run.json")
    described["changes"] = [{"step": 6, "changes": {"data": ["0" * 64, described["data_sha256"]]}}]
    (unfinished / "run.json").write_text(json.dumps(described))
    certificate = read_json(run(CertifyConfig(unfinished)))
    assert certificate["steps"] == {
        "first": 8, "done": 8, "planned": 12, "unproved": "the data was another until step 6"
    }  # fmt: skip
    described["changes"][0]["step"] = 9
    (unfinished / "run.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="the data was another until step 9, and no checkpoint has been saved since"):
        run(CertifyConfig(unfinished))


def test_lost_and_repeated_sequences_are_counted(packed: Path) -> None:
    data = PackedDataset(packed, "train", seed=1)
    members = data.sources["en/test"]
    n = len(members)
    assert n > 3
    rows = np.concatenate([members, members[:-1], members[:1], members[:1]])  # epoch 2: one twice, one never; 3 begun
    for parts in (1, 2, 7):  # however it is cut
        epochs = certify.Epochs(data)
        for part in np.array_split(rows, parts):
            epochs.add(part)
        found = epochs.by_source()["en/test"]
        assert (found["samples"], found["lost"], found["repeated"]) == (2 * n + 1, 1, 1)
    epochs.enter({name: 1 - 2 / len(rows) for name, rows in data.sources.items()})  # two places before an epoch's end
    epochs.add(np.concatenate([members[:2], members]))
    found = epochs.by_source()["en/test"]
    assert (found["samples"], found["lost"], found["repeated"]) == (3 * n + 3, 1, 1)  # no more than before
    epochs.add(np.concatenate([members[:-1], members[:1]]))  # and the epochs after it are whole ones
    assert (epochs.by_source()["en/test"]["lost"], epochs.by_source()["en/test"]["repeated"]) == (2, 2)
    epochs = certify.Epochs(data)
    epochs.add(np.array([members[0], members[0]]))
    found = epochs.by_source()["en/test"]
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


def test_nor_on_how_they_are_sharded(tmp_path: Path) -> None:
    tensors = {"w.momentum": torch.arange(20.0).reshape(5, 4), "w.step": torch.tensor(3.0)}
    for name in ("one", "two", "short"):
        (tmp_path / name / "optimizer").mkdir(parents=True)
    save_file(tensors, tmp_path / "one" / "optimizer" / "shard-00001.safetensors")

    def shard(folder: str, number: int, parts: dict[str, torch.Tensor], first_row: int) -> None:
        places = {name: {"saved_offsets": [first_row, 0] if part.dim() else []} for name, part in parts.items()}
        path = tmp_path / folder / "optimizer" / f"shard-{number:05d}.safetensors"
        save_file(parts, path, {"DCP_SHARDING_INFO": json.dumps(places)})

    for folder, rows in (("two", 5), ("short", 4)):
        shard(folder, 1, {"w.momentum": tensors["w.momentum"][3:rows].clone()}, 3)
        shard(folder, 2, {"w.momentum": tensors["w.momentum"][:3].clone(), "w.step": tensors["w.step"]}, 0)
    one, two, short = (certify.tensor_digests(tmp_path / name) for name in ("one", "two", "short"))
    assert one == two != short
    (tmp_path / "short" / "optimizer" / "shard-00002.safetensors").unlink()
    with pytest.raises(UserError, match="the shards of w.momentum do not make up the whole"):
        certify.tensor_digests(tmp_path / "short")


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def rewrite_metrics(run: Path, change: Callable[[list[dict]], None]) -> None:
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda run: flip_a_byte(next((run / "step_8" / "optimizer").glob("*.safetensors"))),
            "step_8/optimizer/shard-.*: its content",
        ),
        (lambda run: flip_a_byte(run / "final" / "model.safetensors"), "final/model.safetensors: its content"),
        (lambda run: (run / "step_12" / "config.json").unlink(), "step_12/config.json: is missing"),
        (
            lambda run: rewrite_metrics(run, lambda rows: rows.reverse()),
            r"metrics.jsonl: has|metrics.jsonl: its content",
        ),
        (lambda run: shutil.rmtree(run / "step_12"), "finished after 12 steps, but its last checkpoint is of step 8"),
        (
            lambda run: edit(
                run / "step_12" / "training_state.json", lambda state: state["seen"].update({"en/test": 1})
            ),
            "step_12/training_state.json: step 12 counts other samples",
        ),
        (
            lambda run: edit(run / "step_8" / "training_state.json", lambda state: state.update(rows_sha256="0" * 64)),
            "step_8/training_state.json: by step 8 it had not read the rows",
        ),
        (
            lambda run: edit(run / "step_8" / "training_state.json", lambda state: state.update(step=7)),
            "step_8/training_state.json: is of another step",
        ),
    ],
)
def test_damage_is_named_and_takes_the_old_certificate_away(copy: Path, damage, message: str) -> None:
    run(CertifyConfig(copy))
    damage(copy)
    with pytest.raises(UserError, match=message):
        run(CertifyConfig(copy))
    assert not (copy / "certificate.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(rows_sha256="0" * 16), "metrics.jsonl: by step 6 it had not read the rows"),
        (lambda row: row.update(rows_sha256=""), "metrics.jsonl: by step 6 it had not read the rows"),
        (lambda row: row["seen"].update({"zh/test": 0}), "metrics.jsonl: step 6 counts other samples"),
        (lambda row: row.update(tokens=row["tokens"] + 64), "metrics.jsonl: step 6 states"),
        (lambda row: row.update(step=13), r"metrics.jsonl: step 13 \(loss\) comes after step 4"),
        (lambda row: row.update(loss=float("nan")), "metrics.jsonl: step 6 has loss nan"),
    ],
)
def test_an_edited_row_of_an_unfinished_run_is_found(unfinished: Path, change, message: str) -> None:
    rewrite_metrics(unfinished, lambda rows: change(next(row for row in rows if row["step"] == 6 and "loss" in row)))
    with pytest.raises(UserError, match=message):
        run(CertifyConfig(unfinished))


def test_a_spike_that_names_another_batch_is_found(unfinished: Path, packed: Path) -> None:
    (rows,) = rows_of(packed, range(5, 6))
    spike = {"step": 6, "rows": rows.tolist()}
    (unfinished / "spikes.jsonl").write_text(json.dumps(spike) + "\n")
    run(CertifyConfig(unfinished))
    spike["rows"][0] += 1
    (unfinished / "spikes.jsonl").write_text(json.dumps(spike) + "\n")
    with pytest.raises(UserError, match="spikes.jsonl: step 6 names other rows"):
        run(CertifyConfig(unfinished))


def test_other_weights_in_final_are_found_though_its_manifest_agrees(copy: Path) -> None:
    path = copy / "final" / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] += 1
    save_file(weights, path, {"format": "pt"})
    mend(copy, "final/model.safetensors")
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

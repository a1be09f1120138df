"""The project as a whole: the command, the direction of imports, the small verbs."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from septet.data.errors import UserError
from septet.data.manifest import finished, problems, writing
from septet.modeling.optim import Muon, orthogonalized
from septet.tasks.cli import VERBS, main, usage

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("data", "modeling", "tasks")


def test_imports_point_down() -> None:
    for layer, above in (("data", ("modeling", "tasks")), ("modeling", ("tasks",))):
        for file in (ROOT / layer).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for name in names:
                    assert not name.startswith(tuple(f"septet.{higher}" for higher in above)), (
                        f"{file.name} imports {name}"
                    )


def test_published_files_import_nothing_else() -> None:
    allowed = {"torch", "transformers", "huggingface_hub", "collections", "dataclasses", "typing"}
    for name in ("configuration_septet", "modeling_septet"):
        for node in ast.walk(ast.parse((ROOT / "modeling" / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed
            elif isinstance(node, ast.ImportFrom):
                assert node.module == "configuration_septet" if node.level else node.module.split(".")[0] in allowed


def test_every_verb_has_its_module_and_teaches() -> None:
    for name, verb in VERBS.items():
        module = importlib.import_module(f"septet.{verb.module}")
        assert callable(getattr(module, verb.function))
        fields = dataclasses.fields(getattr(module, verb.config))
        assert fields
        assert name in usage()


def test_help_is_quick() -> None:
    """No verb's module may load torch or transformers before it is needed."""
    modules = sorted({f"septet.{verb.module}" for verb in VERBS.values()})
    code = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
    code += "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'sklearn', 'datatrove', 'accelerate'} & set(sys.modules)\nassert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True)
    started = time.time()
    subprocess.run([sys.executable, "-m", "septet.tasks.cli", "--help"], check=True, capture_output=True)
    assert time.time() - started < 2  # 0.05 s on a quiet machine; torch alone would take longer than this


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrian"], "verb 'pretrian' is unknown; did you mean 'pretrain'"),
        (["finetune", "nre"], "task 'nre' is unknown; did you mean 'ner'"),
        (["plan", "--preset", "7bb"], "preset '7bb' is unknown; did you mean '7b'"),
        (["plan", "--machine", "8xH10"], "did you mean 'H100'"),
        (["plan", "--tokens", "many"], "'many'"),
        (["plan", "--toknes", "1B"], "--tokens"),
        (["certify", "nowhere"], "is not a pre-training run"),
        (["compare", "a", "b"], "a"),
    ],
)
def test_mistakes_get_one_message(arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err + captured.out
    assert "Traceback" not in captured.err


def test_a_stage_leaves_nothing_half_done(tmp_path: Path) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out"
    source.write_text("one")
    with writing(output, "stage", {"a": 1}, {"in": source}) as out:
        (out.path / "file").write_text("whole")
    with pytest.raises(RuntimeError), writing(output, "stage", {"a": 2}, {"in": source}) as out:
        (out.path / "file").write_text("half")
        raise RuntimeError
    with pytest.raises(UserError, match="No space left"), writing(output, "stage", {"a": 2}, {"in": source}) as out:
        raise OSError(28, "No space left on device")
    assert (output / "file").read_text() == "whole"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.txt", "out"]
    assert problems(output) == []
    assert finished(output, "stage", {"a": 1}, {"in": source})
    source.write_text("two")
    with pytest.raises(UserError, match=r"its input in .* has changed"):
        finished(output, "stage", {"a": 1}, {"in": source})
    (output / "file").write_text("WHOLE")
    assert problems(output) == ["file: its content has changed (sha256 differs from the manifest)"]


def test_muon_orthogonalises_and_adam_is_torchs() -> None:
    torch.manual_seed(0)
    for shape in ((40, 24), (24, 40)):
        singular = torch.linalg.svdvals(orthogonalized(torch.randn(shape)))
        assert singular.min() > 0.6
        assert singular.max() < 1.3
    ours, theirs = (torch.nn.Parameter(torch.ones(5, 3)) for _ in range(2))
    one = Muon([{"params": [ours], "matrices": False}], lr=0.1, weight_decay=0.2)
    other = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.95), weight_decay=0.2)
    for _ in range(4):
        gradient = torch.randn(5, 3)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        one.step()
        other.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

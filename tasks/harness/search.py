"""Look for fine-tuning options with optuna: the study goes on where it stopped, and several processes can share it.

    septet search classification --base runs/pretrain/final --data DATA --output runs/search --trials 20

Every trial is an ordinary fine-tuning run, judged on the validation set: by its first metric, or, for tasks that generate
text, by its loss. TPE proposes the options (Bergstra et al. 2011), and a trial that is worse after an epoch than half of
the earlier ones at that epoch is given up. Run the same command again to go on, or in other shells at the same time to
share the work: `study.log` in the output is the study's only memory. In the end there are `best/`, the best run as
`septet finetune` leaves it, and `index.html`, the study as a page. Score `best/` on a test set that the study has not seen.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import shutil
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from septet.data.errors import UserError, run_cli, suggestion
from septet.data.manifest import identity, plain, read_json, write_json
from septet.tasks.harness import finetune
from septet.tasks.harness.finetune import FinetuneConfig
from septet.tasks.harness.task import get_task

STUDY_FILE = "search.json"
SPACES = {
    "full": {"learning_rate": "5e-4:8e-3:log", "batch_size": "16,32,64", "dropout": "0.0:0.3"},
    "lora": {"learning_rate": "2e-3:4e-2:log", "batch_size": "16,32,64", "lora_rank": "8,16,32"},
}
SPACES["qlora"] = SPACES["lora"]


@dataclass(frozen=True)
class SearchConfig(FinetuneConfig):
    trials: int = 20
    """trials in all, those of earlier and other processes among them"""
    space: dict[str, str] = field(default_factory=dict)
    """option and values: LOW:HIGH, LOW:HIGH:log or A,B,C, as in `--space learning_rate 5e-4:8e-3:log batch_size 16,32`;
    default: learning rate, batch size and dropout, with adapters their rank in its place"""
    prune: bool = True
    """give trials up early"""
    timeout_minutes: float | None = None
    """begin no trial after so many minutes of this process"""


def run(config: SearchConfig) -> Path:
    """Runs trials until there are enough; returns the path of the page.

    Raises:
        UserError: optuna is not installed; a space that is none; a folder of another study; several processes in one trial;
            and what `finetune` raises.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("septet search needs optuna; run: pip install 'septet[search]'") from error
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("septet search: a trial is one process; run the command several times instead of by a launcher")
    task = get_task(config.task)
    space = {name: parsed(name, text) for name, text in (config.space or SPACES[config.method]).items()}
    output = Path(config.output)
    begin(config, output)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(output / "study.log")))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=config.task,
        storage=storage,
        load_if_exists=True,
        direction="maximize" if task.validation_rises else "minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
        if config.prune
        else optuna.pruners.NopPruner(),
    )
    give_up_the_dead(study)

    def is_enough() -> bool:
        ended = [t for t in study.get_trials(deepcopy=False) if t.state.name in ("COMPLETE", "PRUNED")]
        return len(ended) >= config.trials

    def after_trial(study: Any, _: Any) -> None:
        keep_the_best(study, output)
        if is_enough():
            study.stop()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            if not is_enough():
                study.optimize(
                    objective(config, study, space, output),
                    timeout=None if config.timeout_minutes is None else 60 * config.timeout_minutes,
                    callbacks=[after_trial],
                )
        finally:
            done = [t for t in study.trials if t.state.name == "COMPLETE"]
            page = write_page(config, study, output) if done else None
    if page is None:
        given_up = sum(t.state.name == "PRUNED" for t in study.trials)
        raise UserError(
            f"{output}: no trial came to an end, {given_up} were given up, as those are that diverge; give lower rates in "
            "--space, or more --timeout-minutes"
        )
    best = study.best_trial
    print(f"search: best of {len(study.trials)} trials: {best.value:.4g} with {best.params}; {page}", flush=True)
    return page


def parsed(name: str, text: str) -> Callable[[Any], Any]:
    """What a trial proposes for an option, from its values as --space states them.

    Raises:
        UserError: there is no such option, or the text is neither a range nor a list.
    """
    types = {f.name: str(f.type) for f in fields(FinetuneConfig)}
    searchable = [n for n, kind in types.items() if any(part in kind for part in ("int", "float", "Literal", "bool"))]
    if name not in searchable:
        raise UserError(f"--space {name}: is no option with numbers or names; {suggestion(name, searchable)}")
    try:
        if ":" in text:
            low, high, *rest = text.split(":")
            if rest not in ([], ["log"]):
                raise ValueError(text)
            whole = "int" in types[name] and "float" not in types[name]
            bounds = (int(low), int(high)) if whole else (float(low), float(high))
            if not bounds[0] < bounds[1] or (rest and bounds[0] <= 0):
                raise ValueError(text)
            suggest = "suggest_int" if whole else "suggest_float"
            return lambda trial: getattr(trial, suggest)(name, *bounds, log=bool(rest))
        choices = [_value(part) for part in text.split(",")]
        for choice in choices:
            require_value(name, text, choice)
        return lambda trial: trial.suggest_categorical(name, choices)
    except ValueError as error:
        raise UserError(
            f"--space {name} {text}: must be LOW:HIGH, LOW:HIGH:log with LOW above 0, or A,B,C; as in 5e-4:8e-3:log"
        ) from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def require_value(name: str, text: str, choice: Any) -> None:
    """Raises a `UserError` unless an option of `finetune` takes this value."""
    hint = get_type_hints(FinetuneConfig)[name]
    kinds = [hint] if isinstance(hint, type) or get_origin(hint) is Literal else list(get_args(hint))
    names = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    if bool in kinds:
        names += [True, False]
    types = {int: (int,), float: (int, float), type(None): (type(None),)}
    allowed = tuple(each for kind in kinds for each in types.get(kind, ()))
    is_named = any(choice is value or (isinstance(choice, str) and choice == value) for value in names)
    if not is_named and (isinstance(choice, bool) or not isinstance(choice, allowed)):
        known = [json.dumps(value) if isinstance(value, bool) else value for value in names]
        way_out = suggestion(str(choice), known) if known else "give numbers"
        raise UserError(f"--space {name} {text}: {choice!r} is no value of it; {way_out}")


def begin(config: SearchConfig, output: Path) -> None:
    """Writes down what the study is, or checks that it is the same study."""
    free = ("trials", "timeout_minutes", "prune", "resume", "output")
    described = {key: value for key, value in plain(identity(config)).items() if key not in free}
    described |= {f"digest of {name}": part["sha256"][:16] for name, part in finetune.inputs_of(config).items()}
    output.mkdir(parents=True, exist_ok=True)
    if not (output / STUDY_FILE).is_file():
        # Another process of the study may be writing this very file, under a name with a dot.
        if any(path.name != "study.log" and not path.name.startswith(".") for path in output.iterdir()):
            raise UserError(f"{output}: holds something else; choose another --output")
        write_json(output / STUDY_FILE, described)
    before = read_json(output / STUDY_FILE)
    for key in sorted(before.keys() | described.keys()):
        if before.get(key) != described.get(key):
            raise UserError(
                f"{output}: holds another study ({key} was {before.get(key)!r}, now {described.get(key)!r}); choose another "
                "--output"
            )


def give_up_the_dead(study: Any) -> None:
    """Marks trials of this machine whose process is gone as failed, and puts their options first in line again."""
    import optuna

    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        if trial.user_attrs.get("host") != socket.gethostname():
            continue
        try:
            os.kill(trial.user_attrs["pid"], 0)
        except ProcessLookupError:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params)


def objective(config: SearchConfig, study: Any, space: dict[str, Any], output: Path) -> Callable[[Any], float]:
    """A trial: proposes options, fine-tunes with them, and returns the validation score."""
    import optuna

    options = {f.name: getattr(config, f.name) for f in fields(FinetuneConfig)}

    def trial_score(trial: Any) -> float:
        trial.set_user_attr("host", socket.gethostname())
        trial.set_user_attr("pid", os.getpid())
        # A sampler of its own for each trial: what is proposed follows from the seed and from what was tried before.
        study.sampler = optuna.samplers.TPESampler(seed=config.seed + 1000 * trial.number, constant_liar=True)
        chosen = {name: propose(trial) for name, propose in space.items()}
        place = output / f"trial_{trial.number}"
        shutil.rmtree(place, ignore_errors=True)
        values: list[float] = []

        def on_epoch(epoch: int, value: float) -> None:
            if not math.isfinite(value):
                raise optuna.TrialPruned
            values.append(value)
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        shown = ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in chosen.items())  # fmt: skip
        print(f"search: trial {trial.number}: {shown}", flush=True)
        try:
            finetune.run(FinetuneConfig(**{**options, **chosen, "output": place, "resume": False}), on_epoch)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        best = max if study.direction.name == "MAXIMIZE" else min
        return best(values) if config.early_stopping else values[-1]

    return trial_score


def keep_the_best(study: Any, output: Path) -> None:
    """Removes the runs of all finished trials but the best one's, which is `best/` once the study has one."""
    import optuna

    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if not done:
        return
    best = output / f"trial_{study.best_trial.number}"
    if best.is_dir():
        shutil.rmtree(output / "best", ignore_errors=True)
        os.replace(best, output / "best")
    for trial in done:
        shutil.rmtree(output / f"trial_{trial.number}", ignore_errors=True)


def write_page(config: SearchConfig, study: Any, output: Path) -> Path:
    """`index.html`: the best options, the course of the study, what mattered, and every trial."""
    import jinja2
    import matplotlib as mpl
    from optuna.visualization import matplotlib as draw

    mpl.use("Agg")
    task = get_task(config.task)
    done = [t for t in study.trials if t.state.name == "COMPLETE"]
    drawings = {"Course of the study": draw.plot_optimization_history, "Each option alone": draw.plot_slice}
    if len({len(t.intermediate_values) for t in study.trials} | {1}) > 1:
        drawings["Scores by epoch"] = draw.plot_intermediate_values
    if len(done) >= 4 and len({t.value for t in done}) > 1:
        drawings["What mattered"] = draw.plot_param_importances
        drawings["Options together"] = draw.plot_parallel_coordinate
    pictures = [(title, _picture(plot, study)) for title, plot in drawings.items()]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    names = sorted({name for t in study.trials for name in t.params})
    order = sorted(study.trials, key=lambda t: (t.value is None, -(t.value or 0.0) if task.validation_rises else t.value or 0.0))  # fmt: skip
    trials = [
        {
            "number": t.number,
            "state": {"COMPLETE": "whole", "PRUNED": "given up", "FAIL": "failed"}.get(t.state.name, "under way"),
            "value": t.value,
            "epochs": len(t.intermediate_values),
            "params": [t.params.get(name) for name in names],
            "minutes": t.duration.total_seconds() / 60 if t.duration else None,
        }
        for t in order
    ]
    page = environment.get_template("search.html.j2").render(
        title=task.title,
        score=f"validation {task.primary_metric}" if task.scored_while_training else "validation loss",
        best=study.best_trial if done else None,
        command=" ".join(f"--{name.replace('_', '-')} {value}" for name, value in study.best_params.items())
        if done
        else "",
        task=task.name,
        names=names,
        trials=trials,
        pictures=pictures,
    )
    aside = output / f".index.html.{os.getpid()}.tmp"
    aside.write_text(page, encoding="utf-8")
    os.replace(aside, output / "index.html")
    return output / "index.html"


def _picture(plot: Callable[[Any], Any], study: Any) -> str:
    """A drawing of optuna's as a data URI."""
    import matplotlib.pyplot as plt
    import numpy as np

    axes = np.atleast_1d(plot(study))
    figure = axes.ravel()[0].figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


if __name__ == "__main__":
    run_cli(run, SearchConfig)

"""Local `evaluate` modules, one a metric family: bleu, classification, multilabel, regression, squad, rouge, entity_f1.

Each works offline, by `evaluate.load(path of the file)` or by `load(name)` here. `compute` takes `predictions`, `references`
and `languages` (the code of the references' language, or one a row) and returns {metric: value}, on the scales that
`septet.tasks.harness.metrics` states.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from septet.data.errors import UserError, suggestion

if TYPE_CHECKING:
    import evaluate

FOLDER = Path(__file__).parent


def load(name: str) -> "evaluate.EvaluationModule":
    """The module `name`, from its file; rows stay in memory, so that concurrent evaluations share no file.

    Raises:
        UserError: there is no such module.
    """
    import evaluate

    known = [file.stem for file in FOLDER.glob("[a-z]*.py")]
    if name not in known:
        raise UserError(f"metric module {name!r}: is unknown; {suggestion(name, known)}")
    return evaluate.load(str(FOLDER / f"{name}.py"), keep_in_memory=True)

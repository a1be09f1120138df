"""A page on this machine to try a fine-tuned model: type a text, see what the model answers.

    septet serve runs/classification/final --task classification

It listens on loopback alone, loads the model with the code of this package, not with the folder's, and escapes whatever is
typed or answered.
"""

from __future__ import annotations

import html
import urllib.parse
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Literal

import tyro

from septet.data.errors import UserError, run_cli

MAX_BYTES = 200_000  # of a request: a long document
FIELDS = {"qa": ("question", "context")}
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; form-action 'self'">
<title>Septet: {title}</title><style>
:root{{color-scheme:light dark}}body{{font:17px/1.5 system-ui,"Noto Sans CJK SC",sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem}}
textarea{{width:100%;box-sizing:border-box;font:inherit;padding:.6rem;border-radius:.4rem}}label{{display:block;margin:1rem 0 .3rem}}
button{{font:inherit;margin-top:1rem;padding:.4rem 1.4rem}}output{{display:block;white-space:pre-wrap;margin-top:1.5rem;padding:1rem;border-left:4px solid #4a7;background:#8881}}
small{{opacity:.7}}</style><h1>{title}</h1><p><small>{model}</small></p><form method="post">{fields}
<label>language <select name="lang">{languages}</select></label><button>Answer</button></form>{answer}</html>"""


@dataclass(frozen=True)
class ServeConfig:
    model: Annotated[Path, tyro.conf.Positional]
    """a fine-tuned checkpoint folder"""
    task: Literal["translation", "classification", "qa", "summarization", "ner"] | None = None
    """default: what the run beside the folder was fine-tuned for"""
    port: int = 7860
    """on 127.0.0.1; 0: any free one"""


def run(config: ServeConfig) -> None:
    """Serves until it is stopped with Ctrl-C."""
    server = make_server(config)
    print(f"serve: http://127.0.0.1:{server.server_port} (stop with Ctrl-C)", flush=True)
    server.serve_forever()


def make_server(config: ServeConfig) -> ThreadingHTTPServer:
    """The server, not yet serving.

    Raises:
        UserError: a folder that is no checkpoint, a task that is not known, or a port that is taken.
    """
    from septet.modeling.checkpoint import require_model_folder
    from septet.tasks.harness.finetune import read_run
    from septet.tasks.harness.task import get_task

    folder = require_model_folder(config.model)
    name = config.task or read_run(folder).get("config", {}).get("task")
    if name is None:
        raise UserError(f"{folder}: what it was fine-tuned for is not written beside it; give --task")
    task = get_task(name)

    from septet.data.pack import load_tokenizer
    from septet.modeling import modeling_septet

    tokenizer = load_tokenizer(folder)
    model = getattr(modeling_septet, task.head).from_pretrained(folder).eval()
    lock = Lock()

    def answer(given: dict[str, str]) -> str:
        example = task.showcase(given)
        with lock:  # one at a time: the model is not shared between threads
            [prediction] = task.predict(model, tokenizer, [example], 1)
        return task.shown(prediction, example)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.page({}, "")

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            if size > MAX_BYTES:
                self.page({}, f"The text has {size:,} bytes; at most {MAX_BYTES:,} are taken.", 413)
                return
            fields = urllib.parse.parse_qs(self.rfile.read(size).decode("utf-8", "replace"))
            given = {key: values[0] for key, values in fields.items()}
            missing = [key for key in FIELDS.get(task.name, ("text",)) if not given.get(key, "").strip()]
            if missing or given.get("lang", "en") not in ("en", "fr", "zh"):
                self.page(given, f"Please fill in: {', '.join(missing) or 'language'}.", 400)
            else:
                self.page(given, answer(given) or "(the model answers nothing)")

        def page(self, given: dict[str, str], text: str, status: int = 200) -> None:
            fields = "".join(
                f'<label>{key}<textarea name="{key}" rows="5">{html.escape(given.get(key, ""))}</textarea></label>'
                for key in FIELDS.get(task.name, ("text",))
            )
            chosen = given.get("lang", "zh" if task.name in ("qa", "ner") else "en")
            languages = "".join(f"<option{' selected' if lang == chosen else ''}>{lang}" for lang in ("en", "fr", "zh"))
            body = PAGE.format(
                title=html.escape(task.title),
                model=html.escape(str(config.model)),
                fields=fields,
                languages=languages,
                answer=f"<output>{html.escape(text)}</output>" if text else "",
            ).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    try:
        return ThreadingHTTPServer(("127.0.0.1", config.port), Handler)
    except OSError as error:
        raise UserError(f"--port {config.port}: is not free ({error.strerror}); give another, or 0 for any") from error


if __name__ == "__main__":
    run_cli(run, ServeConfig)

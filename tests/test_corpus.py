"""The corpus stage: what stays and what goes, and that it is whole, the same on any executor, and resumable."""

import dataclasses
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from septet.data import corpus, filters, pages, steps
from septet.data.corpus import CorpusConfig
from septet.data.documents import iterate_rows, read_rows, write_jsonl
from septet.data.errors import UserError
from septet.data.manifest import read_manifest

WORDS = {
    "en": "river stone morning letter garden winter harbour music silver window teacher market the old and of where "
    "under with small bridge people walked carried slowly bread lamp answer between evening story child mountain "
    "never against voice table yellow ship promise forest thousand candle remember quiet road",
    "fr": "rivière pierre matin lettre jardin hiver musique argent fenêtre marché château été le les et de où sous avec "
    "petit pont gens marchaient portaient lentement pain lampe réponse entre soir histoire enfant montagne jamais "
    "contre voix table jaune navire promesse forêt mille bougie souvenir calme route",
    "zh": "河流 石头 早晨 书信 花园 冬天 港口 音乐 窗户 老师 市场 城堡 的 了 在 和 我们 他们 古老 小桥 人们 走过 带着 慢慢 "
    "面包 灯光 回答 之间 晚上 故事 孩子 高山 从来 反对 声音 桌子 黄色 轮船 诺言 森林 一千 蜡烛 记得 安静 道路",
}


def prose(lang: str, seed: int, words: int = 40) -> str:
    chosen = random.Random(f"{lang}{seed}").choices(WORDS[lang].split(" "), k=words)
    return ("" if lang == "zh" else " ").join(chosen) + ("。" if lang == "zh" else ".")


def document(text: str, lang: str = "en") -> dict[str, str]:
    return {"text": text, "source": "test", "lang": lang}


def many(count: int = 60) -> list[dict[str, str]]:
    return [document(prose(lang, i), lang) for i in range(count) for lang in WORDS]


def rows_below(folder: Path) -> list[dict]:
    return [row for file in sorted(folder.glob("*.jsonl.gz")) for row in iterate_rows(file)]


def content(folder: Path) -> dict[str, bytes]:
    """All files but the manifest, which holds times."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture
def make(tmp_path):
    """Writes documents into files and runs the stage over them, in this process."""

    def make(documents, validation=None, output="corpus", **options) -> Path:
        write_jsonl(tmp_path / "documents.jsonl.gz", documents)
        held_out = ()
        if validation is not None:
            write_jsonl(tmp_path / "held_out.jsonl", validation)
            held_out = (str(tmp_path / "held_out.jsonl"),)
        inputs = (str(tmp_path / "documents.jsonl.gz"),)
        return corpus.run(
            CorpusConfig(inputs, tmp_path / output, held_out, **{"validation_share": 0.2, "workers": 1} | options)
        )

    return make


@pytest.fixture
def one_worker(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_bad_inputs_of_the_stage(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.pdf").touch()
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    for inputs, message in [
        ((), "--inputs: is empty"),
        ((str(tmp_path / "nowhere.jsonl"),), "nowhere.jsonl: no such file or folder"),
        ((str(tmp_path / "empty"),), "empty: holds no file ending in .jsonl"),
        ((str(tmp_path / "a.pdf"),), "a.pdf: unknown kind of file"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            corpus.run(CorpusConfig(inputs, tmp_path / "corpus"))
    inputs = (str(tmp_path / "a.txt"),)
    for options, message in [
        ({"validation_share": 1.5}, "--validation-share 1.5: must lie between 0 and 1"),
        ({"workers": -1}, "--workers -1: must be 1 or more"),
        ({"shard_megabytes": float("inf")}, "--shard-megabytes inf: must lie between"),
        ({"lang": "de"}, "--lang de: is not among the languages to keep"),
        ({"languages": ("en", "xx")}, "'xx'"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            corpus.run(CorpusConfig(inputs, tmp_path / "corpus", **options))
    assert not (tmp_path / "corpus").exists()


# --- what stays and what goes -----------------------------------------------------------------------------------------


@pytest.fixture
def evaluation(tmp_path):
    write_jsonl(
        tmp_path / "quiz/test.jsonl", [{"question": prose("fr", 900, 30), "answer": "oui"}, {"question": "Où ?"}]
    )
    return str(tmp_path / "quiz")


def test_each_reason_drops_what_was_planted_and_nothing_else(make, evaluation):
    planted = {
        "unknown_language": document(prose("en", 1), "de"),
        "too_short": document("猫在桌子上。" + "  " * 99, "zh"),
        "too_long": document(prose("en", 11, 2000)),
        "too_many_replacement_characters": document(prose("en", 2) + "\ufffd\ufffd"),
        "too_few_letters": document(prose("en", 3) + " 1 2 3 | = %" * 60),
        "too_many_repeated_lines": document("\n".join([prose("fr", 4, 6)] * 2 + [prose("fr", 5, 6)]), "fr"),
        "wrong_language": document(prose("en", 6), "zh"),
        "contaminated": document(f"{prose('fr', 12)} {prose('fr', 900, 30).upper()} {prose('fr', 13)}", "fr"),
        "exact_duplicate": document(prose("en", 7).upper().replace(" ", ",  ")),
        "near_duplicate": document(prose("en", 14, 100).replace(" ", " so ", 1)),
        "in_validation": document(prose("zh", 8, 90)[:-8] + "！", "zh"),
    }
    kept = [
        *(document(prose("en", 7)), document(prose("en", 14, 100)), document(prose("fr", 9), "fr")),
        document(prose("zh", 10) + "OpenAI GPT", "zh"),
        document(prose("fr", 15), ""),  # not tagged: identified
    ]
    validation = [document(prose("zh", 8, 90), "zh")]
    folder = make([*kept[:2], *planted.values(), *kept[2:]], validation, max_bytes=5000, decontaminate=(evaluation,))

    assert set(planted) == {p.name.removesuffix(".jsonl.gz") for p in (folder / "rejects").iterdir()}
    for reason, row in planted.items():
        (rejected,) = read_rows(folder / f"rejects/{reason}.jsonl.gz")
        assert row["lang"] == rejected["lang"]
        assert row["text"].strip() == rejected["text"]
    assert [row["text"] for row in kept] == [row["text"] for row in rows_below(folder / "train")]
    assert [row["text"] for row in validation] == [row["text"] for row in rows_below(folder / "validation")]
    assert {"fr"} == {row["lang"] for row in rows_below(folder / "train") if row["text"] == kept[-1]["text"]}

    of_text = {row["text"]: row["id"] for split in ("train", "validation") for row in rows_below(folder / split)}
    for reason, twin in (("exact_duplicate", kept[0]), ("near_duplicate", kept[1]), ("in_validation", validation[0])):
        (rejected,) = read_rows(folder / f"rejects/{reason}.jsonl.gz")
        assert rejected["duplicate_of"] == of_text[twin["text"]]
        assert 0.8 <= rejected["jaccard"] <= 1
    (rejected,) = read_rows(folder / "rejects/wrong_language.jsonl.gz")
    assert rejected["language"] == "en"
    assert 0.65 <= rejected["language_score"] <= 1
    assert "; identified as en, score 0." in (folder / "index.html").read_text(encoding="utf-8")
    (rejected,) = read_rows(folder / "rejects/contaminated.jsonl.gz")
    assert rejected["contaminated_by"] == ["quiz/test:1:question"]

    counts = read_manifest(folder, "corpus")["counts"]
    assert {reason: {row["lang"]: 1} for reason, row in planted.items()} == counts["dropped"]
    assert {lang: row["documents"] for lang, row in counts["read"].items()} == {"de": 1, "en": 7, "fr": 4, "zh": 5}
    english = sum(len(row["text"]) for row in kept[:2])
    assert {"documents": 2, "bytes": english, "characters": english} == counts["train"]["en"]
    (found,) = counts["decontaminated"]
    assert (found["rows"], found["rows_checked"], found["rows_found"], found["documents_dropped"]) == (2, 1, 1, 1)


def test_personal_data_is_masked_and_counted(make):
    rows = [document(f"{prose('en', 1)} Write to jane.roe@corp-mail.org. {prose('en', 2)}"), *many(20)]
    folder = make(rows)
    texts = [row["text"] for split in ("train", "validation") for row in rows_below(folder / split)]
    assert sum("Write to <EMAIL>." in text for text in texts) == 1
    assert read_manifest(folder, "corpus")["counts"]["masked"] == {"en": {"email": 1}}
    assert any(
        "jane.roe@" in row["text"] for row in rows_below(make(rows, mask_pii=False, output="raw") / "train")
    ) or any("jane.roe@" in row["text"] for row in rows_below(folder.parent / "raw/validation"))


def test_near_duplicates_can_stay(make):
    twins = [document(prose("en", 14, 100)), document(prose("en", 14, 100).replace(" ", " so ", 1)), *many(20)]
    kept = [
        len(
            rows_below(
                make(twins, near_duplicates=n, output=f"c{n}", validation=[document(prose("en", 999))]) / "train"
            )
        )
        for n in (0, 0.8)
    ]
    assert kept == [62, 61]
    with pytest.raises(UserError, match=r"--near-duplicates 0\.5: must lie between 0\.7 and 1"):
        make(twins, near_duplicates=0.5, output="c3")


def test_repeated_ids_are_counted_and_drop_nothing(make):
    rows = [row | {"id": str(i % 50)} for i, row in enumerate(many(20))]
    folder = make(rows)
    counts = read_manifest(folder, "corpus")["counts"]
    assert counts["documents_with_repeated_ids"] == 10
    assert counts["dropped"] == {}
    assert "10 documents have an id that an earlier one has" in (folder / "index.html").read_text(encoding="utf-8")


def test_the_held_out_share_depends_on_the_text_alone(make):
    documents = many()
    first = make(documents)
    second = make([row | {"id": str(i)} for i, row in enumerate(reversed(documents))], output="reversed")
    held_out = {row["text"] for row in rows_below(first / "validation")}
    train = {row["text"] for row in rows_below(first / "train")}
    assert held_out == {row["text"] for row in rows_below(second / "validation")}
    assert not held_out & train
    assert {row["text"] for row in documents} == held_out | train
    assert 0.1 < len(held_out) / len(documents) < 0.3  # 0.2 of 180, three standard deviations are 0.09


def test_shards_hold_the_documents_in_order(make):
    documents = many()
    folder = make(documents, validation=[document(prose("en", 999))], shard_megabytes=0.01)
    shards = sorted((folder / "train").iterdir())
    assert [f"{i:05d}.jsonl.gz" for i in range(len(shards))] == [p.name for p in shards]
    sizes = [sum(len(row["text"].encode()) for row in read_rows(p)) for p in shards]
    assert len(sizes) > 2
    assert all(9_000 < size < 11_000 for size in sizes[:-1])
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    assert [start // 10_000 for start in starts] == list(
        range(len(sizes))
    )  # a document lies where its first byte falls
    assert [row["text"] for row in documents] == [row["text"] for row in rows_below(folder / "train")]


def test_the_page_escapes_and_shows_counts(make):
    nasty = "<script>alert('x')</script> & " + prose("en", 1)
    folder = make([*many(10), document(nasty), document("<b>short</b>")])
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;short&lt;/b&gt;" in page
    assert "fewer than 100 bytes of UTF-8, after cleaning" in page
    assert not re.search(r'(src|href)="(?!#)', page)  # self-contained


# --- whole outputs only -----------------------------------------------------------------------------------------------


def test_workers_change_no_byte(tmp_path, one_worker, monkeypatch):
    documents = [*many(), *many(20), document("short")]
    for number in range(5):
        write_jsonl(tmp_path / f"in/{number}.jsonl", documents[number::5])
    config = CorpusConfig((str(tmp_path / "in"),), tmp_path / "alone", validation_share=0.2)
    corpus.run(config)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    corpus.run(CorpusConfig(config.inputs, tmp_path / "together", validation_share=0.2))
    assert content(tmp_path / "alone") == content(tmp_path / "together")

    write_jsonl(tmp_path / "in/3.jsonl", [{"txt": "x", "lang": "en"}])
    with pytest.raises(UserError, match=re.escape("3.jsonl, line 1: has no column 'text'; did you mean 'txt'?")):
        corpus.run(CorpusConfig(config.inputs, tmp_path / "bad", validation_share=0.2))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".bad.work", "alone", "in", "together"]


def test_many_files_share_a_task_and_keep_their_order(tmp_path, one_worker, monkeypatch):
    monkeypatch.setattr(corpus, "TASK_BYTES", 16_000)
    rows = many(10)
    for number in range(5):
        write_jsonl(tmp_path / f"in/{number}.jsonl", rows[6 * number : 6 * number + 6])
    write_jsonl(tmp_path / "held_out.jsonl", [document(prose("en", 999))])
    folder = corpus.run(CorpusConfig((str(tmp_path / "in"),), tmp_path / "corpus", (str(tmp_path / "held_out.jsonl"),)))
    assert [row["text"] for row in rows] == [row["text"] for row in rows_below(folder / "train")]


def test_a_second_run_is_up_to_date_and_differences_are_named(make, capsys, tmp_path):
    folder = make(many(20))
    before = (folder / "manifest.json").read_bytes()
    capsys.readouterr()
    make(many(20))
    assert "is up to date" in capsys.readouterr().out
    assert before == (folder / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="was made with min_bytes = 100, now 50"):
        make(many(20), min_bytes=50)
    with pytest.raises(UserError, match=r"its input inputs\[0\] \(.*documents.jsonl.gz\) has changed"):
        make(many(21))
    assert before == (folder / "manifest.json").read_bytes()
    made_again = content(folder)
    make(many(20), overwrite=True)
    assert made_again == content(folder)


def test_nothing_left_is_an_error(make, tmp_path):
    with pytest.raises(UserError, match=r"no document is left to train on \(too_short 2\)"):
        make([document("a"), document("b")])
    with pytest.raises(UserError, match="no document is held out"):
        make(many(5), validation_share=1e-9)
    assert not (tmp_path / "corpus").exists()


def test_a_full_disk_leaves_finished_work_untouched(make, monkeypatch, tmp_path):
    before = content(make(many(20)))

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(steps.Examples, "offer", fail)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); .* the same command goes on"):
        make([*many(30), document("short")], overwrite=True)
    assert before == content(tmp_path / "corpus")
    monkeypatch.undo()
    assert before != content(make([*many(30), document("short")], overwrite=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "documents.jsonl.gz"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_a_killed_run_goes_on_with_what_is_missing_and_changes_no_byte(tmp_path, monkeypatch):
    for number in range(6):
        write_jsonl(tmp_path / f"in/{number}.jsonl", many(400)[number::6])
    monkeypatch.setattr(corpus, "TASK_BYTES", 20_000)
    config = CorpusConfig((str(tmp_path / "in"),), tmp_path / "corpus", validation_share=0.2)
    code = "import sys; from pathlib import Path; from septet.data import corpus; corpus.TASK_BYTES = 20_000; " + (
        "corpus.run(corpus.CorpusConfig((sys.argv[1],), Path(sys.argv[2]), validation_share=0.2))"
    )
    work = tmp_path / ".corpus.work"
    command = [sys.executable, "-c", code, str(tmp_path / "in"), str(tmp_path / "corpus")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list(work.glob("log/documents/completions/*")):
            assert process.poll() is None
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "corpus").exists()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    done = {p.name: p.stat().st_mtime_ns for p in (work / "log/documents/completions").iterdir()}
    finished = {name: (work / f"documents/{name}.jsonl").stat().st_mtime_ns for name in done}
    times: dict[str, int] = {}
    monkeypatch.setattr(corpus, "_finish", lambda *a, real=corpus._finish: (times.update(_times(work)), real(*a)))
    corpus.run(config)
    assert finished == {name: times[name] for name in finished}  # not made again
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "in"]
    corpus.run(dataclasses.replace(config, output=tmp_path / "undisturbed"))
    assert content(tmp_path / "undisturbed") == content(tmp_path / "corpus")


def _times(work: Path) -> dict[str, int]:
    return {p.stem: p.stat().st_mtime_ns for p in work.glob("documents/*.jsonl")}


def test_a_worker_that_is_killed_is_said_so_and_the_rest_is_kept(tmp_path, monkeypatch):
    for number in range(4):
        write_jsonl(tmp_path / f"in/{number}.jsonl", many(40)[number::4])
    monkeypatch.setattr(corpus, "TASK_BYTES", 8000)
    config = CorpusConfig((str(tmp_path / "in"),), tmp_path / "corpus", validation_share=0.2, workers=2)
    monkeypatch.setattr(corpus, "_run_task", _die)
    with pytest.raises(UserError, match="a worker was killed, perhaps for lack of memory; what was finished is kept"):
        corpus.run(config)
    monkeypatch.undo()
    monkeypatch.setattr(corpus, "TASK_BYTES", 8000)
    corpus.run(config)
    assert rows_below(tmp_path / "corpus/train")


def _die(executor, task):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("broken", ["write_corpus_card", "remove_work"])
def test_a_run_that_fails_at_its_end_goes_on(tmp_path, one_worker, monkeypatch, broken):
    """When the shards have left the work folder already, and when half of that folder is gone."""
    write_jsonl(tmp_path / "in/0.jsonl", many(30))
    config = CorpusConfig((str(tmp_path / "in"),), tmp_path / "corpus", validation_share=0.2, overwrite=True)

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def half(work):
        (work / "identity.json").unlink()
        shutil.rmtree(work / "documents")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if broken == "write_corpus_card":
            patch.setattr(pages, broken, fail)
        else:
            patch.setattr(corpus, broken, half)
        with pytest.raises((UserError, KeyboardInterrupt)):
            corpus.run(config)
    corpus.run(config)
    corpus.run(dataclasses.replace(config, output=tmp_path / "undisturbed"))
    assert content(tmp_path / "undisturbed") == content(tmp_path / "corpus")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "in", "undisturbed"]


def test_steps_that_run_several_tasks_count_each_once(tmp_path, monkeypatch):
    """As datatrove's Slurm executor does with tasks_per_job."""
    for number in range(4):
        write_jsonl(tmp_path / f"in/{number}.jsonl", [*many(40)[number::4], document("short")])
    monkeypatch.setattr(corpus, "TASK_BYTES", 8000)
    config = CorpusConfig((str(tmp_path / "in"),), tmp_path / "corpus", validation_share=0.2)
    work = corpus.prepare(config)
    for stage in corpus.stages(config, work):
        executor = stage.local_executor(work)
        for task in range(stage.tasks):
            executor._run_for_rank(task, local_rank=1)
    corpus.run(config)
    counts = read_manifest(tmp_path / "corpus", "corpus")["counts"]
    assert sum(row["documents"] for row in counts["read"].values()) == 124
    assert counts["dropped"]["too_short"] == {"en": 4}


def test_any_filter_of_datatrove_can_be_a_step(make, tmp_path, monkeypatch):
    from datatrove.pipeline.filters import LambdaFilter

    class Odd(LambdaFilter):
        def filter(self, doc):
            return (False, "../../Odd Reason") if "odd" in doc.text else super().filter(doc)

    added = [LambdaFilter(lambda doc: "plain" not in doc.text), Odd(lambda doc: True)]
    real = filters.quality_filters
    monkeypatch.setattr(filters, "quality_filters", lambda *a: [*real(*a), *added])
    folder = make([*many(20), document("plain " + prose("en", 1)), document("odd " + prose("en", 2))], workers=1)
    assert {p.name for p in (folder / "rejects").iterdir()} == {"filtered.jsonl.gz", "_odd_reason.jsonl.gz"}


def test_a_corpus_can_be_an_input_without_its_rejects(make, tmp_path):
    first = make([*many(20), document("short")])
    config = CorpusConfig((str(first),), tmp_path / "second", validation_share=0.2, min_bytes=1)
    assert "short" not in [row["text"] for row in rows_below(corpus.run(config) / "train")]
    for output in (first / "again", first / ".." / first.name / "again"):
        with pytest.raises(UserError, match=r"lies in the input .* and would be read as one"):
            corpus.run(dataclasses.replace(config, output=output))


def test_an_output_beside_the_input_is_none_of_its_files(tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    for number in range(5):
        (tmp_path / f"texts/{number}.txt").write_text(prose("en", number), encoding="utf-8")
    monkeypatch.chdir(tmp_path / "texts")
    config = CorpusConfig((".",), Path("../out"), validation_share=0.5, workers=1)
    sources = read_manifest(corpus.run(config), "corpus")["counts"]["sources"]
    assert set(sources["train"]) == {"en/texts"}


def test_a_language_of_copies_alone_has_no_lengths(make, monkeypatch):
    """Its documents were read and kept so far, and then each was the copy of another language's."""
    write = pages.write_corpus_page

    def with_an_empty_language(path, config, counts, kept, *more):
        write(path, config, counts, {**kept, "lengths": {**kept["lengths"], "fr": {}}}, *more)

    monkeypatch.setattr(pages, "write_corpus_page", with_an_empty_language)
    page = (make(many(10)) / "index.html").read_text(encoding="utf-8")
    lengths = page.partition("Lengths of what was kept")[2].partition("</table>")[0]
    assert "<th>en</th>" in lengths and "<th>fr</th>" not in lengths


def test_a_folder_of_texts_is_one_source(tmp_path):
    for number in range(5):
        (tmp_path / f"letters/{number}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / f"letters/{number}.txt").write_text(prose("en", number), encoding="utf-8")
    write_jsonl(tmp_path / "held.out.jsonl", [{"text": prose("en", 9)}])
    config = CorpusConfig((str(tmp_path / "letters"),), tmp_path / "corpus", (str(tmp_path / "held.out.jsonl"),))
    sources = read_manifest(corpus.run(config), "corpus")["counts"]["sources"]
    assert {split: list(names) for split, names in sources.items()} == {
        "train": ["en/letters"],
        "validation": ["en/held"],
    }


def test_names_cannot_break_the_card_or_the_page(make):
    rows = [row | {"source": "a|b\n<img src=x>\\| c"} for row in many(20)]
    rows += [document(prose("en", 50), f"x{k}") for k in range(300)]  # 300 tags that nobody asked for
    folder = make(rows, languages=("en", "fr", "zh"))
    card, page = ((folder / name).read_text(encoding="utf-8") for name in ("README.md", "index.html"))
    assert "| train | en/a\\|b &lt;img src=x>\\\\\\| c |" in card
    assert '- "en"\n' in card
    assert "<img" not in page
    assert page.count("<th>") < 60
    assert str(folder.parent) not in page


def test_other_inputs_options_or_code_start_over(tmp_path, monkeypatch, capsys):
    write_jsonl(tmp_path / "in/0.jsonl", many(30))
    config = CorpusConfig((str(tmp_path / "in"),), tmp_path / "corpus", validation_share=0.2)
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_finish", _stop)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                corpus.run(config)
    assert capsys.readouterr().out.count("corpus: goes on with what is finished in") == 1
    corpus.run(dataclasses.replace(config, min_bytes=120))
    assert "goes on" not in capsys.readouterr().out


def _stop(*_):
    raise KeyboardInterrupt


def test_two_at_once_are_refused(tmp_path):
    write_jsonl(tmp_path / "in/0.jsonl", many(30))
    config = CorpusConfig((str(tmp_path / "in"),), tmp_path / "corpus", validation_share=0.2)
    with corpus._at_work(config) as (work, _, _):
        with pytest.raises(UserError, match="another process is making it"):
            corpus.run(config)
        assert (work / "tasks.json").is_file()


def test_datatroves_own_executor_on_two_nodes_gives_the_same_bytes(tmp_path, monkeypatch):
    """As docs/corpus.md has it for Slurm and Ray: each node runs a share of the tasks, and `septet corpus` ends it."""
    from datatrove.executor.local import LocalPipelineExecutor

    for number in range(4):
        write_jsonl(tmp_path / f"in/{number}.jsonl", many(60)[number::4])
    monkeypatch.setattr(corpus, "TASK_BYTES", 8000)
    config = CorpusConfig((str(tmp_path / "in"),), tmp_path / "nodes", validation_share=0.2)
    work = corpus.prepare(config)
    for stage in corpus.stages(config, work):
        for node in range(2):
            start, end = stage.tasks * node // 2, stage.tasks * (node + 1) // 2
            if end > start:
                LocalPipelineExecutor(
                    stage.pipeline,
                    tasks=stage.tasks,
                    local_tasks=end - start,
                    local_rank_offset=start,
                    logging_dir=str(work / "log" / stage.name),
                ).run()
    monkeypatch.setattr(corpus, "_run_task", _die)  # nothing is left to run
    corpus.run(config)
    monkeypatch.undo()
    monkeypatch.setattr(corpus, "TASK_BYTES", 8000)
    corpus.run(dataclasses.replace(config, output=tmp_path / "here"))
    assert content(tmp_path / "here") == content(tmp_path / "nodes")


def test_the_folder_loads_as_a_data_set_and_its_card_says_what_is_in_it(make):
    import datasets

    folder = make([*many(30), document("short")], licenses={"test": "CC0 | own"})
    loaded = datasets.load_dataset(str(folder), cache_dir=str(folder.parent / "cache"))
    for split in ("train", "validation"):
        assert list(loaded[split]) == rows_below(folder / split)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "CC0 \\| own" in card
    assert "| too_short | fewer than 100 bytes of UTF-8, after cleaning | 1 | en 1 |" in card
    assert str(folder.parent) not in card  # it is published: no paths


def test_the_command_line_prints_one_line_and_no_traceback(tmp_path):
    command = [
        sys.executable,
        "-m",
        "septet.data.corpus",
        "--inputs",
        str(tmp_path / "no.jsonl"),
        "--output",
        str(tmp_path / "c"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert re.fullmatch(r"septet: error: .*no\.jsonl: no such file or folder; .*\n", result.stderr)


def test_manifest_numbers_add_up(make):
    folder = make([*many(30), *many(5), document("short")])
    counts = read_manifest(folder, "corpus")["counts"]
    for lang, read in counts["read"].items():
        dropped = sum(by_lang.get(lang, 0) for by_lang in counts["dropped"].values())
        kept = [counts[split].get(lang, {}).get("documents", 0) for split in ("train", "validation")]
        assert read["documents"] == sum(kept) + dropped
    assert json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]["index.html"]["bytes"] > 1000

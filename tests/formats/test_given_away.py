"""What is written is given away, and what is shown came from others: no content of strange files, no paths, no markup."""

import io
import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import winnow
from report_samples import language_model as sample
from small import classifier, write_points
from winnow.disk.links import leaves_folder, refuse_links
from winnow.errors import InputError
from winnow.naming import name_of, nameless, without_paths
from winnow.records.compression import Report
from winnow.report.compression import card
from winnow.report.draw.markdown import fenced, prose
from winnow.terminal.legible import json_for_terminal, legible_logs, visible
from winnow.terminal.screen import Console, Text

ODD = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x2066, 0x200B, 0xFEFF, 0x2028, 0xD800, 0xDCFF]))
NAMES = ["a[/x]b", "[/]", "[red]x[/red]", "\x1b[31mRED", "\x1b]0;own\x07", ":smile:", "a\nwinnow: all is well"]
NAMES += ["\x9b31m", "\u202egnp.exe", "\\[x]", "\x08\x08x"]


# Terminal -------------------------------------------------------------------------------------------------------------


@given(st.text(st.sampled_from([*ODD, *"ab[]/\\:é漢"])))
def test_visible_text_can_be_printed_and_holds_nothing_hidden(text):
    shown = visible(text)
    assert not set(shown) & set(ODD) and visible(shown) == shown
    shown.encode("utf-8")
    assert visible(text, keep="\n").count("\n") == text.count("\n")


LONE = [c for c in ODD if c != "\ud800"]  # JSON takes two halves that stand beside each other for one character


@given(
    st.recursive(
        st.text(st.sampled_from([*LONE, *'ab\\"'])), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_for_a_terminal_is_the_same_value(value):
    text = json_for_terminal(json.dumps(value, ensure_ascii=False, indent=1))
    assert not set(text) & set(ODD) - {"\n"} and json.loads(text) == value


def printed(thing, **settings):
    out = io.StringIO()
    Console(file=out, width=200, **settings).print(thing)
    return out.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_as_they_are(name):
    from rich.table import Table

    table = Table(box=None)
    table.add_column(name)
    table.add_row(name)
    table.add_row(Text(name))
    assembled = Text.assemble(("Note: ", "dim"), name)
    for thing, times in ((name, 1), (Text(name), 1), (assembled, 1), (table, 3), (Text(name).append(name), 2)):
        said = printed(thing)
        assert said.count(visible(name)) == times
        assert not set(said) & set(ODD) - {"\n"}
    assert "\x1b[1m" in printed(Text(name, style="bold"), force_terminal=True)  # styles of our own stay


@pytest.mark.parametrize("name", NAMES)
def test_no_text_of_a_report_reaches_the_terminal_unescaped(name):
    from winnow.report.compression.console import summary

    report = with_names(sample(), name)
    said = printed(summary(report))
    assert visible(name) in said and not set(said) & set(ODD) - {"\n"}


def with_names(report, name):
    """A report with ``name`` in every text that other people's files can set."""
    report = report.model_copy(deep=True)
    report.title = report.model.name = report.verdict.sentence = report.next_step = report.undo = report.command = name
    report.notes, report.task.evaluation_data, report.task.calibration_data = [name, f"x {name} y"], name, name
    for candidate in report.candidates:
        candidate.folder = name
    return report


def test_progress_shows_names_as_text():
    from winnow.terminal.bars import Picture, finished
    from winnow.terminal.screen import Console
    from winnow.terminal.tracker import Tracker

    for name in NAMES:
        tracker, out = Tracker(), io.StringIO()
        tracker(name)(1, 2, name)
        screen = Console(file=out, width=400)
        screen.print(Picture(tracker))
        screen.print(finished(tracker.stages[0]))
        assert out.getvalue().count(visible(name)) == 3 and not set(out.getvalue()) & set(ODD) - {"\n"}


def test_logs_and_warnings_are_legible():
    factory, form = logging.getLogRecordFactory(), warnings.formatwarning
    try:
        legible_logs()
        legible_logs()
        record = logging.getLogger("x").makeRecord("x", 30, "f", 1, "bad %s", ("\x1b[31m",), None)
        assert record.getMessage() == "bad \\x1b[31m"
        assert "\\x1b[2J" in warnings.formatwarning("\x1b[2J", UserWarning, "f.py", 1)
    finally:
        logging.setLogRecordFactory(factory)
        warnings.formatwarning = form


def test_a_file_of_an_installed_name_in_the_current_folder_is_not_run(tmp_path):
    for name in ("numpy", "yaml", "torch", "rich", "json", "safetensors"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('run in place of the package')\n")
    (tmp_path / "mine.py").write_text(
        "import torch, numpy\ndef net():\n    torch.manual_seed(0)\n    return torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "winnow", "inspect", "mine:net", "--json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and json.loads(done.stdout)["parameters"] == 60, done.stderr
    taken = subprocess.run(
        [sys.executable, "-m", "winnow", "inspect", "yaml:net"], cwd=tmp_path, capture_output=True, text=True
    )
    assert taken.returncode == 2 and "rename yours" in taken.stderr


# Links ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def linked(tmp_path):
    """A model folder with links of all kinds; those whose name begins with "out" leave it."""
    folder, other = tmp_path / "model", tmp_path / "other"
    (folder / "sub").mkdir(parents=True)
    other.mkdir()
    (folder / "own").write_text("own")
    (other / "secret").write_text("secret")
    (folder / "sub" / "file").write_text("own")
    links = {
        "in_relative": "own", "in_sub": "sub/file", "in_way_round": "../model/own", "in_absolute": folder / "own", "in_chain": "in_relative",
        "out_relative": "../other/secret", "out_absolute": other / "secret", "out_chain": "out_relative", "out_hidden": "sub/../../other/secret",
        "out_prefix": "../model-two/secret",
    }  # fmt: skip
    (tmp_path / "model-two").mkdir()
    (tmp_path / "model-two" / "secret").write_text("secret")
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (folder / "out_folder").symlink_to(other)
    (folder / "in_folder").symlink_to("sub")
    return folder


def test_links_that_leave_a_folder_are_known(linked, tmp_path):
    through = [linked / "out_folder" / "secret", linked / "in_folder" / "file"]
    for path in [*linked.iterdir(), *through]:
        assert leaves_folder(path, linked) == ("out" in str(path.relative_to(linked))), path
    (tmp_path / "alias").symlink_to(linked)
    assert not leaves_folder(tmp_path / "alias" / "own", tmp_path / "alias")
    with pytest.raises(InputError, match="out_relative is a link"):
        refuse_links([linked / "own", linked / "out_relative"], linked)


def test_a_snapshot_of_the_hubs_cache_may_point_to_its_blobs(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    (blobs / "x").write_text("weights")
    (tmp_path / "secret").write_text("secret")
    (blobs / "evil").symlink_to(tmp_path / "secret")
    (snapshot / "in").symlink_to("../../blobs/x")
    (snapshot / "out").symlink_to("../../blobs/evil")
    assert not leaves_folder(snapshot / "in", snapshot) and leaves_folder(snapshot / "out", snapshot)
    elsewhere = tmp_path / "models--a--b" / "model"
    elsewhere.mkdir()
    (elsewhere / "x").symlink_to("../blobs/x")
    assert leaves_folder(elsewhere / "x", elsewhere)


@pytest.mark.hf
def test_no_verb_copies_what_a_link_points_to(tmp_path):
    from families import FAMILIES

    folder = tmp_path / "model"
    next(f for f in FAMILIES if f.name == "gpt2").build().save_pretrained(folder)
    (folder / "LICENSE").write_text("own")
    (tmp_path / "secret").write_text('{"token": "SECRET"}')
    (folder / "tokenizer_x.txt").symlink_to("../secret")
    settings = dict(sparsity=0.5, method="magnitude", task="none", baselines="none", speed=False)
    result = winnow.compress(str(folder), None, out=tmp_path / "o", **settings)
    assert any("tokenizer_x.txt is not copied" in note for note in result.report.notes)
    assert (tmp_path / "o" / "LICENSE").read_text() == "own" and not (tmp_path / "o" / "tokenizer_x.txt").exists()
    (tmp_path / "o" / "notes.txt").symlink_to("../secret")
    with pytest.raises(InputError, match=r"notes\.txt is a link"):
        winnow.export_dense(tmp_path / "o", tmp_path / "e")
    assert not (tmp_path / "e").exists()
    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to("../config.json")
    with pytest.raises(InputError, match=r"config\.json is a link"):
        winnow.compress(str(folder), None, out=tmp_path / "o2", **settings)
    (folder / "config.json").unlink()
    (tmp_path / "config.json").rename(folder / "config.json")
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "generation_config.json").symlink_to("../secret")  # whatever it holds would be saved with the ticket
    with pytest.raises(InputError, match=r"generation_config\.json is a link"):
        winnow.find_ticket(str(folder), ["some text", "more text"], sparsity=0.5, out=tmp_path / "t")
    assert not list(tmp_path.glob("[te]*"))


# Names, not paths -----------------------------------------------------------------------------------------------------


def test_names_of_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    assert name_of(tmp_path / "m") == name_of("m") == name_of("./m") == name_of(str(tmp_path / "m") + "/") == "m"
    assert name_of("org/name") == "org/name" and name_of("package.module:function") == "package.module:function"
    assert name_of("~/nets/m") == "m"
    assert name_of("/c/models--org--name/snapshots/0123") == "org/name"
    config = {"_name_or_path": str(tmp_path / "m"), "text_config": {"_name_or_path": "/x/y"}, "n": 1}
    assert nameless(config) == {"_name_or_path": "m", "text_config": {"_name_or_path": "y"}, "n": 1}


def test_no_text_holds_a_path_that_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    far, link = tmp_path.parent / "far" / "data", tmp_path / "link"
    link.symlink_to(far)
    value = {
        "a": f"measured on {far}/x.jsonl", "b": [f"`winnow export '{far}'`", 3, None], f"{far}": f"{tmp_path}/out", "c": f"see {Path.home()}/x",
        "d": f"{far}{far}-dense", "e": "sub/data stays",
    }  # fmt: skip
    shown = without_paths(value, [str(far), "sub/data", None, 3, "", "link"])
    assert shown == {
        "a": "measured on data/x.jsonl", "b": ["`winnow export 'data'`", 3, None], "data": "out", "c": "see ~/x", "d": "datadata-dense",
        "e": "sub/data stays",
    } or shown["a"] == "measured on link/x.jsonl"  # fmt: skip
    assert str(tmp_path.parent) not in json.dumps(shown)


def test_a_saved_folder_says_names_wherever_it_lies(tmp_path, monkeypatch):
    """Absolute paths on every side: nothing in what is written says where."""
    far = tmp_path / "people" / "ada"
    far.mkdir(parents=True)
    monkeypatch.chdir(Path(tmp_path.anchor))
    write_points(far, 120, 120)
    result = winnow.compress(
        classifier(), str(far / "train.npz"), eval=str(far / "test.npz"), sparsity=0.5, method="magnitude", baselines="none", speed=False,
        out=far / "o",
    )  # fmt: skip
    assert str(far) in result.report.undo  # what the terminal shows can be typed
    for path in (far / "o").iterdir():
        assert str(far).encode() not in path.read_bytes(), path.name
    report = Report.model_validate_json((far / "o" / "report.json").read_text())
    assert report.task.evaluation_data == "test.npz" and "winnow export o --out o-dense" in report.undo


# The model card -------------------------------------------------------------------------------------------------------

HOSTILE = ["<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "a|b", "# x", "```\n<script>", "``<b>`", "```<b>`", "`<b>`", "x\n\n<b>y</b>", "![x](http://x/y.png)",
           "https://evil.example", "www.evil.example", "- x", "1. x", "&lt;b&gt;", "*a* _b_ ~~c~~", "</code></pre><b>", "\x1b[31m"]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_the_card_shows_names_as_text(name):
    markdown = pytest.importorskip("markdown_it")
    written = card.card(with_names(sample(), name))
    assert not set(written) & set(ODD) - {"\n"}
    page = markdown.MarkdownIt("commonmark").enable("table").render(written.split("---\n", 2)[2])
    for tag in ("<img", "<script", "<b>", "href=", "<em>", "<s>"):
        assert tag not in page, tag
    plain = (
        markdown.MarkdownIt("commonmark")
        .enable("table")
        .render(card.card(with_names(sample(), "x")).split("---\n", 2)[2])
    )
    for tag in ("<h1>", "<h2>", "<tr>", "<td", "<li>", "<p>"):
        assert page.count(tag) == plain.count(tag), tag


@given(st.text(st.sampled_from([*"ab `<>&[]()|!#*_~\\\n:."]), max_size=24))
def test_markdown_readers_see_no_sign_in_prose(text):
    markdown = pytest.importorskip("markdown_it")
    tokens = markdown.MarkdownIt("commonmark").parse("x " + prose(text))
    assert [t.type for t in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    kinds = {t.type for t in tokens[1].children}
    assert kinds <= {"text", "code_inline", "text_special"}


@given(st.text(st.sampled_from([*"a`~<>&\n "]), max_size=24))
def test_nothing_ends_a_code_block(text):
    markdown = pytest.importorskip("markdown_it")
    tokens = markdown.MarkdownIt("commonmark").parse("\n".join([*fenced(text), "", "end"]))
    assert tokens[0].type in ("fence", "html_block") and tokens[-2].content == "end"
    assert len([t for t in tokens if t.type in ("fence", "html_block")]) == 1
    if tokens[0].type == "html_block":
        assert tokens[0].content.count("<") == 4  # pre and code, opened and closed

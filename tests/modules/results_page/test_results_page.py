"""The results page: what it is made of, and the page itself in a real browser (skipped where there is no Chromium)."""

import base64
import json
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_page import attention_row, freshly_opened, ids, ink, made_attention, make_results, needs_browser, text

from data.batches import Batch
from modules.decoding import DecodingSettings, decode
from modules.errors import InputError
from modules.nets.transformer import watched
from modules.nets.visual_extractor import VisualExtractor
from modules.results_page.build import HERE, curves, metric_tables, read_scores, split_key, write_page
from modules.results_page.compare import compare, positions, relation, statements
from modules.results_page.evidence import Attention, map_side, read_evidence

HOSTILE = [
    "<script>window.hacked = 1; alert(1)</script> the heart is enlarged .",
    "</script><img src=x onerror=\"window.hacked = 2\"> <!-- {{run}} {{evidence}} --> & &amp; &lt;b&gt;",
    "quotes \" ' ` \\ ${window.hacked = 3} and a ||| b ||| c",
    "emoji \U0001fa7b\U0001f600 before a large pleural effusion \u2028 and \u202ertl\u202c .",
    "line one\nline two\r\n\r\nno pneumothorax\tis seen",
    "effusion . " * 2500,
    "",
    "   ",
]


# ------------------------------------------------------------------------------------- reference and prediction


@pytest.mark.parametrize(
    "reference, prediction, expected",
    [
        ("+", "-", "x"), ("-", "+", "x"), ("-", "?", "x"), ("+", ".", "m"), ("?", ".", "m"), (".", "+", "a"), (".", "?", "a"),
        ("+", "?", "h"), ("+", "+", "="), ("?", "?", "="), ("-", "-", "d"), ("-", ".", "n"), (".", "-", "n"), (".", ".", "."),
    ],
)  # fmt: skip
def test_relations(reference, prediction, expected):
    assert relation(reference, prediction) == expected


def test_compare_names_what_differs():
    from modules.text.labels import CHEXPERT_14

    found = compare("Small left pleural effusion. Heart size is normal.", "no pleural effusion . there is edema .")
    relations = dict(zip(CHEXPERT_14, found["relations"]))
    assert (relations["Pleural Effusion"], relations["Cardiomegaly"], relations["Edema"]) == ("x", "n", "a")
    assert relations["Fracture"] == "." and len(found["relations"]) == 14


@pytest.mark.parametrize(
    "text, phrase",
    [
        ("There is a pleural\n  effusion.", "effusion"),
        ("One.\n\n Two | three.\n\nLarge effusion here", "effusion"),
        ("\U0001fa7b\U0001f600 effusion", "effusion"),
        ("  scarringatelectasis seen", "atelectasis"),
        ("\u0130\u0130 effusion", "effusion"),
    ],
)
def test_statements_are_found_where_they_stand(text, phrase):
    """Places are those of the text as written, counted as JavaScript counts."""
    wide = text.encode("utf-16-le")
    told = {wide[2 * start : 2 * end].decode("utf-16-le") for _, _, start, end in statements(text)}
    assert any(phrase in words and len(words) <= len(phrase) + 18 for words in told), told
    assert len(positions(text, text)) == len(text) + 1


# ------------------------------------------------------------------------------------------------------ attention


def tiny_ekagen():
    from models.ekagen import EKAGen

    sizes = {"vocab_size": 20, "width": 16, "heads": 2, "inner": 16, "layers": 2, "positions": 12}
    return EKAGen(VisualExtractor("resnet18", freeze="none", dilate=False), eval_view="complete", **sizes)


def tiny_captioner():
    from models.family import FamilySystem

    sizes = {"vocab_size": 20, "width": 16, "heads": 2, "inner": 16, "layers": 2, "max_tokens": 12}
    return FamilySystem(VisualExtractor("resnet18", freeze="none", dilate=False), **sizes)


@pytest.mark.parametrize("build", [tiny_ekagen, tiny_captioner])
@torch.no_grad()
def test_attention_is_that_of_the_words_as_they_were_written(build):
    """The teacher-forced pass over a greedy report looks where the cached steps looked; an absent view gets nothing."""
    torch.manual_seed(0)
    system = build().eval()
    list(system.head.modules())[-1].bias[0] = -100  # padding is never written: within a report it would be hidden
    view_mask = torch.tensor([[True, True], [True, False]])
    memory = system.encode(Batch(["a", "b"], images=torch.randn(2, 2, 3, 64, 64), view_mask=view_mask))
    with watched(layer.cross_attention for layer in system.decoder) as seen:
        reports = decode(system, memory, DecodingSettings(max_length=9), ["a", "b"], stop=False)
    stepped = torch.stack(seen).unflatten(0, (9, 2)).mean(1)[:, :, 0].transpose(0, 1)  # [B, L, P]
    tokens = torch.tensor([[system.bos, *ids[:-1]] for ids in reports])
    found = system.attention(memory, tokens)
    assert found.shape == (2, 9, 2, 2, 2)
    torch.testing.assert_close(found.flatten(2), stepped, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.sum((2, 3, 4)), torch.ones(2, 9))
    assert found[1, :, 1].abs().max() == 0
    assert all(layer.cross_attention.seen is None for layer in system.decoder)


class Pieces:
    """A tokenizer whose ids are pieces: even ids begin a word, odd ones go on with it, 9 writes nothing."""

    def decode(self, ids):
        return "".join("" if n == 9 else f" w{n}" if n % 2 == 0 else f"-{n}" for n in ids).strip()


def test_attention_rows_hold_a_map_for_each_word():
    """Pieces of a word are averaged; ids after the end, other studies' lengths and empty reports do not matter."""
    seen = []

    def attention(memory, tokens):
        seen.append(tokens)
        maps = torch.zeros(*tokens.shape, 1, 2, 2)
        maps[..., 0, 0, 0] = 0.5
        maps[:, 0, 0, 1, 1] = 1.0
        return maps

    made = SimpleNamespace(attention=attention, bos=1, padding=0)
    watch = Attention(made, Pieces(), studies=3, views=1)
    watch(Batch(["a", "b", "c"]), {"x": torch.zeros(3)}, [[2, 3, 4], [], [9]])
    assert seen[0].tolist() == [[1, 2, 3], [0, 0, 0], [1, 0, 0]]
    assert set(watch.rows) == {"a", "c"} and watch.rows["a"]["grid"] == [1, 2, 2]
    maps = np.frombuffer(base64.b64decode(watch.rows["a"]["maps"]), np.uint8).reshape(2, 1, 2, 2)
    assert maps[0, 0].tolist() == [[255, 0], [0, 255]] and maps[1, 0].tolist() == [[255, 0], [0, 0]]
    assert watch.rows["a"]["peak"] == [0.5, 0.5] and watch.rows["a"]["text"] == "w2-3 w4"


def test_large_sets_get_coarser_maps_and_a_system_may_have_none():
    made = SimpleNamespace(attention=lambda memory, tokens: torch.rand(*tokens.shape, 1, 19, 19), bos=1, padding=0)
    watch = Attention(made, Pieces(), studies=3858, views=1)
    watch(Batch(["a"]), {"x": torch.zeros(1)}, [[2, 4]])
    assert watch.rows["a"]["grid"] == [1, map_side(3858), map_side(3858)] and watch.rows["a"]["full_grid"] == [19, 19]
    assert map_side(3858) ** 2 * 60 * 3858 * 4 / 3 < 60e6 < 19**2 * 60 * 3858
    silent = Attention(SimpleNamespace(bos=1, padding=0), Pieces(), studies=1, views=1)
    silent(Batch(["a"]), {}, [[2]])
    assert silent.rows == {}


# ------------------------------------------------------------------------------------------------------- building


def test_a_missing_image_leaves_a_note(tmp_path):
    make_results(tmp_path, [("a", "b"), ("c", "d")], images=lambda n: ("1.png", "missing.png") if n else ("2-small.png",))
    rows = dict(read_evidence(tmp_path / "evidence_test.jsonl"))
    first, second = (json.loads(rows[f"study {n}"])["images"] for n in (0, 1))
    assert first[0]["mask_used"] is False and second[0]["mask_used"] is True and second[0]["mask_share"] == 0.6
    assert second[1] == {"path": "missing.png", "seen": False, "note": "no image /missing.png"}
    assert write_page(tmp_path).name == "index.html"


def test_the_page_needs_predictions_and_metrics_only(tmp_path):
    make_results(tmp_path, [("no effusion", "large effusion")])
    (tmp_path / "evidence_test.jsonl").unlink()
    assert "study 0" in write_page(tmp_path).read_text(encoding="utf-8")
    (tmp_path / "scores_test.csv").write_text("id,a/b\nother,1\n")
    with pytest.raises(InputError, match="lacks 1 studies, such as"):
        write_page(tmp_path)
    (tmp_path / "scores_test.csv").write_text("id,a/b,c/d,e/f\nstudy 0,0.5,,nan\n")
    assert read_scores(tmp_path / "scores_test.csv", ["study 0"]) == (["a/b", "c/d", "e/f"], [[0.5, None, None]])
    write_page(tmp_path)
    (tmp_path / "scores_test.csv").unlink()
    (tmp_path / "metrics_test.json").unlink()
    with pytest.raises(InputError, match="main_test.py writes it"):
        write_page(tmp_path)


def test_tables_take_any_key():
    keys = {"r2gen/A": 1.0, "constant/r2gen/A": 0.5, "ce/rules/14/micro/u1/f1": 0.3, "studies": 3, "new/A": None}
    tables = metric_tables({**keys, "intervals": {"r2gen/A": [0.8, 1.2]}})
    assert [(row["row"], row["of"]) for row in tables[0]["rows"]] == [("r2gen", ""), ("r2gen", "constant")]
    assert tables[0]["rows"][0]["cells"] == [[1.0, 0.8, 1.2, "r2gen/A"]]
    cell = [0.3, None, None, "ce/rules/14/micro/u1/f1"]
    assert tables[1]["rows"][0] == {"row": "ce/rules/14/micro/u1", "of": "", "cells": [cell]}
    assert [table["family"] for table in tables] == ["text", "clinical", "other"]
    assert split_key("consensus/ce/rules/13/micro/u1/f1") == ("consensus", "ce/rules/13/micro/u1", "f1")


def test_curves_of_rounds_and_of_a_resumed_run(tmp_path):
    rows = [
        {"event": "round", "round": 0},
        {"event": "step", "epoch": 1, "step": 5, "loss": 2.0, "wait": 0.1},
        {"event": "epoch", "epoch": 1, "step": 10, "train/loss": 1.5, "teacher": "None"},
        {"event": "val", "epoch": 1, "val/r2gen/CIDEr": 0.2, "best": 0.2, "best_epoch": 1},
        {"event": "round", "round": 0},
        {"event": "val", "epoch": 1, "val/r2gen/CIDEr": 0.3, "best": 0.3, "best_epoch": 1},
        {"event": "round", "round": 1},
        {"event": "epoch", "epoch": 1, "step": 10, "train/loss": None},
    ]
    unfinished = '{"event": "ep'
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n" + unfinished)
    (tmp_path / "round_0").mkdir()
    first, second = curves({}, tmp_path / "round_0")["rounds"]  # the log lies in the folder above
    assert first["series"]["val/r2gen/CIDEr"] == [(1, 0.3)] and first["series"]["step/loss"] == [(0.5, 2.0)]
    assert first["name"] == "round 0" and second["series"] == {"train/loss": [(1, None)]}
    assert curves({}, tmp_path / "nowhere" / "deep")["rounds"] == []


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [":root {", ':root[data-theme="dark"] {'])
def test_contrast_meets_wcag_aa(theme):
    """Every colour of text on every ground that it is used on: 4.5 or more."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    names = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", style[style.index(theme) :].split("}")[0]))
    grounds = {
        "ink": ("ground", "panel", "raised", "accent-soft", "clash-soft", "one-soft"),
        "soft": ("ground", "panel", "raised", "accent-soft"),
        "accent": ("ground", "panel", "accent-soft"),
        "clash": ("ground", "panel", "clash-soft", "raised"),
        "one": ("ground", "panel", "one-soft", "raised"),
        "same": ("ground", "panel", "accent-soft"),
        **{f"series-{n}": ("panel",) for n in range(4)},
    }
    for colour, under in grounds.items():
        for ground in under:
            high, low = sorted((luminance(names[colour]), luminance(names[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (colour, ground)


# ------------------------------------------------------------------------------------------------- in the browser

PAIRS = [
    ("Heart size is normal. Small left pleural effusion.", "the heart is normal in size . no pleural effusion . the lungs"),
    ("The lungs are clear. No pneumothorax.", "the heart is enlarged . the lungs are clear . no pneumothorax is"),
    ("There is a large effusion. Mild edema.", "there is a large effusion . the lungs are clear . no edema"),
]
NORMAL = [("The lungs are clear.", "the lungs are clear . no effusion")] * 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pairs = PAIRS + NORMAL
    knowledge = {"knowledge_distance": "1", "knowledge_id": "t7", "knowledge_report": "Heart <b>large</b>."}
    root = make_results(
        tmp_path_factory.mktemp("results") / "run",
        pairs,
        attention=made_attention(pairs),
        images=lambda n: ("missing.png",) if n == 2 else (f"{n}.png", "1.png"),
        more=lambda n: {"diagnosis": "Cardiomegaly|Edema" if n == 1 else "", **knowledge},
        metrics={"intervals": {"r2gen/BLEU_4": [0.05, 0.15]}, "subsets": {"abnormal": {"studies": 7, "r2gen/BLEU_4": 0.012}}},
    )
    log = [{"event": "epoch", "epoch": n, "step": n, "train/loss": 1 / n, "wait": 0.1} for n in (1, 2, 3)]
    (root / "log.jsonl").write_text("\n".join(map(json.dumps, log)))
    write_page(root)
    return root


@pytest.fixture
def page(browser, folder):
    yield from freshly_opened(browser, folder)


@needs_browser
def test_list_search_filter_and_sort(page):
    assert text(page, "#count") == "63 studies"
    assert len(ids(page)) < 30  # a few dozen rows at most, whatever the set's size
    page.choose("#search", "ENLARGED study")
    assert ids(page) == ["study 1"] and "1 of 63" in text(page, "#count")
    page.choose("#search", "")
    page.choose("#filter-relation", "x")
    assert ids(page) == ["study 0", "study 2"]
    page.choose("#filter-label", page.run("String(RUN.labels.indexOf('Edema'))"))
    assert ids(page) == ["study 2"]
    page.choose("#filter-relation", "misdiagnosed")
    assert ids(page) == ["study 1", "study 2"]
    page.choose("#filter-label", "")
    page.choose("#filter-relation", "")
    page.choose("#sort", "0")
    worst = ids(page)
    page.choose("#order", "best")
    assert worst[0] in ("study 1", "study 2", "study 0") and ids(page)[0] == "study 3"
    values = page.run("order.map((n) => STUDIES[n].scores[0])")
    assert values == sorted(values, reverse=True) and len(values) == 63


@needs_browser
def test_a_clicked_word_shows_its_attention_and_adm_can_be_hidden(page):
    assert ink(page, "attention-canvas") == 0 and ink(page, "mask-canvas") > 0
    page.click('#prediction [data-word="2"]')
    assert ink(page, "attention-canvas") > 0
    assert "word 3: the strongest patch holds 25%" in text(page, "#viewer")
    assert "ADM keeps 60% of the image" in text(page, "#viewer")
    page.press("ArrowRight")
    assert "word 4" in text(page, "#viewer")
    assert page.run("document.querySelectorAll('#prediction [aria-pressed=\"true\"]').length") == 1
    page.press("a")
    assert ink(page, "mask-canvas") == 0 and ink(page, "attention-canvas") > 0
    page.click("#mask")
    assert ink(page, "mask-canvas") > 0
    page.choose("#strength", "0")
    assert ink(page, "attention-canvas") == 0
    page.press("Escape")
    assert "Select a word" in text(page, "#viewer")


@needs_browser
def test_contradictions_jump_to_the_eye(page):
    marks = page.run("[...document.querySelectorAll('#prediction mark.x, #reference mark.x')].map((mark) => mark.textContent)")
    assert len(marks) == 2 and all("\u2260" in text and "denied" in text for text in marks)
    styles = page.run(
        "(() => { const s = getComputedStyle(document.querySelector('mark.x')); return [s.borderBottomStyle, s.fontWeight]; })()"
    )
    assert styles[0] == "double" and int(styles[1]) > 600  # a line and weight, not colour alone
    assert text(page, ".findings tbody tr").endswith("\u2260 contradicted")
    page.press("j")
    chips = page.run("[...document.querySelectorAll('.chips li')].map((chip) => chip.textContent)")
    assert chips[0].startswith("+ Cardiomegaly") and "oracle" in text(page, "#diagnosis")
    assert "Heart <b>large</b>." in text(page, "#knowledge")


@needs_browser
def test_keyboard_alone(page):
    assert text(page, "#detail h2") == "study 0" and page.run("document.activeElement.id") == "list"
    page.press("j", "ArrowDown")
    assert text(page, "#detail h2") == "study 2" and "no image" in text(page, "#viewer")
    page.press("k")
    assert text(page, "#detail h2") == "study 1" and page.run("location.hash") == "#studies/study%201"
    page.press("/", "e", "d", "e", "m", "a")
    assert page.run("document.getElementById('search').value") == "edema" and text(page, "#detail h2") == "study 2"
    page.press("Enter", "Enter")
    assert page.run("document.activeElement.dataset.word") == "0"
    page.press("Enter")
    assert "word 1" in text(page, "#viewer")
    page.press("Escape", "Escape", "Escape")
    assert page.run("document.getElementById('search').value") == "" and len(ids(page)) > 3
    page.press("End")
    assert text(page, "#detail h2") == "study 62"
    assert "study 62" in text(page, "#" + page.run("document.getElementById('list').getAttribute('aria-activedescendant')"))
    page.press("?")
    assert page.run("document.getElementById('help').open") is True
    page.press("Escape")


@needs_browser
def test_scores_training_run_and_theme(page):
    page.click('#tabs a[href="#scores"]')
    page.wait("document.body.dataset.view === 'scores'")
    tile = ("0.050\u20130.150", "7 abnormal studies: 0.012", "constant report")
    for part in (*tile, "XProNet (oracle labels)", "oracle", "n/a", "no Java"):
        assert part in text(page, "#view-scores"), part
    page.click("#findings button")  # a count leads to its studies
    page.wait("document.body.dataset.view === 'studies'")
    assert 0 < len(ids(page)) < 63
    page.click('#tabs a[href="#training"]')
    page.wait("document.body.dataset.view === 'training'")
    assert page.run("document.querySelectorAll('.chart svg path').length") == 1
    page.click('.choice input[value="wait"]')
    page.wait("document.querySelectorAll('.chart svg path').length === 2")
    page.click('#tabs a[href="#run"]')
    page.wait("document.body.dataset.view === 'run'")
    assert "theta" in text(page, "#view-run")
    page.media(scheme="dark")
    page.wait("getComputedStyle(document.body.parentNode).backgroundColor === 'rgb(14, 19, 23)'")
    page.click("#theme")
    assert page.run("document.documentElement.dataset.theme") == "light"
    page.media(kind="print", scheme="dark")
    assert page.run("getComputedStyle(document.querySelector('nav')).display") == "none"


@needs_browser
def test_hostile_reports_stay_text(browser, tmp_path):
    pairs = [(text, text) for text in HOSTILE] + [("no effusion", text) for text in HOSTILE]
    make_results(tmp_path / "run", pairs, attention=made_attention(pairs), more=lambda n: {"knowledge_report": HOSTILE[0]})
    browser.errors.clear()
    browser.media()
    browser.open(write_page(tmp_path / "run"), "#studies")
    browser.loaded()
    for number, (reference, prediction) in enumerate(pairs):
        shown = browser.run(
            """["reference", "prediction"].map((id) => {
              const body = document.querySelector(`#${id} .body`).cloneNode(true);
              body.querySelectorAll(".sign, .hidden-text").forEach((node) => node.remove());
              return body.textContent;
            })"""
        )
        blank = "(no word)"
        assert shown == [reference if reference.split() else blank, prediction if prediction.split() else blank], number
        if prediction.split():
            browser.click("#prediction [data-word]")
            assert ink(browser, "attention-canvas") > 0
            browser.press("Escape", "Escape")
        browser.press("j")
    browser.choose("#search", "<script>")
    assert ids(browser) == ["study 0", "study 8"]
    assert browser.run("window.hacked") is None and browser.errors == []
    assert browser.run("document.querySelectorAll('#detail script, #detail img:not([src^=data])').length") == 0


@needs_browser
def test_what_was_not_kept_is_said(browser, tmp_path, monkeypatch):
    monkeypatch.setattr("modules.results_page.evidence.AT_MOST", 50_000)
    made = make_results(tmp_path / "run", NORMAL + NORMAL, attention={"study 1": attention_row("another report", 4)})
    assert len(list(read_evidence(made / "evidence_test.jsonl"))) == 64
    browser.errors.clear()
    browser.media()
    browser.open(write_page(tmp_path / "run"), "#studies/study%20100")
    browser.loaded()
    assert text(browser, "#detail h2") == "study 100" and "would have become too large" in text(browser, "#viewer")
    browser.press("Home")
    assert "No attention: this system does not offer it" in text(browser, "#viewer")
    browser.press("j")  # attention of a report that is not the one in the predictions file
    assert "is not the one whose attention was kept" in text(browser, "#viewer")
    assert browser.run("document.querySelector('[data-word]')") is None and browser.errors == []


@needs_browser
@pytest.mark.slow
def test_a_test_set_as_large_as_mimic_opens_at_once(browser, tmp_path):
    """3,858 studies with image, mask and attention: first view in under 3 s, under 200 MB, few elements."""
    count, draw = 3858, random.Random(0)
    said = ["the heart is enlarged .", "no pleural effusion .", "small left effusion .", "the lungs are clear .", "mild edema ."]
    report = lambda: " ".join(draw.choices(said, k=14))  # noqa: E731
    pairs = [(report(), report()) for _ in range(count)]
    seen = {f"study {n}": attention_row(told, map_side(count)) for n, (_, told) in enumerate(pairs)}
    make_results(tmp_path / "run", pairs, attention=seen)
    path = write_page(tmp_path / "run")
    size = path.stat().st_size / 1e6
    browser.errors.clear()
    browser.media()
    seconds = browser.open(path, "#studies")
    browser.loaded()
    rows = len(ids(browser))
    browser.press("End")
    browser.click("#prediction [data-word]")
    assert text(browser, "#detail h2") == f"study {count - 1}" and ink(browser, "attention-canvas") > 0
    print(f"\n{count} studies: {size:.0f} MB, first view after {seconds:.2f} s, {rows} rows in the document")
    assert seconds < 3 and size < 200 and 5 < rows < 40 and browser.errors == []


# ---------------------------------------------------------------------------------------------------- TensorBoard


def test_the_log_goes_to_tensorboard_where_that_is_installed(tmp_path, monkeypatch):
    """Numbers reach a writer with the interface of torch.utils.tensorboard; without the package only log.jsonl is made."""
    from modules import run_folder

    told = []
    writer = SimpleNamespace(add_scalar=lambda *values: told.append(values), flush=lambda: None, close=lambda: None)
    monkeypatch.setattr(run_folder, "open_tensorboard", lambda folder: writer)
    log = run_folder.RunLog(tmp_path)
    log.write("round", round=1, teacher="a.pt")
    log.write("step", epoch=1, step=50, ce=0.5, loss=float("nan"))
    log.write("val", epoch=2, **{"val/r2gen/CIDEr": 0.3}, best=0.3, best_epoch=1)
    log.close()
    assert told == [("round_1/step/ce", 0.5, 50), ("round_1/val/r2gen/CIDEr", 0.3, 2), ("round_1/best", 0.3, 2)]
    monkeypatch.undo()
    monkeypatch.setattr(run_folder.importlib.util, "find_spec", lambda name: None)
    run_folder.RunLog(tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]

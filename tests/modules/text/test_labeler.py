"""The rule-based labeler: probe sentences per label and idiom, label tables, the command, the measured agreement.

All sentences are made up for this file.
"""

import csv
import gzip
import json
import time

import numpy as np
import pytest
from conftest import SHARED

from knowledge import label_reports as command
from modules.errors import InputError
from modules.text import labeler
from modules.text.labeler import label_report, label_reports, positive_labels
from modules.text.labels import CHEXPERT_14, NO_FINDING, read_label_table, write_label_table

SHORT = {
    "at": "Atelectasis", "cm": "Cardiomegaly", "co": "Consolidation", "ed": "Edema", "ec": "Enlarged Cardiomediastinum",
    "fr": "Fracture", "ll": "Lung Lesion", "lo": "Lung Opacity", "nf": "No Finding", "pe": "Pleural Effusion",
    "po": "Pleural Other", "pn": "Pneumonia", "px": "Pneumothorax", "sd": "Support Devices",
}  # fmt: skip
SIGNS = {"+": "positive", "-": "negative", "?": "uncertain"}

# "at+ pe-": what must come out; labels that are not named must be absent (No Finding is derived: checked where named)
PROBES = [
    # each label, affirmed
    ("Linear atelectasis at the left base.", "at+"),
    ("There is complete collapse of the right upper lobe.", "at+"),
    ("Moderate cardiomegaly.", "cm+"),
    ("The heart is mildly enlarged.", "cm+"),
    ("The cardiac silhouette remains markedly enlarged.", "cm+"),
    ("Stable enlargement of the cardiac silhouette.", "cm+"),
    ("Borderline heart size.", "cm?"),
    ("Dense consolidation in the left lower lobe.", "co+"),
    ("Worsening pulmonary edema.", "ed+"),
    ("There is mild pulmonary vascular congestion.", "ed+"),
    ("Widened mediastinum.", "ec+"),
    ("The mediastinum is widened.", "ec+"),
    ("Bulky mediastinal lymphadenopathy.", "ec+"),
    ("The cardiomediastinal silhouette is enlarged.", "ec+"),
    ("Displaced fracture of the left clavicle.", "fr+"),
    ("Healed right rib fractures.", "fr+"),
    ("A 9 mm nodule projects over the right apex.", "ll+"),
    ("Spiculated mass in the lingula.", "ll+"),
    ("Patchy opacities at both bases.", "lo+"),
    ("Right infrahilar air-space disease.", "lo+"),
    ("Diffuse reticular markings with apical scarring.", "lo+"),
    ("Layering left pleural effusion.", "pe+"),
    ("Large hydropneumothorax on the left.", "pe+ px+"),
    ("Biapical pleural thickening.", "po+"),
    ("Calcified pleural plaques.", "po+"),
    ("Lobar pneumonia on the right.", "pn+"),
    ("Tiny left apical pneumothorax.", "px+"),
    ("Left subclavian PICC line tip in the mid SVC.", "sd+"),
    ("Dual-chamber pacemaker leads are in place.", "sd+"),
    ("Endotracheal tube ends 4 cm above the carina.", "sd+"),
    # nothing to find
    ("No acute cardiopulmonary process.", "nf+"),
    ("Clear lungs.", "nf+"),
    ("Heart size is normal.", "cm- nf+"),
    ("Heart size within normal limits. Lungs are clear.", "cm- nf+"),
    ("The heart is not enlarged.", "cm- nf+"),
    ("Heart size at the upper limits of normal.", "cm- nf+"),
    ("The cardiomediastinal silhouette is unremarkable.", "cm- ec- nf+"),
    ("The heart, mediastinum and lungs are normal.", "cm- ec- nf+"),
    ("Hyperexpanded lungs. Degenerative changes of the spine.", "nf+"),
    ("Right port tip in the right atrium. Chest port unchanged. No acute process.", "sd+ nf+"),
    # negation before, with lists
    ("No focal consolidation, pleural effusion or pneumothorax.", "co- pe- px- nf+"),
    ("No focal consolidation, large effusion, or pneumothorax is seen.", "co- pe- px-"),
    ("no pneumothorax , effusion , or edema .", "px- pe- ed-"),
    ("There is no evidence of pneumonia.", "pn-"),
    ("The lungs are clear of focal airspace disease, edema, or effusion.", "lo- ed- pe-"),
    ("Lungs are free of infiltrate.", "lo-"),
    ("Negative for fracture.", "fr-"),
    ("Cardiomegaly without edema or effusion.", "cm+ ed- pe-"),
    ("Neither effusion nor pneumothorax.", "pe- px-"),
    ("The chest does not show consolidation.", "co-"),
    ("No findings to suggest pneumonia.", "pn-"),
    ("Interval resolution of the left effusion.", "pe-"),
    ("Interval removal of the right chest tube.", "sd-"),
    ("Atelectasis rather than pneumonia.", "at+ pn-"),
    ("Absence of pneumothorax.", "px-"),
    # negation after
    ("The left effusion has resolved.", "pe-"),
    ("Previously described nodule is no longer seen.", "ll-"),
    ("Pneumothorax is not identified.", "px-"),
    ("Pleural effusion and pneumothorax are not present.", "pe- px-"),
    ("The nasogastric tube has been removed.", "sd-"),
    ("Pneumonia has been ruled out.", "pn-"),
    ("A nodule is not seen on the lateral view.", "ll+"),
    # no change is not an absence
    ("No significant change in left pleural effusion.", "pe+"),
    ("No interval change in cardiomegaly.", "cm+"),
    ("The effusion has not completely resolved.", "pe+"),
    ("Stable small pneumothorax.", "px+"),
    # where a negation ends
    ("No pneumothorax, but a small effusion persists.", "px- pe+"),
    ("No consolidation; however, there is mild edema.", "co- ed+"),
    ("No acute process except for bibasilar atelectasis.", "at+"),
    ("No pneumothorax with stable left effusion.", "px- pe+"),
    ("No effusion, mild cardiomegaly.", "pe- cm+"),
    ("No pneumothorax and unchanged bibasilar opacities.", "px- lo+"),
    ("Clear of consolidation aside from minor atelectasis.", "co- at+"),
    ("No edema, there is a left effusion.", "ed- pe+"),
    ("Cardiomegaly otherwise no effusion.", "cm+ pe-"),
    ("Without effusion\nor pneumothorax.", "pe- px-"),
    ("No effusion - rib fracture on the left.", "pe- fr+"),
    ("1. No pneumothorax 2. Left effusion", "px- pe+"),
    # uncertainty
    ("Basilar opacity may represent pneumonia.", "lo+ pn?"),
    ("Small effusion cannot be excluded.", "pe?"),
    ("Cannot exclude early pneumonia.", "pn?"),
    ("A tiny pneumothorax is not excluded.", "px?"),
    ("Atelectasis versus pneumonia.", "at? pn?"),
    ("Atelectasis vs. infiltrate at the base.", "at? lo?"),
    ("Opacity concerning for infection.", "lo+ pn?"),
    ("Possible small left effusion, no pneumothorax.", "pe? px-"),
    ("Probable atelectasis; pneumonia is possible.", "at? pn?"),
    ("Atelectasis or infection at the right base.", "at? pn?"),
    ("Question of a nodule at the apex.", "ll?"),
    ("Findings suggestive of interstitial edema.", "ed?"),
    ("No consolidation, although pneumonia cannot be ruled out.", "co- pn?"),
    ("Opacity consistent with pneumonia.", "lo+ pn+"),
    # words that only look like a finding
    ("Pericardial effusion is not the point here, mass effect neither.", ""),
    ("Subcutaneous edema of the chest wall.", ""),
    ("History of pneumonia.", ""),
    ("Nodular opacity in the right lung.", "ll+"),
    ("Pleural scarring at the left base.", "po+"),
    ("Congestive heart failure.", "ed+ cm?"),
    ("No heart failure.", "ed-"),
    ("Signs of mild cardiac failure.", "ed+ cm?"),
    ("Marked interval increase in heart size.", "cm+"),
    ("Pneumothorax has not recurred.", "px-"),
    ("The lungs are clear (a small effusion may be hidden by the breast).", "pe?"),
    ("small left base scarringatelectasis and effusion", "lo+ at+ pe+"),
    ("The heart is enlarged stable mediastinal contour.", "cm+"),
    # several mentions: positive before uncertain before negative
    ("No left effusion. Small right effusion.", "pe+"),
    ("No definite effusion. A trace effusion may be present.", "pe?"),
    ("XXXX opacity in the XXXX, XXXX atelectasis.", "lo+ at+"),
    # two styles of a whole report
    (
        "The lungs are well expanded. There is no focal consolidation,\n pleural effusion or pneumothorax. The "
        "cardiomediastinal\n silhouette is within normal limits. No acute osseous abnormalities.",
        "co- pe- px- cm- ec- nf+",
    ),
    (
        "interval placement of a right ij central venous catheter . low lung volumes accentuate the bronchovascular "
        "markings . bibasilar opacities likely reflect atelectasis , though superimposed infection is not excluded . "
        "no pneumothorax",
        "sd+ lo+ at? pn? px-",
    ),
]


@pytest.mark.parametrize("text, expected", PROBES, ids=[text[:40] for text, _ in PROBES])
def test_probe(text, expected):
    wanted = {SHORT[item[:2]]: SIGNS[item[2]] for item in expected.split()}
    got = {label: mention.state for label, mention in label_report(text).items() if mention.state != "absent"}
    if NO_FINDING not in wanted:
        got.pop(NO_FINDING, None)
    assert got == wanted


@pytest.mark.parametrize("label", CHEXPERT_14)
def test_every_label_has_probes(label):
    assert sum(label in {SHORT[item[:2]] for item in expected.split()} for _, expected in PROBES) >= 2


def test_phrase_is_in_the_text():
    text = "Heart size is\n  normal. Small  LEFT pleural effusion."
    mentions = label_report(text)
    assert tuple(mentions) == CHEXPERT_14
    assert mentions["Pleural Effusion"] == ("positive", "effusion")
    assert mentions["Cardiomegaly"] == ("negative", "Heart size is normal")
    assert mentions["Pneumonia"] == ("absent", "")


def test_blank_reports_have_no_label_at_all():
    for text in ("", "  \n "):
        assert {mention.state for mention in label_report(text).values()} == {"absent"}


@pytest.mark.parametrize("text", [None, float("nan"), 3, ["a report"]])
def test_only_text_is_a_report(text):
    with pytest.raises(InputError, match="must be text"):
        label_report(text)


def test_strange_letters_do_not_move_the_phrase():
    assert label_report("İİİ Pneumothorax. \u00a0")["Pneumothorax"] == ("positive", "Pneumothorax")


def test_uncertain_counts_as_asked():
    mentions = label_report("Cardiomegaly. Possible pneumonia. No effusion.")
    i, j = CHEXPERT_14.index("Pneumonia"), CHEXPERT_14.index("Cardiomegaly")
    assert (positive_labels(mentions)[i], positive_labels(mentions)[j]) == (1, 1)
    assert (positive_labels(mentions, uncertain_positive=False)[i]) == 0
    kept = label_reports(["Possible pneumonia.", ""], uncertain="keep")
    assert kept.shape == (2, 14) and kept.dtype == np.int8
    assert kept[0, i] == -1 and not kept[1].any()
    with pytest.raises(InputError, match="choose from"):
        label_reports(["a"], uncertain="perhaps")
    assert label_reports([]).shape == (0, 14)


def test_an_uncertain_finding_is_not_no_finding():
    values = positive_labels(label_report("Possible pneumonia."), uncertain_positive=False)
    assert sum(values) == 0


def test_labels_do_not_depend_on_neighbours_or_order():
    texts = [text for text, _ in PROBES]
    together = label_reports(texts)
    labeler.read_clause.cache_clear()
    assert np.array_equal(label_reports(texts[::-1])[::-1], together)


def test_two_thousand_reports_a_second():
    text = " ".join(text for text, _ in PROBES[:6])
    texts = [f"Study {n} of {n * 7}. {text} Size {n} mm." for n in range(1500)]
    start = time.process_time()
    label_reports(texts)
    assert len(texts) / (time.process_time() - start) > 1000  # 2,000 and more on an idle core


# -------------------------------------------------------------------------------------------------------- tables


def write_rows(path, header, rows, opener=open):
    with opener(path, "wt", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_table_round_trip(tmp_path):
    rows = [("train", "a", [1] + [0] * 13), ("test", "b", [0] * 13 + [-1])]
    write_label_table(tmp_path / "t.csv", rows)
    assert read_label_table(tmp_path / "t.csv") == {"a": [1] + [0] * 13, "b": [0] * 13 + [1]}
    assert read_label_table(tmp_path / "t.csv", uncertain="negative")["b"][-1] == 0
    assert read_label_table(tmp_path / "t.csv", uncertain="ignore")["b"][-1] == -1
    assert read_label_table(tmp_path / "t.csv", labels=("Support Devices", "Atelectasis"))["a"] == [0, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]
    for bad in ([("train", "a", [2] * 14)], [("train", "a", [1])], rows + rows):
        with pytest.raises(InputError):
            write_label_table(tmp_path / "t.csv", bad)
    assert set(read_label_table(tmp_path / "t.csv")) == {"a", "b"}


def test_mimic_and_chexbert_tables(tmp_path):
    header = ["subject_id", "study_id", *reversed(CHEXPERT_14)]
    cells = ["1.0", "0.0", "-1.0", *[""] * 11]
    path = write_rows(tmp_path / "mimic.csv.gz", header, [["1", "500", *cells], ["1", "501", *[""] * 14]], gzip.open)
    table = read_label_table(path, uncertain="ignore")
    assert table["500"][::-1] == [1, 0, -1] + [0] * 11 and not any(table["501"])
    path = write_rows(tmp_path / "chexbert.csv", ["Report Impression", *CHEXPERT_14], [["two\nlines", *cells]])
    assert read_label_table(path) == {"0": [1, 0, 1] + [0] * 11}
    assert set(read_label_table(path, ids=["x"])) == {"x"}
    with pytest.raises(InputError, match="1 rows, 2 ids"):
        read_label_table(path, ids=["x", "y"])


@pytest.mark.parametrize(
    "header, rows, message",
    [
        (["id", *CHEXPERT_14[2:]], [], "no column Atelectasis, Cardiomegaly"),
        (["id", *CHEXPERT_14], [["a", *"0" * 14], ["a", *"0" * 14]], "line 3: id 'a' occurs twice"),
        (["id", *CHEXPERT_14], [["a", *"0" * 13, "yes"]], "line 2: Support Devices is 'yes'"),
        (["id", *CHEXPERT_14], [["a", "0"]], "line 2: 2 cells"),
        (["id", *CHEXPERT_14], [["", *"0" * 14]], "id is empty"),
    ],
)
def test_bad_tables_say_what_is_wrong(tmp_path, header, rows, message):
    with pytest.raises(InputError, match=message):
        read_label_table(write_rows(tmp_path / "t.csv", header, rows))


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(InputError, match="no label table"):
        read_label_table(tmp_path / "none.csv")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"id,a\n" * 1000)[:30])
    with pytest.raises(InputError):
        read_label_table(tmp_path / "cut.csv.gz")


# ------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def annotation(tmp_path):
    study = {"image_path": ["a.png"], "split": "train"}
    content = {
        "train": [
            {"id": "one", "report": "Possible pneumonia.", **study},
            {"id": 2, "report": "Clear lungs.", **study},
        ],
        "val": [{"id": "three", "report": "Moderate cardiomegaly.", **study}],
        "test": [],
    }
    path = tmp_path / "annotation.json"
    path.write_text(json.dumps(content))
    return path


def test_command_labels_an_annotation(annotation, tmp_path, capsys):
    out, phrases = tmp_path / "labels.csv", tmp_path / "phrases.json"
    command.main(["--ann_path", str(annotation), "--out", str(out), "--uncertain", "keep", "--phrases", str(phrases)])
    assert out.read_text().splitlines()[0] == "split,id," + ",".join(CHEXPERT_14)
    table = read_label_table(out, uncertain="ignore")
    assert set(table) == {"one", "2", "three"} and table["one"][CHEXPERT_14.index("Pneumonia")] == -1
    manifest = json.loads((tmp_path / "labels.csv.json").read_text())
    assert manifest["labeler"] == labeler.VERSION and manifest["uncertain"] == "keep"
    assert manifest["labels"] == list(CHEXPERT_14) and len(manifest["source_sha256"]) == 64 and manifest["date"]
    assert json.loads(phrases.read_text())["three"]["Cardiomegaly"] == ["positive", "cardiomegaly"]
    assert "3 reports" in capsys.readouterr().out


def test_command_shows_one_text(capsys):
    command.main(["--text", "No effusion."])
    assert "negative   effusion" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--ann_path", "nowhere.json", "--out", "x.csv"], "nowhere.json cannot be read"),
        (["--ann_path", "nowhere.json"], "--ann_path needs --out"),
        (["--agreement", "x.csv"], "--agreement needs --texts"),
        (["--agreement", "none.csv", "--texts", "none.csv"], "no label table"),
    ],
)
def test_command_says_what_is_wrong(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        command.main(flags)
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_command_refuses_a_broken_annotation(tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text('{"train": [{"id": "a"}, {"id": "b", "report": "x"}, {"id": "b", "report": "y"}]}')
    with pytest.raises(SystemExit):
        command.main(["--ann_path", str(path), "--out", str(tmp_path / "o.csv")])
    said = capsys.readouterr().err
    assert "train[0] needs an id and a report" in said and "train[2]: id 'b' occurs twice" in said


def test_agreement_counts(tmp_path, capsys):
    texts = write_rows(tmp_path / "t.csv", ["id", "impression"], [["a", "Pneumonia."], ["b", "Edema."], ["c", "."]])
    values = {"a": "Pneumonia", "b": "Pneumonia", "c": NO_FINDING}
    theirs = tmp_path / "l.csv"
    write_label_table(theirs, [("train", k, [int(label == v) for label in CHEXPERT_14]) for k, v in values.items()])
    command.main(["--agreement", str(theirs), "--texts", str(texts)])
    said = capsys.readouterr().out
    assert "micro-F1 of 13 findings 0.5000" in said  # one hit, one false, one missed
    result = command.agreement(read_label_table(theirs), command.read_texts(texts, "impression"), values)
    assert result["labels"]["Pneumonia"] == (1.0, 0.5, pytest.approx(2 / 3), 2)
    assert result["macro_14"] == pytest.approx((2 / 3 + 1) / 14)
    with pytest.raises(InputError, match="have no text"):
        command.agreement({"z": [0] * 14}, {}, ["z"])


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the developers' shared folder is not here")
def test_agreement_on_studies_that_no_rule_was_written_on(capsys):
    folder = SHARED / "iu_xray"
    result = command.show_agreement(folder / "chexbert_labels.csv", folder / "sections.csv", "impression", True)
    assert result["reports"] > 900
    assert result["micro_13"] >= 0.95 and result["macro_14"] >= 0.90, capsys.readouterr().out

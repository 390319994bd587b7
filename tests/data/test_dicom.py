"""Histogram equalisation and DICOM: grey levels against calculations by hand."""

from fractions import Fraction

import numpy as np
import pytest

from data.equalize import equalize
from modules.errors import InputError


def by_hand(grey: np.ndarray) -> np.ndarray:
    """The formula in exact fractions, pixel by pixel of the 256 levels; Python rounds halves to even."""
    counts = [int((grey == level).sum()) for level in range(256)]
    lowest = next(level for level in range(256) if counts[level])
    rest = grey.size - counts[lowest]
    if rest == 0:
        return grey
    levels = [round(Fraction(255 * max(sum(counts[: g + 1]) - counts[lowest], 0), rest)) for g in range(256)]
    return np.array(levels, dtype=np.uint8)[grey]


def test_equalize_is_the_formula():
    draw = np.random.default_rng(4)
    for side in (1, 2, 7, 64, 300):
        for low, high in ((0, 255), (100, 103), (250, 255), (0, 1), (9, 9)):
            grey = draw.integers(low, high + 1, (side, side + 3)).astype(np.uint8)
            assert np.array_equal(equalize(grey), by_hand(grey))


def test_equalize_by_hand():
    grey = np.array([[10, 10, 20, 30]], dtype=np.uint8)  # 20: 255 * (3 - 2) / 2 = 127.5, to the even 128
    assert equalize(grey).tolist() == [[0, 0, 128, 255]]
    one = np.full((3, 3), 77, dtype=np.uint8)
    assert np.array_equal(equalize(one), one)


@pytest.mark.parametrize("wrong", [np.zeros((2, 2)), np.zeros((2, 2, 3), np.uint8), np.zeros((0, 2), np.uint8)])
def test_equalize_refuses_what_is_no_grey_image(wrong):
    with pytest.raises(ValueError, match="uint8"):
        equalize(wrong)


def make(path, pixels, **elements):
    """A small CR file of unsigned 16-bit `pixels`; `elements` by keyword, None leaves one out."""
    pydicom = pytest.importorskip("pydicom")
    record = pydicom.Dataset()
    record.file_meta = pydicom.dataset.FileMetaDataset()
    record.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    record.file_meta.MediaStorageSOPClassUID = record.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    record.file_meta.MediaStorageSOPInstanceUID = record.SOPInstanceUID = pydicom.uid.generate_uid()
    values = {
        "Modality": "CR", "PhotometricInterpretation": "MONOCHROME2", "SamplesPerPixel": 1, "BitsAllocated": 16,
        "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0, "Rows": pixels.shape[0], "Columns": pixels.shape[1],
        "PatientName": "Doe^Jane", "PatientBirthDate": "19500101", **elements,
    }  # fmt: skip
    for name, value in values.items():
        if value is not None:
            setattr(record, name, value)
    record.PixelData = pixels.astype("<u2").tobytes()
    record.save_as(path, enforce_file_format=True)
    return path


def lut(first: int, bits: int, table: list[int]):
    pydicom = pytest.importorskip("pydicom")
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(table), first, bits])
    item.add_new("LUTData", "US", table)
    return [item]


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def close(path, expected, rule="voi"):
    from data.dicom import read_dicom

    shown = read_dicom(path, rule)
    assert shown.dtype == np.uint8 and shown.shape == RAMP.shape
    assert np.abs(shown.astype(int) - expected).max() <= 1


def test_a_window_counts_in_units_after_the_rescale(tmp_path):
    file = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 2000, "WindowWidth": 3000}
    by_hand = np.clip(((2.0 * RAMP - 1000) - 1999.5) / 2999 + 0.5, 0, 1) * 255  # PS3.3 C.11.2.1.2.1
    close(make(tmp_path / "a.dcm", RAMP, **file), by_hand)
    close(make(tmp_path / "b.dcm", RAMP, **file, PhotometricInterpretation="MONOCHROME1"), 255 - by_hand)
    said_twice = {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}
    close(make(tmp_path / "c.dcm", RAMP, **file, **said_twice), 255 - by_hand)
    several = {**file, "WindowCenter": [2000, 5], "WindowWidth": [3000, 7]}
    close(make(tmp_path / "d.dcm", RAMP, **several), by_hand)


@pytest.mark.parametrize(
    "function, by_hand",
    [
        ("LINEAR_EXACT", lambda x: np.clip((x - 1500) / 800 + 0.5, 0, 1) * 255),
        ("SIGMOID", lambda x: 255 / (1 + np.exp(-4 * (x - 1500) / 800))),
    ],
)
def test_window_functions(tmp_path, function, by_hand):
    path = make(tmp_path / "a", RAMP, WindowCenter=1500, WindowWidth=800, VOILUTFunction=function)
    close(path, by_hand(RAMP.astype(float)))


def test_look_up_tables(tmp_path):
    squares = [k * k >> 8 for k in range(4096)]
    voi = make(tmp_path / "a", RAMP, VOILUTSequence=lut(0, 16, squares), WindowCenter=1, WindowWidth=1)
    close(voi, np.array(squares)[RAMP] / 65535 * 255)  # the table goes before the window
    eight = make(tmp_path / "b", RAMP, VOILUTSequence=lut(100, 8, [k // 16 for k in range(3900)]))
    close(eight, np.clip(RAMP.astype(int) - 100, 0, 3899) // 16)
    both = make(tmp_path / "c", RAMP, ModalityLUTSequence=lut(0, 16, squares), WindowCenter=30000, WindowWidth=10001)
    close(both, np.clip((np.array(squares)[RAMP] - 29999.5) / 10000 + 0.5, 0, 1) * 255)


def test_padding_is_left_out_of_the_own_range(tmp_path):
    pixels = RAMP // 4 + 1000
    pixels[:4] = 4000
    pixels[4:6] = 3990
    bounds = {"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 3990}
    expected = np.clip((pixels - 1096.0) / (pixels[6:].max() - 1096), 0, 1) * 255
    close(make(tmp_path / "a", pixels, **bounds), expected)
    close(make(tmp_path / "b", pixels, **bounds, PhotometricInterpretation="MONOCHROME1"), 255 - expected)


def test_the_rule_of_mimic(tmp_path):
    pixels = (RAMP.astype(int) ** 2 // 9000 + 30).astype(np.uint16)
    scaled = ((pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255).astype(np.uint8)
    ignored = {"WindowCenter": 50, "WindowWidth": 10}
    close(make(tmp_path / "a", pixels, **ignored), equalize(scaled), "mimic")
    close(make(tmp_path / "b", pixels, PhotometricInterpretation="MONOCHROME1"), equalize(255 - scaled), "mimic")


def test_the_mark_decides_not_the_name(tmp_path):
    import gzip

    from data.dicom import is_dicom, read_dicom

    plain = make(tmp_path / "IM0001", RAMP)
    packed = tmp_path / "a.dcm.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert is_dicom(plain) and is_dicom(packed)
    assert np.array_equal(read_dicom(plain), read_dicom(packed))
    for name, content in (("a.dcm", b"no image at all"), ("b.gz", gzip.compress(b"short")), ("c.gz", b"\x1f\x8bcut")):
        (tmp_path / name).write_bytes(content)
        assert not is_dicom(tmp_path / name)


@pytest.mark.parametrize(
    "elements, sentence",
    [
        ({"Modality": "CT"}, "modality is CT"),
        ({"NumberOfFrames": 3}, "several frames"),
        ({"Rows": 0}, "without an image"),
        ({"Rows": 60000, "Columns": 60000}, "more than"),
        ({"Rows": 640}, "cannot be read as DICOM"),
    ],
)
def test_refusals_are_a_sentence_without_the_patient(tmp_path, elements, sentence):
    from data.dicom import read_dicom

    with pytest.raises(InputError, match=sentence) as told:
        read_dicom(make(tmp_path / "a", RAMP, **elements))
    assert "Doe" not in str(told.value) and "1950" not in str(told.value) and "\n" not in str(told.value)


def test_a_missing_decoder_is_named(tmp_path, monkeypatch):
    pydicom = pytest.importorskip("pydicom")
    from data.dicom import dicom_problem, read_dicom

    path = make(tmp_path / "a", RAMP)
    lossless = pydicom.dcmread(path)
    lossless.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    lossless.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    lossless["PixelData"].VR = "OB"
    lossless.save_as(path, enforce_file_format=True)
    monkeypatch.setattr(pydicom.pixels.decoders.base.Decoder, "is_available", False)
    for problem in (dicom_problem(path), _told(read_dicom, path)):
        assert "JPEG Lossless" in problem and "pip install python-gdcm" in problem and str(path) in problem
    monkeypatch.undo()


def _told(call, *words) -> str:
    with pytest.raises(InputError) as told:
        call(*words)
    return str(told.value)


def test_pydicoms_own_files_end_in_an_image_or_one_sentence(tmp_path):
    """The 79 files of its wheel, as they are and with their modality made CR, by both rules."""
    pydicom = pytest.importorskip("pydicom")
    from pathlib import Path

    from data.dicom import read_dicom

    files = sorted((Path(pydicom.__file__).parent / "data" / "test_files").rglob("*.dcm"))
    assert len(files) >= 79
    made = []
    for number, file in enumerate(files):
        try:
            record = pydicom.dcmread(file)
            record.Modality = "CR"
            record.save_as(tmp_path / f"{number}.dcm")
            made.append(tmp_path / f"{number}.dcm")
        except (pydicom.errors.InvalidDicomError, AttributeError, ValueError, TypeError, KeyError, NotImplementedError):
            continue  # a file that pydicom cannot write again; it is tried as it is
    assert len(made) > 60
    images = 0
    for path in files + made:
        for rule in ("voi", "mimic"):
            try:
                shown = read_dicom(path, rule)
                assert shown.dtype == np.uint8 and shown.ndim == 2
                images += 1
            except InputError as error:
                assert "\n" not in str(error) and str(path) in str(error)
    assert images > 100


def test_damaged_files_end_in_an_image_or_one_sentence(tmp_path):
    from data.dicom import read_dicom

    whole = make(tmp_path / "a", RAMP, VOILUTSequence=lut(0, 16, [k * 16 for k in range(4096)])).read_bytes()
    draw = np.random.default_rng(0)
    for trial in range(300):
        content = bytearray(whole)
        for place in draw.integers(132, 1200, 4):
            content[place] = draw.integers(256)
        (tmp_path / "b").write_bytes(content[: draw.integers(132, len(whole))] if trial % 3 == 0 else content)
        try:
            assert read_dicom(tmp_path / "b").ndim == 2
        except InputError as error:
            assert "\n" not in str(error)


def test_a_folder_is_grouped_by_study(tmp_path):
    pytest.importorskip("pydicom")
    from data.dicom import dicom_studies

    code = lut(0, 8, [1])[0]
    code.CodeValue, code.CodingSchemeDesignator = "272479007", "SCT"
    make(tmp_path / "IM1", RAMP, StudyInstanceUID="1.2.3", ViewPosition="LL")
    make(tmp_path / "IM2", RAMP, StudyInstanceUID="1.2.4")
    make(tmp_path / "IM3", RAMP, StudyInstanceUID="1.2.3", ViewCodeSequence=[code])
    make(tmp_path / "IM4", RAMP, StudyInstanceUID="1.2.3")
    (tmp_path / "notes.txt").write_text("no image")
    first, second = dicom_studies(tmp_path)
    assert [path.name for path in first.images] == ["IM3", "IM1", "IM4"] and first.views == ("PA", "LL", "")
    assert [path.name for path in second.images] == ["IM2"]
    assert "1.2.3" not in first.name and len(first.name) == 12
    make(tmp_path / "IM5", RAMP, Modality="MR")
    assert "1 DICOM files cannot be used" in _told(dicom_studies, tmp_path)


def test_equalisation_follows_the_training_set(capsys):
    from data.images import settle_equalize

    assert settle_equalize("auto", None, 0.0) == "off"  # training: as the files are
    assert settle_equalize("auto", 1.0, 0.0) == "on" and "--equalize on" in capsys.readouterr().out
    assert settle_equalize("auto", 1.0, 0.9) == settle_equalize("auto", 0.0, 0.1) == "off"
    assert settle_equalize("auto", 0.0, 1.0) == "off" and "expect worse" in capsys.readouterr().out
    assert settle_equalize("on", 0.0, 1.0) == "on" and settle_equalize("off", 1.0, 0.0) == "off"


def test_an_image_opened_by_each_reading(tmp_path):
    from PIL import Image

    from data.images import Reading, equalized_share, open_image

    grey = (RAMP // 30 + 40).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    shown = open_image(tmp_path / "a.png", Reading(equalize=True))
    assert np.array_equal(np.asarray(shown)[..., 1], equalize(grey))
    plain = open_image(tmp_path / "a.png")
    assert np.array_equal(np.asarray(plain)[..., 2], grey)
    assert equalized_share([shown, plain]) == 0.5 and equalized_share([]) is None
    path = make(tmp_path / "IM1", RAMP, PhotometricInterpretation="MONOCHROME1")
    close_to = np.asarray(open_image(path, Reading("mimic")))[..., 0]
    assert np.abs(close_to - by_hand((255 - RAMP / 4095 * 255).astype(np.uint8)).astype(int)).max() <= 1


@pytest.mark.shared
def test_equalize_is_the_formula_on_100_images_of_iu(shared):
    from PIL import Image

    files = sorted((shared / "iu_xray" / "images").glob("*/0.*"))[:: 2955 // 100][:100]
    assert len(files) == 100
    for file in files:
        grey = np.asarray(Image.open(file).convert("L"))
        assert np.array_equal(equalize(grey), by_hand(grey))


def test_a_checkpoint_carries_the_rule_and_the_equalisation(mini, tmp_path):
    """Trained with --dicom mimic --equalize on, a new DICOM and a PNG are read alike, without a flag."""
    pytest.importorskip("pydicom")
    from conftest import TINY_MODEL, call

    words = ["--model", "r2gencmn", "--dataset_name", "miniature", "--data_dir", mini / "data", "--knowledge_dir",
             tmp_path / "knowledge", "--mem_size", "8", "--topk", "2", *TINY_MODEL, "--epochs", "1"]  # fmt: skip
    call("main_train.py", *words, "--save_dir", tmp_path / "run", "--dicom", "mimic", "--equalize", "on")
    path, best = make(tmp_path / "IM1", RAMP), tmp_path / "run" / "best.pt"
    told = call("main_test.py", "--load", best, "--image", path)
    assert "report:" in told.stdout and "Doe" not in told.stdout + told.stderr
    dry = call(
        "main_test.py",
        "--load",
        best,
        "--data_dir",
        mini / "data",
        "--knowledge_dir",
        tmp_path / "knowledge",
        "--dry_run",
    )
    assert '"dicom": "mimic"' in dry.stdout and '"equalize": "on"' in dry.stdout
    assert any("_mimic_equalized" in path.name for path in (tmp_path / "knowledge" / "images").iterdir())
    assert (
        "modality is CT"
        in call("main_test.py", "--load", best, "--image", make(path, RAMP, Modality="CT"), code=2).stderr
    )

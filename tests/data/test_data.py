"""Readers, checks, images and batches."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from data.batches import StudyDataset, collate, make_loader
from data.images import Augmentation, image_problem, open_image, square, to_tensor
from data.mask_store import MaskTree, open_masks
from data.studies import Study, card_text, check_studies, data_card, read_annotation, without_broken
from modules.errors import InputError, Problems
from modules.nets.adm import apply_mask
from modules.text.tokenizer import Tokenizer


def image(path, side=40, shade=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (
        np.random.RandomState(len(str(path))).randint(0, 255, (side, side + 8), np.uint8) if shade is None else shade
    )
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def annotation(tmp_path):
    """Six studies, five of them broken in five ways."""
    folder = tmp_path / "images"
    rows = []
    for name, report in (
        ("fine", "The lungs are clear."),
        ("cut", "Clear."),
        ("gone", "Clear."),
        ("mute", " . "),
        ("bare", "Clear."),
    ):
        images = [] if name == "bare" else [f"{name}/0.jpg"]
        if images and name != "gone":
            image(folder / images[0], side=200)
        rows.append({"id": name, "report": report, "image_path": images})
    whole = (folder / "cut/0.jpg").read_bytes()
    (folder / "cut/0.jpg").write_bytes(whole[: len(whole) // 2])
    twin = {"id": "twin", "report": "Clear.", "image_path": ["fine/0.jpg"]}
    path = tmp_path / "annotation.json"
    path.write_text(json.dumps({"train": [*rows, twin], "val": [twin], "test": []}))
    return path


@pytest.mark.parametrize("depth", ["full", "quick"])
def test_every_broken_study_is_listed_once(annotation, depth):
    studies = read_annotation(annotation)
    settings = {"cleaning": "iu_xray", "max_views": 2, "progress": False}
    broken = check_studies(studies, annotation.parent / "images", depth=depth, **settings)
    assert set(broken) == {"cut", "gone", "mute", "bare", "twin (number 2)"}
    assert "no image" in broken["gone"] and "empty report" in broken["mute"] and "before" in broken["twin (number 2)"]
    problems = Problems()
    assert without_broken(studies, broken, skip=False, problems=problems) == studies
    with pytest.raises(InputError) as message:
        problems.stop_if_any()
    assert all(name in str(message.value) for name in broken) and "--skip_broken" in str(message.value)
    left = without_broken(studies, broken, skip=True, problems=Problems())
    assert [study.id for study in left["train"]] == ["fine", "twin"] and left["val"] == []
    card = data_card(left, broken, name="made", ann_path=annotation, max_views=2)
    assert card["splits"]["train"]["studies"] == 2 and len(card["skipped"]) == 5
    assert "broken and skipped: 5" in card_text(card)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "annotation format"),
        ('{"train": [{"id": 1}], "val": [], "test": []}', "train row 0"),
    ],
)
def test_annotations_that_are_none(tmp_path, content, text):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=text):
        read_annotation(tmp_path / "a.json")


def test_sixteen_bit_and_gray_images(tmp_path):
    deep = np.linspace(0, 65535, 100 * 100).reshape(100, 100).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    shallow = np.asarray(open_image(tmp_path / "deep.png"))
    assert shallow.shape == (100, 100, 3) and shallow.min() == 0 and shallow.max() == 255
    np.testing.assert_allclose(shallow[:, :, 0], deep / 257, atol=1)


def test_dicom(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    pixels = np.linspace(0, 4095, 64 * 48).reshape(64, 48).astype(np.uint16)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    record = FileDataset(str(tmp_path / "x.dcm"), {}, file_meta=meta, preamble=b"\0" * 128)
    record.Rows, record.Columns, record.BitsAllocated, record.BitsStored, record.HighBit = 64, 48, 16, 12, 11
    record.SamplesPerPixel, record.PixelRepresentation, record.PhotometricInterpretation = 1, 0, "MONOCHROME1"
    record.PixelData = pixels.tobytes()
    record.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    found = np.asarray(open_image(tmp_path / "x.dcm"))[:, :, 0]
    np.testing.assert_allclose(found, 255 - pixels / 4095 * 255, atol=1)  # bright means low
    (tmp_path / "y.dcm").write_bytes(b"no image")
    assert "y.dcm cannot be read" in image_problem(tmp_path / "y.dcm", "full")


def test_views_are_augmented_as_named(tmp_path):
    one = open_image(image(tmp_path / "a.png", 60))
    twice = Augmentation("aligned", 60)([one, one], random.Random(1))
    assert twice[0].tobytes() == twice[1].tobytes() != one.tobytes()
    apart = Augmentation("released", 60)([one, one], random.Random(2))
    assert apart[0].tobytes() != apart[1].tobytes()
    assert Augmentation("none", 60)([one], random.Random(1))[0] is one


def test_crops_are_cut_from_the_resized_image():
    """Shorter side to 8/7 of the side, the long one as torchvision does it; each view cut on its own, mirrored on request."""
    wide = Image.fromarray(np.tile(np.arange(512, dtype=np.uint8), (256, 1))[:, :400]).convert("RGB")
    crop, flip = Augmentation("crop", 224, "bilinear"), Augmentation("crop_flip", 224, "bilinear")
    resized = crop.resize(wide)
    assert resized.size == (400, 256) and Augmentation("none", 224).resize(wide).size == (224, 224)
    one, two = crop([resized, resized], random.Random(1))
    assert one.size == (224, 224) and one.tobytes() != two.tobytes()
    rising = [np.asarray(p)[0, 0, 0] < np.asarray(p)[0, 30, 0] for p in flip([resized] * 40, random.Random(3))]
    kept = [np.asarray(p)[0, 0, 0] < np.asarray(p)[0, 30, 0] for p in crop([resized] * 40, random.Random(3))]
    assert 8 < sum(rising) < sum(kept)


def dataset(folder, **changes):
    studies = [Study(f"s{n}", "clear", tuple(f"s{n}/{v}.png" for v in range(1 + n % 2)), "train") for n in range(6)]
    for study in studies:
        for path in study.images:
            image(folder / path)
    settings = {"needs": {"images", "tokens"}, "image_size": 32, "max_views": 2, "augment": "released", "seed": 4}
    tokens = np.array([[1, 5, 2, 0]] * len(studies), dtype=np.int32)
    return StudyDataset(studies, folder, tokens=tokens, **{**settings, **changes})


def test_a_study_looks_the_same_whoever_loads_it(tmp_path):
    made = dataset(tmp_path)
    made.epoch = 3
    alone = {item["id"]: item["images"] for item in (made[n] for n in range(6))}
    for workers in (0, 2):
        for batch in make_loader(made, batch_size=4, num_workers=workers, shuffle=True):
            for row, name in enumerate(batch.ids):
                for view, expected in enumerate(alone[name]):
                    assert torch.equal(batch.images[row, view], expected)
    made.epoch = 4
    assert not torch.equal(made[0]["images"][0], alone["s0"][0])


def test_views_are_filled_up_and_masked(tmp_path):
    batch = collate([dataset(tmp_path)[n] for n in range(4)])
    assert batch.images.shape == (4, 2, 3, 32, 32) and batch.tokens.shape == (4, 4)
    assert batch.view_mask.tolist() == [[True, False], [True, True]] * 2
    assert (batch.images[0, 1] == 0).all()


def test_epochs_have_their_own_order(tmp_path):
    made = dataset(tmp_path)
    orders = []
    for epoch in (0, 1, 0):
        made.epoch = epoch
        orders.append(
            [name for batch in make_loader(made, batch_size=2, num_workers=0, shuffle=True) for name in batch.ids]
        )
    assert orders[0] == orders[2] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_mask_rule():
    """beta inside, gamma outside, whole values; a small mask leaves the image alone."""
    one = Image.fromarray(np.full((10, 10, 3), 201, np.uint8))
    mask = np.zeros((10, 10), bool)
    mask[:5] = True
    found = np.asarray(apply_mask(one, mask, theta=0.4, gamma=0.4))
    assert (found[:5] == 201).all() and (found[5:] == 80).all()  # 0.4 * 201 = 80.4
    assert apply_mask(one, mask, theta=0.5, gamma=0.4) is one
    assert (np.asarray(apply_mask(one, mask, theta=0.4, gamma=0.4, beta=2))[:5] == 255).all()
    half = np.asarray(apply_mask(one, mask[::2, ::2], theta=0.4, gamma=0))  # a mask of another size is resized
    assert (half[:5] == 201).all() and (half[6:] == 0).all()


def test_the_authors_mask_tree(tmp_path):
    (tmp_path / "s1").mkdir()
    np.save(tmp_path / "s1" / "0.npy", np.eye(300, dtype=bool))
    tree = open_masks(tmp_path)
    assert isinstance(tree, MaskTree) and tree.has("s1/0.png") and not tree.has("s2/0.png")
    assert tree.get("s1/0.jpg").sum() == 300
    np.save(tmp_path / "s1" / "1.npy", np.zeros((300, 300), np.float32))
    with pytest.raises(InputError, match="boolean"):
        tree.get("s1/1.png")
    with pytest.raises(InputError, match="no ADM masks"):
        open_masks(tmp_path / "none")


def test_tokenizer():
    tokenizer = Tokenizer.build(
        ["The heart is big. The heart is.", "Heart 1015"], cleaning="iu_xray", threshold=2, strip=["1015"]
    )
    assert tokenizer.words == sorted({".", "the", "heart", "is", "<unk>"}) and tokenizer.vocab_size == 8
    ids = tokenizer.encode("The heart was.")
    assert ids[0] == 1 and ids[-1] == 2 and tokenizer.decode(ids) == "the heart <unk> ."
    assert tokenizer.decode([*ids, 4, 5]) == "the heart <unk> .", "nothing after the end mark is kept"
    assert len(tokenizer.encode_padded("The heart.", 12)) == 12 and tokenizer.encode_padded("heart " * 50, 12)[-1] != 2
    family = Tokenizer(tokenizer.words, cleaning="iu_xray", padding=0, bos=0, eos=0)
    assert family.vocab_size == 6 and family.decode(family.encode("the heart")[1:]) == "the heart ."
    assert Tokenizer.from_state_dict(tokenizer.state_dict()).fingerprint == tokenizer.fingerprint != family.fingerprint


@pytest.mark.shared
def test_iu_vocabulary_equals_the_released_one(shared):
    from models.ekagen import STRIPPED_WORDS

    reports = [row["report"] for row in json.loads((shared / "iu_xray" / "annotation.json").read_text())["train"]]
    tokenizer = Tokenizer.build(reports, cleaning="iu_xray", threshold=3, strip=STRIPPED_WORDS)
    assert tokenizer.ids == json.loads((shared / "parity" / "ekagen" / "iu_vocabulary.json").read_text())
    assert tokenizer.vocab_size == 760


def test_normalisation():
    gray = square(Image.new("RGB", (10, 20), (124, 116, 104)), 8)
    assert to_tensor(gray).shape == (3, 8, 8) and to_tensor(gray).abs().max() < 0.02


def test_one_crop_for_all_views_of_a_study():
    """crop_aligned cuts each image at the same share of its margins, never mirrors, and is decided by the draw."""
    wide = Image.fromarray(np.tile(np.arange(80, dtype=np.uint8), (32, 1)))
    tall = Image.fromarray(np.tile(np.arange(32, dtype=np.uint8)[:, None] * 2, (1, 40)))
    augment = Augmentation("crop_aligned", 28)
    for seed in range(5):
        first, second = augment([wide, tall], random.Random(seed))
        assert first.size == second.size == (28, 28)
        draw = random.Random(seed)
        left, top = draw.random(), draw.random()
        assert np.asarray(first)[0, 0] == round(left * 52) and np.asarray(second)[0, 0] == 2 * round(top * 4)
        assert [np.asarray(i).tolist() for i in augment([wide, tall], random.Random(seed))] == [
            np.asarray(i).tolist() for i in (first, second)
        ]


def test_views_of_a_study(tmp_path):
    """Views from files and from caches are equal; masked takes the mask of its image; an absent image gives no view."""
    from data.image_cache import open_cache
    from data.views import Views, enhanced, kept, masked

    draw = np.random.RandomState(1)
    for number in range(2):
        Image.fromarray(draw.randint(0, 200, (60, 50), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    mask = np.zeros((300, 300), bool)
    mask[100:200, 50:150] = True

    class Masks:
        @staticmethod
        def get(path):
            assert path == "0.png"
            return mask

    sizes, paths = Augmentation("none", 32, "bilinear"), ("0.png", "1.png")
    wanted = (("enhanced", 0), ("masked", 0), ("complete", 1))
    caches = {}
    for kind, _ in wanted:
        name, resize, folder = kept(kind, sizes, tmp_path)
        caches[kind] = open_cache(tmp_path / f"cache_{name}", folder, paths, resize, name=name, progress=False)
    images = [open_image(tmp_path / path) for path in paths]
    expected = [sizes.resize(i) for i in (enhanced(images[0]), masked(images[0], mask), images[1])]
    for views in (Views(wanted, tmp_path, sizes, masks=Masks), Views(wanted, tmp_path, sizes, masks=Masks, caches=caches)):
        for ours, known in zip(views(paths), expected, strict=True):
            assert np.array_equal(np.asarray(ours.convert("RGB")), np.asarray(known.convert("RGB")))
        assert len(views(paths[:1])) == 2

    for cache in caches.values():  # damaged after it was opened: the files are decoded again
        pixels = cache.folder / "pixels.bin"
        with open(pixels, "r+b") as file:
            file.write(b"\xff" * (pixels.stat().st_size - 1))
    for ours, known in zip(views(paths), expected, strict=True):
        assert np.array_equal(np.asarray(ours.convert("RGB")), np.asarray(known.convert("RGB")))

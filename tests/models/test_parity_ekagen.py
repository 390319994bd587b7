"""EKAGen equals the authors' code: files as a user has them, loaded the way main_test.py and main_train.py load them."""

import json

import numpy as np
import pytest
import torch
from conftest import call
from PIL import Image
from stand_in import FIXTURES, read, write_released_files
from torch.nn import functional as F

from data.batches import Batch
from data.images import diagnosis_tensor
from models import SYSTEMS, ekagen
from modules.checkpoint import load_checkpoint
from modules.decoding import DecodingSettings, decode
from modules.errors import InputError
from modules.flags import parse
from modules.nets.adm import apply_mask, gradcam, masks_of
from modules.nets.diagnosisbot import RELEASED_THRESHOLDS, load_diagnosisbot
from modules.text.tokenizer import Tokenizer
from modules.trainer import Trainer


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    write_released_files(folder)
    return folder


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """As many words as IU X-Ray has; which ones they are does not matter here."""
    return Tokenizer([f"word{n:03d}" for n in range(756)] + ["<unk>"], cleaning="iu_xray")


def flags(folder, *more):
    return parse(["--knowledge_path", str(folder / "knowledge_prompt_iu.pkl"), *more], "train", systems=SYSTEMS)


@pytest.fixture(scope="module")
def system(released, words):
    args = flags(released)
    system = ekagen.EKAGen.build(args, words)
    system.load_start(load_checkpoint(released / "iu_weight.pth"), "iu_weight.pth")
    return system.eval()


@pytest.fixture(scope="module")
def io():
    return np.load(FIXTURES / "io.npz")


@pytest.fixture(scope="module")
def batch(io):
    draw = np.random.RandomState(int(io["images_seed"]))
    images = draw.standard_normal((2, 3, 300, 300)).astype(np.float32)
    draw.randint(3, 760, (2, 129))
    teacher = torch.from_numpy(2 * draw.standard_normal((2, 128, 760)).astype(np.float32))
    column = int(io["image_mask1_from_col"])
    images[1, :, :, column:] = 0
    padding = torch.zeros(2, 1, 300, 300, dtype=torch.bool)
    padding[1, :, :, column:] = True
    tokens = torch.from_numpy(io["captions"])
    assert torch.equal(torch.from_numpy(io["caption_padding"]), tokens == 0)
    batch = Batch(
        ["a", "b"],
        masked_images=torch.from_numpy(images)[:, None],
        padding=padding,
        tokens=tokens,
        diagnosis=torch.from_numpy(io["diagnosis"]),
    )
    return batch, teacher


@pytest.fixture(scope="module")
def memory(system, batch):
    with torch.no_grad():
        return system.encode(batch[0])


def test_encoder_and_teacher_forced_logits(system, batch, memory, io):
    np.testing.assert_allclose(memory["patches"].mean(-1).T, io["memory_mean"], atol=1e-5)
    batch, teacher = batch
    with torch.no_grad():
        logits = system.logits(memory, batch.tokens[:, :-1])
    np.testing.assert_allclose(logits[:, io["positions"]], io["logits"], atol=1e-3)
    ce = F.cross_entropy(logits.flatten(0, 1), batch.tokens[:, 1:].flatten())
    assert float(ce) == pytest.approx(float(io["ce"]), rel=1e-5)
    assert float(ekagen.distillation(logits, teacher, 4.0)) == pytest.approx(float(io["kd"]), rel=1e-5)


def test_greedy_tokens(system, memory, io):
    settings = DecodingSettings(max_length=126)
    assert decode(system, memory, settings, ["a", "b"], stop=False) == io["greedy"][:, 1:127].tolist()


def test_diagnosisbot(released):
    bot = load_diagnosisbot(released / "diagnosisbot.pth")
    seed = read("diagnosisbot.json")["seed"] + 2
    images = np.random.RandomState(seed).standard_normal((2, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        probabilities = bot(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(probabilities, np.load(FIXTURES / "diagnosisbot.npz")["probs"], atol=1e-5)
    assert list(RELEASED_THRESHOLDS) == read("thresholds.json")


def test_adm_maps_masks_and_masked_image(released):
    adm = np.load(FIXTURES / "adm.npz")
    bot = load_diagnosisbot(released / "MIMIC_best_weight.pth", side=300)
    image = Image.fromarray(adm["image"]).convert("RGB")
    maps, probabilities = gradcam(bot, diagnosis_tensor(image, 300)[None])
    np.testing.assert_allclose(probabilities.numpy(), adm["probs"], atol=1e-5)
    np.testing.assert_allclose(maps[0, :, ::10, ::10].numpy(), adm["cams"], atol=1e-4)
    expected = np.unpackbits(adm["class_masks"], count=14 * 300 * 300).reshape(14, 300, 300).astype(bool)
    ours = masks_of(maps, "released")[0].numpy()
    assert (ours != expected).mean() <= 1e-3
    one = expected[int(adm["masked_with_class"])]
    masked = np.asarray(apply_mask(image, one, theta=0.4, gamma=0.4))
    assert (masked == adm["masked_image"][:, :, None]).all()


@pytest.mark.slow
def test_four_training_steps(released, words, tmp_path):
    """Losses, gradient norms and parameter count of the released training: teacher masked, student complete."""
    facts = read("train.json")
    args = flags(
        released,
        "--dropout",
        "0",
        "--view_preset",
        "released",
        "--teacher",
        str(released / "iu_t_model.pth"),
        "--device",
        "cpu",
    )
    system = ekagen.EKAGen.build(args, words)
    system.load_start(load_checkpoint(released / "iu_weight.pth"), "iu_weight.pth")
    system.teacher = ekagen.Teacher(ekagen.load_teacher(args, words, args.teacher))
    system.train()
    trainer = Trainer(system, [], None, args=args, device=torch.device("cpu"), folder=tmp_path, log=None, carried={})
    assert sum(parameter.numel() for parameter in trainer.parameters) == facts["trainable"]
    draw = np.random.RandomState(facts["data_seed"])
    teacher_view, student_view = (draw.standard_normal((2, 3, 300, 300)).astype(np.float32) for _ in range(2))
    tokens = torch.from_numpy(draw.randint(3, 760, (2, 129)))
    tokens[:, 0] = 1
    for row, length in enumerate(facts["report_lengths"]):
        tokens[row, length - 1], tokens[row, length:] = 2, 0
    batch = Batch(
        ["a", "b"],
        images=torch.from_numpy(student_view)[:, None],
        masked_images=torch.from_numpy(teacher_view)[:, None],
        tokens=tokens,
        diagnosis=torch.tensor([[int(bit) for bit in key] for key in facts["diagnosis"]]),
    )
    for expected in facts["steps"]:
        values = trainer.update([batch])
        assert values["ce"] == pytest.approx(expected["ce"], rel=1e-3)
        assert args.delta * values["gid"] == pytest.approx(expected["kd"], rel=1e-3)
        assert values["loss"] == pytest.approx(expected["loss"], rel=1e-3)
        assert values["grad_norm"] == pytest.approx(expected["grad_norm"], rel=5e-3)


def test_misfits_are_explained_in_one_message(released, words, tmp_path):
    args = flags(released)
    fewer = Tokenizer(words.words[1:], cleaning="iu_xray")
    with pytest.raises(InputError, match=r"vocabulary.*the weights have 760, this run 759"):
        ekagen.EKAGen.build(args, fewer).load_start(load_checkpoint(released / "iu_weight.pth"), "iu_weight.pth")
    with pytest.raises(InputError, match="128 positions x width 256.*this run has 128 x 128"):
        ekagen.EKAGen.build(flags(released, "--d_model", "128"), words)
    state = torch.load(released / "diagnosisbot.pth", weights_only=True)
    state["head.weight"] = state["head.weight"][:13]
    torch.save(state, tmp_path / "bot.pth")
    with pytest.raises(InputError, match="has 13 outputs, this run has 14 labels"):
        load_diagnosisbot(tmp_path / "bot.pth")
    content = load_checkpoint(released / "iu_weight.pth")
    content["model"]["surprise.weight"] = torch.zeros(1)
    with pytest.raises(InputError, match="surprise.weight"):
        ekagen.EKAGen.build(args, words).load_start(content, "iu_weight.pth")


@pytest.mark.slow
def test_released_files_through_the_command(released, words, mini, tmp_path):
    """test_iu.sh with the authors' files: every study written and scored, unknown diagnoses counted."""
    annotation = json.loads((mini / "data" / "annotation.json").read_text())
    masks = tmp_path / "images300_array"
    for row in annotation["test"]:
        path = (masks / row["image_path"][0]).with_suffix(".npy")
        path.parent.mkdir(parents=True)
        np.save(path, np.tri(300, dtype=bool))
    (tmp_path / "words.json").write_text(json.dumps(words.ids))
    command = [
        "main_test.py", "--dataset_name", "iu_xray", "--load", released / "iu_weight.pth", "--data_dir", mini / "data",
        "--adm_masks", masks, "--diagnosisbot", released / "diagnosisbot.pth", "--knowledge_dir", tmp_path / "made",
        "--knowledge_path", released / "knowledge_prompt_iu.pkl", "--save_dir", tmp_path / "run", "--protocols", "r2gen",
        "--max_gen_length", "12", "--num_workers", "0",
    ]  # fmt: skip
    done = call(*command, code=2)  # the words of these reports are not IU X-Ray's
    assert "--vocab_path decide it): the weights have 760, this run" in done.stderr and not (tmp_path / "run").exists()
    call(*command, "--vocab_path", tmp_path / "words.json")
    metrics = json.loads((tmp_path / "run" / "metrics_test.json").read_text())
    assert metrics["metrics"]["studies"] == len(annotation["test"]) == metrics["studies_listed"]
    assert metrics["knowledge_fallbacks"] == len(annotation["test"]), "five entries, none of these diagnoses"
    assert metrics["oracle_labels"] is False
    done = call("main_test.py", "--load", released / "iu_weight.pth", "--image", "x.png", code=2)
    assert "carries no vocabulary" in done.stderr or "cannot start" in done.stderr

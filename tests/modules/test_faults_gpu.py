"""Faults on a GPU that were once found, and half precision: each test failed before its repair. See test_pretended_gpu.py too."""

import pickle

import numpy as np
import pytest
import torch
from pretended_gpu import CUDA, pretended_gpu
from tiny import NAMES, loader_of, prepare, read, trainer_of
from torch.utils._python_dispatch import TorchDispatchMode

from data.batches import Batch
from data.image_cache import open_cache
from data.images import Augmentation
from data.mask_store import MaskRule, PackedMasks, StoreWriter, packed
from knowledge.classifier.data import ClassifierData, normalised
from knowledge.classifier.training import ClassifierTrainer, predict
from models.ekagen import EKAGen
from modules.checkpoint import random_states, restore_random_states
from modules.decoding import DecodingSettings, _draw, decode
from modules.nets.adm import classifier_masks
from modules.nets.diagnosisbot import DiagnosisBot
from modules.nets.transformer import sine_positions
from modules.nets.visual_extractor import VisualExtractor
from modules.precision import Precision, seed_everything
from modules.text.labels import CHEXPERT_14

CPU = torch.device("cpu")


# -- G3, G1: classifiers and ADM ---------------------------------------------------------------------------------------


class Held:
    """A few random images in memory, as HeldImages gives them."""

    def __init__(self, count: int) -> None:
        draw = torch.Generator().manual_seed(count)
        self.held = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=draw)

    def __len__(self) -> int:
        return len(self.held)

    def batches(self, groups, num_workers):
        return (self.held[torch.from_numpy(group)] for group in groups)


def classifier_epoch(folder, device):
    from types import SimpleNamespace

    labels = {split: np.random.default_rng(1).integers(0, 2, (12, 14)) for split in ("train", "val")}
    data = ClassifierData({}, labels, {split: Held(12) for split in labels}, {})
    args = SimpleNamespace(precision="float32", pos_weight_cap=3.0, lr=1e-3, weight_decay=0.01, batch_size=4, seed=1, epochs=2,
                           augment="light", num_workers=0, freeze="none")  # fmt: skip
    torch.manual_seed(2)
    bot = DiagnosisBot("resnet18", CHEXPERT_14, [0.5] * 14, side=64)
    return ClassifierTrainer(bot, data, args=args, device=device, partial=folder / "partial.pt"), data, args


def test_a_classifiers_step_waits_once(tmp_path):
    trainer, data, _ = classifier_epoch(tmp_path, CPU)
    wanted = trainer.train_epoch(), predict(trainer.bot, data.images["val"], device=CPU, precision=trainer.precision)
    with pretended_gpu() as gpu:
        trainer, data, _ = classifier_epoch(tmp_path, CUDA)
        normalised(torch.zeros(1, 3, 4, 4, dtype=torch.uint8).to(CUDA))  # its constants are uploaded once
        gpu.waits.clear()
        loss = trainer.train_epoch()
        assert sum(gpu.waits.values()) <= 3, dict(gpu.waits)
        logits = predict(trainer.bot, data.images["val"], device=CUDA, precision=trainer.precision)
    assert loss == pytest.approx(wanted[0], rel=1e-3)
    np.testing.assert_allclose(logits, wanted[1], atol=0.1 * np.abs(wanted[1]).max())


def test_masks_are_the_cpus():
    torch.manual_seed(3)
    bot = DiagnosisBot("resnet18", CHEXPERT_14, [0.0] + [1.0] * 13, side=64).eval()  # one label is diagnosed
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        wanted = classifier_masks(bot, images, "cam")
        with pretended_gpu():
            assert torch.equal(classifier_masks(bot.to(CUDA), images.to(CUDA), "cam").cpu(), wanted)
    assert 0 < wanted.float().mean() < 1


# -- G5: what float32 and --deterministic promise ----------------------------------------------------------------------


def test_float32_is_float32():
    Precision("float32", CPU)
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    Precision("tf32", CPU)
    assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
    Precision("float32", CPU)


def test_cudnn_chooses_its_kernels_unless_the_run_is_deterministic():
    seed_everything(1, deterministic=False)
    assert torch.backends.cudnn.benchmark
    try:
        seed_everything(1, deterministic=True)
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)


class Refused(TorchDispatchMode):
    """Notes the operations that have no deterministic kernel on CUDA, where --deterministic refuses them."""

    NAMES = ("aten::nll_loss2d_forward", "aten::nll_loss2d_backward", "aten::upsample_bilinear2d_backward",
             "aten::grid_sampler_2d_backward", "aten::_adaptive_avg_pool2d_backward", "aten::adaptive_max_pool2d_backward",
             "aten::kthvalue", "aten::histc")  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        running_sum = function.name() == "aten::cumsum" and result.dtype.is_floating_point
        if running_sum or function.name() in self.NAMES:
            self.found.add(function.name())
        return result


@pytest.mark.parametrize("name", NAMES)
def test_every_operation_has_a_deterministic_kernel(name, mini, tmp_path):
    args = read(name, mini)
    data, tokenizer, made = prepare(args)
    trainer = trainer_of(args, made, tmp_path)
    batch = next(iter(loader_of(args, data, tokenizer, made, "train")))
    with Refused() as refused:
        trainer.update([batch])
        made.eval()
        memory = made.encode(made.prepare(batch))
        for way in ({"sample": True}, {"beam_size": 2}, {"block_trigrams": True}):
            decode(made, memory, DecodingSettings(max_length=5, **way), batch.ids)
    assert not refused.found


def test_positions_are_those_of_running_sums_in_float():
    padding = torch.rand(2, 5, 7) < 0.3
    real = (~padding).float()
    half = 4
    scale = 10000 ** (2 * (torch.arange(half) // 2) / half)
    angle = (real.cumsum(1) / (real.cumsum(1)[:, -1:, :] + 1e-6) * 2 * torch.pi)[..., None] / scale
    wanted = torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-2)
    assert torch.equal(sine_positions(padding, 2 * half)[..., :half], wanted.flatten(1, 2))


# -- generation in half precision --------------------------------------------------------------------------------------


class Casts(TorchDispatchMode):
    """Counts the numbers that are cast to bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.name() == "aten::_to_copy" and result.dtype == torch.bfloat16:
            self.numbers += result.numel()
        return result


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_cast_once_and_words_stay(name, mini):
    """The words are those of autocast alone; at a word only what it brings is cast, no weight."""
    args = read(name, mini)
    data, tokenizer, made = prepare(args)
    batch = made.eval().prepare(next(iter(loader_of(args, data, tokenizer, made, "val"))))
    precision, before = Precision("bf16", CPU), dict(made.named_parameters())
    settings = [DecodingSettings(max_length=12), DecodingSettings(max_length=12, beam_size=2)]
    with torch.no_grad():
        with precision.region():
            memory = made.encode(batch)
            wanted = [decode(made, memory, row, batch.ids) for row in settings]
        with precision.generation(made), precision.region():
            again = made.encode(batch)
            for key, value in memory.items():
                assert torch.equal(value, again[key]), key
            assert [decode(made, again, row, batch.ids) for row in settings] == wanted
            counts = []
            for length in (4, 5):
                with Casts() as casts:
                    decode(made, again, DecodingSettings(max_length=length), batch.ids, stop=False)
                counts.append(casts.numbers)
    matrix = args.d_model * args.d_model  # the smallest weight of a layer, several of which a word would cast
    assert counts[1] - counts[0] < 8 * matrix, "weights are cast at every word"
    after = dict(made.named_parameters())
    assert all(after[key] is value and value.dtype == torch.float32 for key, value in before.items())


# -- sampling and the trigram block, which are computed on the device --------------------------------------------------


def test_sampling_follows_the_probabilities():
    torch.manual_seed(1)
    logits = torch.tensor([[2.0, 0.0, -1.0, 1.0, -30.0]])
    draws = torch.rand(20_000, 1)
    found = _draw(logits.expand(len(draws), -1), DecodingSettings(sample=True), draws)[:, 0].bincount(minlength=5)
    wanted = logits[0].softmax(-1)
    assert (found / len(draws) - wanted).abs().max() < 4 * (0.25 / len(draws)) ** 0.5 and found[4] == 0
    for edge in (0.0, 1 - 2**-24):
        assert int(_draw(logits, DecodingSettings(sample=True), torch.tensor([[edge]]))) in (0, 3)
    assert set(
        _draw(logits.expand(999, -1), DecodingSettings(sample=True, top_k=2), torch.rand(999, 1))[:, 0].tolist()
    ) == {0, 3}


# -- G6, G7 ------------------------------------------------------------------------------------------------------------


def test_fewer_gpus_may_resume(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [])

    def set_all(states):
        assert len(states) <= 1, "as PyTorch: no such device"
        given.extend(states)

    monkeypatch.setattr(torch.cuda, "set_rng_state_all", set_all)
    states = random_states() | {"cuda": [torch.zeros(16, dtype=torch.uint8), torch.ones(16, dtype=torch.uint8)]}
    restore_random_states(states)
    assert len(given) == 1 and "saved with 2 GPUs, 1 here" in capsys.readouterr().out


def test_memory_maps_are_not_sent_to_workers(mini, tmp_path):
    paths = sorted(
        str(path.relative_to(mini / "data" / "images")) for path in (mini / "data" / "images").rglob("*.png")
    )
    sizes = Augmentation("none", 64, "bicubic")
    cache = open_cache(
        tmp_path / "cache", mini / "data" / "images", paths, sizes.resize, name=sizes.name, progress=False
    )
    sent = pickle.dumps(cache)
    assert len(sent) < cache.manifest["bytes"] / 4
    assert pickle.loads(sent).get(paths[3]).tobytes() == cache.get(paths[3]).tobytes()


def test_mask_stores_are_not_sent_to_workers(tmp_path):
    masks = np.random.default_rng(0).random((40, 300, 300)) < 0.5
    names = [f"{number}.png" for number in range(len(masks))]
    store = StoreWriter(tmp_path / "masks", {"side": 300}, names)
    store.add(packed(masks), {})
    store.close()
    store.finish()
    made = PackedMasks(tmp_path / "masks")
    sent = pickle.dumps(MaskRule(made, 0.4, 0.4))
    assert len(sent) < 40 * 300 * 300 / 8 / 4
    assert np.array_equal(pickle.loads(sent).masks.get("7.png"), masks[7])


# -- L15 ---------------------------------------------------------------------------------------------------------------


def test_absent_views_do_not_enter_trained_batch_norm():
    """The running means after a study with one image are those without the absent second view."""
    means = []
    for views in (1, 2):
        torch.manual_seed(0)
        extractor = VisualExtractor("resnet18", freeze="none", dilate=False)
        made = EKAGen(extractor, vocab_size=9, width=16, heads=2, inner=32, layers=1, positions=8).train()
        torch.manual_seed(1)
        images = torch.randn(4, 1, 3, 64, 64)
        mask = None
        if views == 2:
            images = torch.cat([images, torch.zeros(4, 1, 3, 64, 64)], 1)
            mask = torch.tensor([[True, False]] * 4)
        made.encode(Batch(["a", "b", "c", "d"], masked_images=images, view_mask=mask))
        means.append([buffer.clone() for name, buffer in made.named_buffers() if name.endswith("running_mean")])
    assert means[0] and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*means))

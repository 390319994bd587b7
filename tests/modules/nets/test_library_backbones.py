"""Backbones of timm and transformers: their own features, to 1e-5, through our images and our flags; refused in one sentence."""

import json
import logging

import pytest
import torch

from models import SYSTEMS
from modules.errors import InputError, Problems
from modules.flags import parse
from modules.nets.library_backbones import (
    IMAGENET,
    LibraryBackbone,
    library_side,
    library_weights_problem,
    shape_problem,
)
from modules.nets.visual_extractor import VisualExtractor

MEAN, STD = (torch.tensor(values)[:, None, None] for values in IMAGENET)
HALF = 0.5


def images(side: int = 64):
    """Pixels 0..1, and as our data brings them."""
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    return pixels, (pixels - MEAN) / STD


def folder_of(tmp_path, kind: str, **settings):
    """A tiny model of transformers, saved as the library saves it, and the model."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**settings)
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    model.save_pretrained(tmp_path / kind)
    facts = {"image_processor_type": "ViTImageProcessor", "image_mean": [HALF] * 3, "image_std": [HALF] * 3}
    (tmp_path / kind / "preprocessor_config.json").write_text(json.dumps(facts))
    return tmp_path / kind, model


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 64}
TINY = {
    "ViT": {**SMALL, "patch_size": 16},
    "Dinov2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14},
    "Dinov2WithRegisters": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56,
                            "patch_size": 14, "num_register_tokens": 4},
    "Swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": 64, "patch_size": 4},
    "ConvNext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 64},
}  # fmt: skip


@pytest.mark.parametrize("kind", TINY)
def test_transformers_features_are_the_librarys(kind, tmp_path):
    folder, model = folder_of(tmp_path, kind, **TINY[kind])
    side = library_side(f"hf:{folder}")
    pixels, ours = images(side)
    extractor = VisualExtractor(f"hf:{folder}", freeze="all", dilate=False)
    extractor.body.load_weights("imagenet")
    with torch.no_grad():
        theirs = model(pixel_values=(pixels - HALF) / HALF).last_hidden_state
        made = extractor(ours)
    assert made.shape[1] == extractor.width and made.shape[2] == made.shape[3]
    if theirs.ndim == 3:
        theirs = theirs[:, theirs.shape[1] - made.shape[2] ** 2 :].mT.reshape(made.shape)
    torch.testing.assert_close(made, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "swin_s3_tiny_224"])
def test_timm_features_are_the_librarys(name, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(2)
    model = timm.create_model(name, pretrained=False).eval()  # with its classifier, as files of weights have it
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    extractor = VisualExtractor(f"timm:{name}", freeze="all", dilate=False)
    extractor.body.load_weights(str(tmp_path / "weights.pth"))
    pixels, ours = images(224)
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        theirs = model.forward_features((pixels - mean) / std)
        made = extractor(ours)
    if theirs.ndim == 3:
        theirs = theirs[:, model.num_prefix_tokens :].mT.reshape(made.shape)
    elif theirs.shape[1] != extractor.width:
        theirs = theirs.permute(0, 3, 1, 2)
    torch.testing.assert_close(made, theirs, rtol=1e-5, atol=1e-5)


def test_a_system_takes_side_and_width_from_the_model(tmp_path):
    folder, _ = folder_of(tmp_path, "ViT", **TINY["ViT"])
    words = ["--model", "r2gencmn", "--visual_extractor", f"hf:{folder}"]
    assert parse(words, "train", systems=SYSTEMS).image_size == 64
    assert parse([*words, "--image_size", "32"], "train", systems=SYSTEMS).image_size == 32
    extractor = VisualExtractor(f"hf:{folder}", freeze="stem", dilate=False)
    frozen = [p.requires_grad for p in extractor.parameters()]
    assert extractor.width == 32 and not frozen[0] and frozen[-1]
    assert extractor(torch.zeros(1, 3, 32, 32)).shape == (1, 32, 2, 2)  # positions are interpolated


def test_random_weights_are_said(tmp_path, caplog):
    folder, _ = folder_of(tmp_path, "ViT", **TINY["ViT"])
    with caplog.at_level(logging.WARNING):
        LibraryBackbone(f"hf:{folder}").load_weights("none")
    assert "RANDOM weights" in caplog.text


def test_weights_of_another_model_are_refused(tmp_path):
    folder, _ = folder_of(tmp_path, "ViT", **TINY["ViT"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match="do not fit hf:"):
        LibraryBackbone(f"hf:{folder}").load_weights("imagenet")
    pytest.importorskip("timm")
    torch.save({"x": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="do not fit timm:convnext_atto: .* missing"):
        LibraryBackbone("timm:convnext_atto").load_weights(str(tmp_path / "other.pt"))


def test_what_cannot_be_used_is_refused_in_one_sentence(tmp_path):
    pytest.importorskip("timm")
    with pytest.raises(InputError, match="timm has no such model"):
        LibraryBackbone("timm:nothing_like_it")
    with pytest.raises(InputError, match="no config.json there"):
        LibraryBackbone(f"hf:{tmp_path}")
    assert "nothing is downloaded" in library_weights_problem("timm:convnext_atto", "imagenet")
    assert "no model.safetensors there" in library_weights_problem(f"hf:{tmp_path}", "imagenet")
    assert "does not take --image_size 50 (it was made for 224)" in shape_problem("timm:vit_tiny_patch16_224", 50)
    folder, _ = folder_of(tmp_path, "Bert", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    assert "--visual_extractor hf:" in shape_problem(f"hf:{folder}", 64)
    problems = Problems()
    words = ["--model", "r2gencmn", "--visual_extractor", "timm:vit_tiny_patch16_224", "--image_size", "50"]
    args = parse([*words, "--extractor_weights", "none"], "train", systems=SYSTEMS)
    SYSTEMS["r2gencmn"].check(args, problems, training=True)
    assert any("does not take --image_size 50" in text for text in problems.texts)

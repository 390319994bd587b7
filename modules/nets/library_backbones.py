"""Backbones of other libraries: `timm:NAME` and `hf:FOLDER` (of transformers), weights from local files, never the network.

The library's model says which side it expects, mean and standard deviation of its images, width and grid of its features. A model
whose features are no map, nor tokens of a square grid behind a few leading ones, is refused.
"""

import inspect
import logging
import math
from pathlib import Path

import torch
from torch import nn

from modules.artefact import read_json
from modules.errors import InputError
from modules.safe_pickle import load_pickle

log = logging.getLogger(__name__)

PREFIXES = ("timm:", "hf:")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what images come normalised with
FAULTS = (AssertionError, AttributeError, IndexError, KeyError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def is_library(name: str) -> bool:
    return name.startswith(PREFIXES)


class LibraryBackbone(nn.Module):
    """Images [N, 3, S, S], normalised with ImageNet's mean and deviation -> the last feature map [N, C, h, w] of a model.

    width: C. side: pixels that the model was made for. It may be shown other sides where it can (positions are interpolated).
    InputError where the library is missing, does not know the model, or the model gives no such map.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        kind, _, self.source = name.partition(":")
        self.name, self.kind = name, kind
        made = _timm(self.source) if kind == "timm" else _hugging_face(self.source)
        self.net, self.width, self.side, self.leading, (mean, std) = made
        scale = torch.tensor(IMAGENET[1]) / torch.tensor(std)
        shift = (torch.tensor(IMAGENET[0]) - torch.tensor(mean)) / torch.tensor(std)
        self.same = mean == IMAGENET[0] and std == IMAGENET[1]
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)
        self.interpolates = "interpolate_pos_encoding" in inspect.signature(self.net.forward).parameters

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.map_of(self.features(images if self.same else images * self.scale + self.shift))

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the library's model gives for pixels that are normalised as it expects."""
        if self.kind == "timm":
            return self.net.forward_features(pixels)
        more = {"interpolate_pos_encoding": True} if self.interpolates else {}
        return self.net(pixel_values=pixels, **more).last_hidden_state

    def map_of(self, features: torch.Tensor) -> torch.Tensor:
        """[N, C, h, w], [N, h, w, C] or tokens [N, L, C] -> [N, C, h, w]."""
        if features.ndim == 4 and features.shape[1] == self.width:
            return features
        if features.ndim == 4 and features.shape[-1] == self.width:
            return features.permute(0, 3, 1, 2)
        if features.ndim == 3 and features.shape[-1] == self.width:
            patches = features[:, self.leading :]
            side = math.isqrt(patches.shape[1])
            if side and side * side == patches.shape[1]:
                return patches.mT.unflatten(-1, (side, side))
        raise InputError(
            f"--visual_extractor {self.name}: its features {tuple(features.shape)} are neither a map of width {self.width} nor "
            f"tokens of a square grid behind {self.leading} leading ones: this model cannot be used"
        )

    def first_third(self) -> list[nn.Parameter]:
        """The first third of the parameters in the model's order: embedding and early blocks."""
        parameters = list(self.net.parameters())
        return parameters[: len(parameters) // 3]

    def load_weights(self, weights: str) -> None:
        """weights: "none" (random, said in a warning), of timm a local file, of hf "imagenet" (the folder's own). Strict."""
        if weights == "none":
            log.warning("%s starts from RANDOM weights (--extractor_weights none)", self.name)
            return
        problem = library_weights_problem(self.name, weights)
        if problem:
            raise InputError(problem)
        source = self.source if self.kind == "hf" else weights
        missing, unknown, shapes = self._load_folder() if self.kind == "hf" else self._load_file(Path(weights))
        if missing or unknown or shapes:
            raise InputError(
                f"weights {source} do not fit {self.name}: {len(missing)} missing ({_some(missing)}), {len(unknown)} unknown "
                f"({_some(unknown)}), {len(shapes)} of another shape ({_some(shapes)})"
            )

    def _load_file(self, path: Path) -> tuple[set, set, set]:
        """Names that are missing, unknown, of another shape; nothing is loaded where there are any."""
        own, state = self.net.state_dict(), read_weights(path)
        state = {key: value for key, value in state.items() if key in own or not _of_head(key, self.net)}
        shapes = {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
        wrong = own.keys() - state.keys(), state.keys() - own.keys(), shapes
        if not any(wrong):
            self.net.load_state_dict(state)
        return wrong

    def _load_folder(self) -> tuple[set, set, set]:
        """The same of a folder, read by the library, which knows the older names of its tensors."""
        from transformers import AutoModel

        try:
            net, facts = AutoModel.from_pretrained(self.source, local_files_only=True, output_loading_info=True)
        except FAULTS as error:
            raise InputError(f"weights of hf:{self.source} cannot be read: {_reason(error)}") from error
        wrong = [{str(key) for key in facts[name] if not _of_head(str(key), net)}
                 for name in ("missing_keys", "unexpected_keys", "mismatched_keys")]  # fmt: skip
        if not any(wrong):
            net.pooler = None
            self.net.load_state_dict(net.float().state_dict())
        missing, unexpected, mismatched = wrong
        return missing, unexpected, mismatched


def _some(names: set) -> str:
    return ", ".join(sorted(names)[:3])


HEADS = ("head.", "fc.", "classifier.", "pooler.", "lm_head.", "decoder.", "head_dist.")


def _of_head(key: str, net: nn.Module) -> bool:
    """Whether a key of a file is of a classifier or pooler, which is not built."""
    cfg = getattr(net, "pretrained_cfg", None) or {}
    named = cfg.get("classifier") or ()
    named = (named,) if isinstance(named, str) else tuple(named)
    return key.startswith((*HEADS, *(f"{name}." for name in named))) or key == "mask_token" or key.endswith(".mask_token")


def _known_to_timm(name: str):
    """The library. InputError where it is missing or has no such model."""
    try:
        import timm
    except ImportError as error:
        raise InputError(f"--visual_extractor timm:{name}: pip install timm") from error
    if not timm.is_model(name.partition(".")[0]):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:3])
        raise InputError(f"--visual_extractor timm:{name}: timm has no such model" + (f"; it has {near}" if near else ""))
    return timm


def _timm(name: str) -> tuple:
    """The model with random weights, its width, side, leading tokens, (mean, std)."""
    timm = _known_to_timm(name)
    try:
        try:
            net = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
        except TypeError:  # convolutional ones, and those of fixed windows
            net = timm.create_model(name, pretrained=False, num_classes=0)
    except FAULTS as error:
        raise InputError(f"--visual_extractor timm:{name}: timm cannot build it: {_reason(error)}") from error
    cfg = net.pretrained_cfg
    leading = getattr(net, "num_prefix_tokens", 0)
    return net, net.num_features, cfg["input_size"][-1], leading, (tuple(cfg["mean"]), tuple(cfg["std"]))


def _hugging_face(folder: str) -> tuple:
    """The same of a folder with config.json; preprocessor_config.json says the images' mean and deviation, else ImageNet's."""
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel
    except ImportError as error:
        raise InputError(f"--visual_extractor hf:{folder}: pip install transformers") from error
    if not (Path(folder) / "config.json").is_file():
        raise InputError(
            f"--visual_extractor hf:{folder}: no config.json there; give a folder as transformers' save_pretrained writes it "
            "(nothing is downloaded)"
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        net = AutoModel.from_config(config).float().eval()
    except FAULTS as error:
        raise InputError(f"--visual_extractor hf:{folder}: transformers cannot build it: {_reason(error)}") from error
    if hasattr(net, "pooler"):
        net.pooler = None  # a vector for the whole image, which nobody asks for
    width = config.hidden_sizes[-1] if getattr(config, "hidden_sizes", None) else getattr(config, "hidden_size", None)
    side = getattr(config, "image_size", None) or 224
    if width is None or not isinstance(side, int):
        raise InputError(f"--visual_extractor hf:{folder}: its config.json says no width or no square image: no image encoder")
    leading = int(hasattr(getattr(net, "embeddings", None), "cls_token") and net.embeddings.cls_token is not None)
    leading += getattr(config, "num_register_tokens", 0)
    transform = IMAGENET
    if (Path(folder) / "preprocessor_config.json").is_file():
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        transform = tuple(processor.image_mean), tuple(processor.image_std)
    return net, width, side, leading, transform


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def read_weights(path: Path) -> dict:
    """The tensors of a .safetensors or a PyTorch file."""
    if path.suffix != ".safetensors":
        content = load_pickle(path)
        return content.get("state_dict", content.get("model", content))
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"weights {path} cannot be read: {error}") from error


def library_weights_problem(name: str, weights: str) -> str | None:
    """What is wrong with --extractor_weights for such a backbone, or None."""
    if weights == "none":
        return None
    if weights == "imagenet" and name.startswith("timm:"):
        return (
            f"--visual_extractor {name}: nothing is downloaded; give timm's file of weights with --extractor_weights FILE, or "
            "start from random weights with --extractor_weights none"
        )
    if name.startswith("timm:"):
        return None if Path(weights).is_file() else f"--extractor_weights {weights}: no such file"
    if weights != "imagenet":
        return f"--extractor_weights {weights}: the folder of --visual_extractor {name} holds its weights; leave it out"
    folder = Path(name.partition(":")[2])
    there = any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    return None if there else f"--visual_extractor {name}: no model.safetensors there; put it there, or --extractor_weights none"


def library_side(name: str) -> int:
    """The side of the images that the model was made for, without building it."""
    kind, _, source = name.partition(":")
    if kind == "hf":
        config = read_json(Path(source) / "config.json", f"--visual_extractor {name}: give a folder of transformers")
        side = config.get("image_size")
        return side if isinstance(side, int) else 224
    return _known_to_timm(source).get_pretrained_cfg(source).input_size[-1]


@torch.no_grad()
def shape_problem(name: str, side: int) -> str | None:
    """Why images of `side` pixels cannot go through the model, or None."""
    try:
        body = LibraryBackbone(name).eval()
        try:
            body(torch.zeros(1, 3, side, side))
        except FAULTS as error:
            if isinstance(error, InputError):
                raise
            made = f"it was made for {body.side}"
            return f"--visual_extractor {name} does not take --image_size {side} ({made}): {_reason(error)}"
    except InputError as error:
        return str(error)
    return None

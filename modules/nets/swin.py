"""Swin Transformer (Liu et al. 2021) as a visual extractor: torchvision's network without its classifier.

Weights: torchvision's ImageNet-1k files, or Microsoft's (also ImageNet-22k) under their own names.
"""

import re

import torch
import torchvision
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

from modules.errors import InputError

SIZES = {  # width of the first stage, blocks and heads per stage
    "swin_t": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_b": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
}
_STAGE = re.compile(r"^layers\.(\d)\.(blocks\.(\d+)\.|downsample\.)(.+)$")
_INDEX = ("relative_position_index", "attn_mask")  # follow from the window: the model's own


class Swin(nn.Module):
    """[N, 3, H, W] -> [N, C, H / 32, W / 32], C = 8 times the first stage's width.

    drop_path: stochastic depth of the last block; it grows linearly from 0 at the first.
    """

    def __init__(self, name: str, drop_path: float = 0.1) -> None:
        super().__init__()
        width, depths, heads = SIZES[name]
        net = torchvision.models.SwinTransformer(
            [4, 4], width, list(depths), list(heads), [7, 7], stochastic_depth_prob=drop_path, num_classes=1
        )
        self.features, self.norm, self.width = net.features, net.norm, 8 * width
        for module in self.modules():
            if isinstance(module, ShiftedWindowAttention):
                module.register_buffer("relative_position_index", module.relative_position_index, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.features(x)).permute(0, 3, 1, 2)


def torchvision_keys(state: dict) -> dict:
    """Microsoft's key names -> torchvision's. Index and mask buffers are the model's own.

    Raises KeyError for a key that is neither.
    """
    renamed = {}
    for key, value in state.items():
        if key.endswith(_INDEX):
            continue
        stage = _STAGE.match(key)
        if stage:
            number, block, leaf = int(stage[1]), stage[3], stage[4]
            leaf = leaf.replace("mlp.fc1.", "mlp.0.").replace("mlp.fc2.", "mlp.3.")
            key = f"features.{2 * number + 1}.{block}.{leaf}" if block else f"features.{2 * number + 2}.{leaf}"
        elif key.startswith("patch_embed."):
            key = key.replace("patch_embed.proj.", "features.0.0.").replace("patch_embed.norm.", "features.0.2.")
        elif not key.startswith(("norm.", "head.")):
            raise KeyError(key)
        renamed[key] = value
    return renamed


def body_keys(state: dict) -> dict:
    """A classifier's state_dict, torchvision's or Microsoft's -> the keys of Swin. InputError: neither of them."""
    if "patch_embed.proj.weight" in state:
        try:
            state = torchvision_keys(state)
        except KeyError as error:
            raise InputError(f"not Microsoft's layout of Swin: unknown key {error}") from error
    return {key: value for key, value in state.items() if not key.startswith("head.") and not key.endswith(_INDEX)}

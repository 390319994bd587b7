"""CvT (Wu et al., ICCV 2021): a vision transformer whose patches and projections are made by convolutions.

N images, D width of a stage, h x w its grid. No position codes: the convolutions tell where a patch lies. Source of the
numbers: the paper and the behaviour of its released code; the activation is x sigmoid(1.702 x), not the exact GELU.
"""

import re
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from modules.checkpoint import rename_keys
from modules.precision import at_least_float32


@dataclass(frozen=True)
class CvTSize:
    """Per stage: width, blocks, heads. The last stage has a class token and drops whole branches while training."""

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    heads: tuple[int, ...]
    drop_path: float = 0.1


CVT_SIZES = {
    "cvt_21": CvTSize((64, 192, 384), (1, 4, 16), (1, 3, 6)),
    "cvt_small": CvTSize((32, 64, 128), (1, 1, 2), (1, 2, 4)),  # no published size: for tests and the miniature set
}


class LayerNorm(nn.LayerNorm):
    """Computed in float32 whatever the precision, as published."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(at_least_float32(x))


class ConvProjection(nn.Module):
    """Tokens as an image through a depth-wise 3x3 convolution and batch norm, then Linear. The class token skips the first."""

    def __init__(self, width: int, stride: int, norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, padding=1, bias=False, groups=width)
        self.norm, self.linear = norm(width), nn.Linear(width, width)

    def forward(self, token: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """token [N, 0 or 1, D], grid [N, D, h, w] -> [N, tokens, D]."""
        patches = self.norm(self.conv(grid)).flatten(2).mT
        return self.linear(torch.cat((token.to(patches.dtype), patches), 1))


class ConvAttention(nn.Module):
    """Queries at every patch, keys and values at every second one of each axis; scaled by D^-0.5, not by a head's width."""

    def __init__(self, width: int, heads: int, norm) -> None:
        super().__init__()
        self.heads, self.scale = heads, width**-0.5
        self.query = ConvProjection(width, 1, norm)
        self.key, self.value = ConvProjection(width, 2, norm), ConvProjection(width, 2, norm)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """x [N, (1 +) h w, D] -> the same shape."""
        token, patches = x.split((x.shape[1] - height * width, height * width), 1)
        grid = patches.mT.unflatten(2, (height, width))
        q, k, v = (
            part(token, grid).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x [N, tokens, D] -> the same shape; `drop`: probability that a branch is left out for an image (training)."""

    def __init__(self, width: int, heads: int, drop: float, norm) -> None:
        super().__init__()
        self.norm1, self.attention = LayerNorm(width), ConvAttention(width, heads, norm)
        self.norm2, self.linear1, self.linear2 = LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = StochasticDepth(drop, "row")

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        x = x + self.drop(self.attention(self.norm1(x), height, width))
        inner = self.linear1(self.norm2(x))
        return x + self.drop(self.linear2(inner * torch.sigmoid(1.702 * inner)))


class Stage(nn.Module):
    """A strided convolution makes the patches, blocks follow: [N, C, H, W] -> [N, D, h, w]."""

    def __init__(self, channels: int, width: int, heads: int, drops: list[float], norm, *, first: bool, token: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, *((7, 4, 2) if first else (3, 2, 1)))
        self.norm = LayerNorm(width)
        self.token = nn.Parameter(torch.zeros(1, 1, width)) if token else None
        self.blocks = nn.ModuleList(Block(width, heads, drop, norm) for drop in drops)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        height, width = x.shape[-2:]
        x = self.norm(x.flatten(2).mT)
        if self.token is not None:
            x = torch.cat((self.token.expand(len(x), -1, -1), x), 1)
        for block in self.blocks:
            x = block(x, height, width)
        return x[:, x.shape[1] - height * width :].mT.unflatten(2, (height, width))


class CvT(nn.Module):
    """Images [N, 3, H, W] -> the last block's patches [N, D, H / 16, W / 16], without the last norm.

    norm: function channels -> batch norm of the projections. Random start: Linear and class token truncated normal 0.02.
    """

    def __init__(self, name: str, norm=nn.BatchNorm2d) -> None:
        super().__init__()
        size, channels, last = CVT_SIZES[name], 3, len(CVT_SIZES[name].widths) - 1
        self.width, self.stages = size.widths[-1], nn.ModuleList()
        for number, (width, blocks, heads) in enumerate(zip(size.widths, size.blocks, size.heads)):
            drops = torch.linspace(0, size.drop_path if number == last else 0, blocks).tolist()
            stage = Stage(channels, width, heads, drops, norm, first=number == 0, token=number == last)
            self.stages.append(stage)
            channels = width
        if stage.token is not None:  # the last one's
            nn.init.trunc_normal_(stage.token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            images = stage(images)
        return images


# -- files of others ---------------------------------------------------------------------------------------------------

PARTS = {"q": "query", "k": "key", "v": "value"}
_BLOCK = r"^stage(\d)\.blocks\.(\d+)\."
RULES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^stage(\d)\.patch_embed\.proj\.(.+)$", r"stages.\1.embed.\2"),
        (r"^stage(\d)\.patch_embed\.norm\.(.+)$", r"stages.\1.norm.\2"),
        (r"^stage(\d)\.cls_token$", r"stages.\1.token"),
        (_BLOCK + r"norm([12])\.(.+)$", r"stages.\1.blocks.\2.norm\3.\4"),
        (_BLOCK + r"attn\.conv_proj_([qkv])\.conv\.(.+)$", lambda m: _projection(m, "conv")),
        (_BLOCK + r"attn\.conv_proj_([qkv])\.bn\.(.+)$", lambda m: _projection(m, "norm")),
        (_BLOCK + r"attn\.proj_([qkv])\.(.+)$", lambda m: _projection(m, "linear")),
        (_BLOCK + r"attn\.proj\.(.+)$", r"stages.\1.blocks.\2.attention.out.\3"),
        (_BLOCK + r"mlp\.fc([12])\.(.+)$", r"stages.\1.blocks.\2.linear\3.\4"),
        (r"^(?:norm|head)\.(?:weight|bias)$", None),  # a last norm and the classifier of 1000: never used
    )
)


def _projection(match: re.Match, part: str) -> str:
    return f"stages.{match[1]}.blocks.{match[2]}.attention.{PARTS[match[3]]}.{part}.{match[4]}"


HUGGING_FACE = (  # their names -> those of the published files, in this order
    (r"^cvt\.", ""),
    (r"^encoder\.stages\.(\d)\.", r"stage\1."),
    (r"\.embedding\.convolution_embeddings\.projection\.", ".patch_embed.proj."),
    (r"\.embedding\.convolution_embeddings\.normalization\.", ".patch_embed.norm."),
    (r"\.layers\.", ".blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.convolution_projection_(.)[a-z]+\.convolution_projection\.convolution\.",
     r".attn.conv_proj_\1.conv."),
    (r"\.attention\.attention\.convolution_projection_(.)[a-z]+\.convolution_projection\.normalization\.",
     r".attn.conv_proj_\1.bn."),
    (r"\.attention\.attention\.projection_(.)[a-z]+\.", r".attn.proj_\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)  # fmt: skip


def own_names(state: dict, what: str) -> dict:
    """A CvT state_dict in the published names or in Hugging Face's -> ours; InputError for a key without a rule."""
    published = {}
    for key, value in state.items():
        for pattern, name in HUGGING_FACE if re.match(r"(cvt\.)?encoder\.stages\.|layernorm\.|classifier\.", key) else ():
            key = re.sub(pattern, name, key)
        published[key] = value
    return rename_keys(published, RULES, what)

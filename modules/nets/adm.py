"""ADM, the aggregate discriminative attention map: maps, masks and their use (EKAGen).

A mask is a boolean image (300 x 300 as released), True where the classifier looked for the diagnosed labels.
"""

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from modules.errors import InputError
from modules.nets.diagnosisbot import DiagnosisBot

SIDE = 300
RULES = ("released", "cam", "sdam")  # how a map becomes a mask


def apply_mask(image: Image.Image, mask: np.ndarray, *, theta: float, gamma: float, beta: float = 1.0) -> Image.Image:
    """The masked view of an image, grey or RGB.

    mask: bool [h, w], resized to the image (nearest) when it differs. If mean(mask) > theta the result is
    beta * x inside and gamma * x outside, each cut to whole 0..255 values; else x unchanged. beta is the paper's factor,
    which the released code never reads (1.0 changes nothing).
    """
    if not mask.mean() > theta:
        return image
    if mask.shape != (image.height, image.width):
        mask = np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))
    pixels = np.asarray(image)
    mask = mask if pixels.ndim == 2 else mask[:, :, None]
    inside, outside = (np.clip(np.arange(256) * float(factor), 0, 255).astype(np.uint8) for factor in (beta, gamma))
    return Image.fromarray(np.where(mask, inside.take(pixels), outside.take(pixels)))


def scaled(maps: torch.Tensor) -> torch.Tensor:
    """Grad-CAM's scaling, per map [..., h, w]: negative values to 0, minimum to 0, maximum to (almost) 1."""
    maps = maps.clamp(min=0)
    maps = maps - maps.amin((-2, -1), keepdim=True)
    return maps / (1e-7 + maps.amax((-2, -1), keepdim=True))


@torch.no_grad()
def coarse_maps(bot: DiagnosisBot, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Grad-CAM of every label in one forward pass, unscaled: images [N, 3, S, S] -> maps [N, K, h, w], probabilities.

    The layer is the last one before pooling, the score the probability. Its gradient needs no backward pass: behind that
    layer stand only a mean and one Linear, so d p_k / d A_c = p_k (1 - p_k) W_kc / (h w) at every position.
    Source: Selvaraju et al. 2017, as used by the released mask generator.
    """
    net = bot.classifier
    if not isinstance(getattr(net.net, "fc", None), torch.nn.Linear):
        raise InputError(
            f"ADM needs a classifier that ends in a pooled linear layer (a ResNet, say), not {bot.backbone}"
        )
    kept = []
    handle = net.last.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        probabilities = bot(images)
    finally:
        handle.remove()
    features = kept[0]
    slope = probabilities * (1 - probabilities) / features[0, 0].numel()
    return torch.einsum("nk,kc,nchw->nkhw", slope, net.net.fc.weight, features), probabilities


def enlarged(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Coarse maps [N, M, h, w] -> scaled, resized (half-pixel centres) and scaled again, [N, M, side, side] in 0..1."""
    return scaled(F.interpolate(scaled(maps), (side, side), mode="bilinear", align_corners=False))


def gradcam(bot: DiagnosisBot, images: torch.Tensor, side: int = SIDE) -> tuple[torch.Tensor, torch.Tensor]:
    """Grad-CAM maps of every label: images [N, 3, S, S] -> maps [N, K, side, side] in 0..1, probabilities [N, K]."""
    maps, probabilities = coarse_maps(bot, images)
    return enlarged(maps, side), probabilities


def masks_of(maps: torch.Tensor, rule: str) -> torch.Tensor:
    """Maps [..., h, w] in 0..1 -> bool masks of the same shape, dilated by a 5 x 5 square.

    released: the map coloured with the 256-step JET table, a pixel kept if R, G or B exceeds 0.6 of 1. In that table blue
    passes 0.6 from step 7 on, red stays above it up to step 248, and between them some colour always does.
    cam: map > 0.6, what that threshold reads like.
    sdam: released, of the map turned over (CSR-LMCA): the hottest core goes too, where dilation does not bring it back.
    """
    if rule in ("released", "sdam"):
        maps = 1 - maps if rule == "sdam" else maps
        step = (255 * maps).to(torch.uint8)
        kept = (step >= 7) & (step <= 248)
    elif rule == "cam":
        kept = maps > 0.6
    else:
        raise ValueError(f"ADM rule {rule}: choose {', '.join(RULES)}")
    flat = kept.flatten(0, -3)[:, None].float() if kept.dim() > 2 else kept[None, None].float()
    return F.max_pool2d(flat, 5, stride=1, padding=2).bool().view(kept.shape)


def classifier_masks(bot: DiagnosisBot, images: torch.Tensor, rule: str, side: int = SIDE) -> torch.Tensor:
    """ADM masks [N, side, side] of images [N, 3, S, S]: the masks of the diagnosed labels joined; none: empty."""
    maps, probabilities = coarse_maps(bot, images)
    study, label = bot.diagnose(probabilities).nonzero(as_tuple=True)
    joined = torch.zeros(len(images), side, side, dtype=torch.bool, device=maps.device)
    if len(study):  # only the diagnosed labels' maps are enlarged
        masks = masks_of(enlarged(maps[study, label][:, None], side), rule)[:, 0]
        joined = joined.long().index_add(0, study, masks.long()) > 0
    return joined



"""Where the regions of a chest image lie: one box and one presence per region, straight from the mean of a feature map.

A region has at most one box, so there are no anchors and nothing to suppress. Letters: B images, R regions, S side.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from modules.nets.visual_extractor import build_backbone

WHAT = "region detector"


class RegionDetector(nn.Module):
    """Images [B, 3, S, S] -> boxes [B, R, 4] in fractions (x0 y0 x1 y1) and presence [B, R] as logits.

    backbone: name of modules/nets/visual_extractor.py. regions: R names in the order of the outputs. side: S in pixels.
    """

    def __init__(self, backbone: str, regions: tuple[str, ...], side: int) -> None:
        super().__init__()
        self.backbone, self.regions, self.side = backbone, tuple(regions), side
        self.body, width = build_backbone(backbone, frozen_norm=False)
        self.head = nn.Linear(width, len(self.regions) * 5)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def start_from(self, boxes: torch.Tensor, present: torch.Tensor) -> None:
        """Let the head begin with the mean box [R, 4] and the share of images [R] of each region."""
        centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        with torch.no_grad():
            values = torch.cat([centre, size, present[:, None]], 1).clamp(0.01, 0.99)
            self.head.bias.copy_(values.logit().flatten())

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images = images.contiguous(memory_format=torch.channels_last)  # twice as fast where convolutions go by channel
        values = self.head(self.body(images).mean((2, 3))).float().view(len(images), len(self.regions), 5)
        centre, half = values[..., :2].sigmoid(), values[..., 2:4].sigmoid() / 2
        return torch.cat([centre - half, centre + half], -1).clamp(0, 1), values[..., 4]

    def loss(self, images: torch.Tensor, boxes: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """L1 + generalised IoU of the boxes that are there (boxes [B, R, 4], present bool [B, R]) + cross-entropy of presence."""
        found, logits = self(images)
        loss = F.binary_cross_entropy_with_logits(logits, present.float())
        if present.any():
            loss = loss + F.l1_loss(found[present], boxes[present]) * 4  # of the four corners together
            loss = loss + generalized_box_iou_loss(found[present], boxes[present], reduction="mean")
        return loss

    def state(self) -> dict:
        """Plain values and tensors, enough to build it again."""
        weights = {key: value.cpu() for key, value in self.state_dict().items()}
        facts = {"backbone": self.backbone, "regions": list(self.regions), "side": self.side}
        return {"what": WHAT, "kind": "detector", **facts, "state_dict": weights}

    @classmethod
    def from_state(cls, state: dict) -> "RegionDetector":
        """The detector that `state` described, in evaluation mode."""
        detector = cls(state["backbone"], tuple(state["regions"]), state["side"])
        detector.load_state_dict(state["state_dict"], strict=True)
        return detector.eval()

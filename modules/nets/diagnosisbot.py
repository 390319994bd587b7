"""DiagnosisBot: an image -> K probabilities -> a diagnosis, by one threshold per label. Also serves the ADM classifier.

A file of ours holds backbone, label names, thresholds and weights together. The authors' files are bare state_dicts:
Swin-Tiny (diagnosisbot.pth) and ResNet-34 (MIMIC_best_weight.pth); their thresholds are in RELEASED_THRESHOLDS.
"""

import hashlib
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import ShiftedWindowAttention

from modules.errors import InputError
from modules.nets.swin import torchvision_keys
from modules.nets.visual_extractor import Classifier
from modules.safe_pickle import load_pickle
from modules.text.labels import CHEXPERT_14

# The authors' thresholds, in the order of CHEXPERT_14; they serve the DiagnosisBot and the ADM classifier alike.
RELEASED_THRESHOLDS = (
    # fmt: off
    0.16723023355007172,
    0.1947029083967209,
    0.029259558767080307,
    0.1620151698589325,
    0.021117646247148514,
    0.018800165504217148,
    0.02309785969555378,
    0.27516457438468933,
    0.1392412632703781,
    0.32653239369392395,
    0.031462669372558594,
    0.06353640556335449,
    0.03490791097283363,
    0.38705959916114807,
    # fmt: on
)


class ShiftedWholeWindow(ShiftedWindowAttention):
    """Window attention that shifts even where one window covers the map, as the authors' Swin does in its last stage.

    torchvision (and Microsoft's code) leave the shift out there; the released weights were trained with it.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, h, w, C] -> the same shape; h x w is one window."""
        count, height, wide, width = x.shape
        if (height, wide) != tuple(self.window_size):
            return super().forward(x)
        shift = self.shift_size
        x = x.roll((-shift[0], -shift[1]), (1, 2)).flatten(1, 2)
        rows = torch.arange(height, device=x.device) >= height - shift[0]
        columns = torch.arange(wide, device=x.device) >= wide - shift[1]
        region = (2 * rows[:, None] + columns[None, :].long()).flatten()
        q, k, v = self.qkv(x).view(count, -1, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        apart = torch.where(region[:, None] == region[None, :], 0.0, -100.0)
        bias = (self.get_relative_position_bias() + apart).to(q.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        return self.proj(mixed).view(count, height, wide, width).roll((shift[0], shift[1]), (1, 2))


class DiagnosisBot(nn.Module):
    """Images [N, 3, S, S] -> probabilities [N, K]; diagnosis = probability > threshold.

    labels: K names in the order of the outputs. thresholds: float [K]. side: image side S in pixels.
    """

    thresholds: torch.Tensor

    def __init__(self, backbone: str, labels: tuple[str, ...], thresholds, side: int = 224) -> None:
        super().__init__()
        self.backbone, self.labels, self.side = backbone, tuple(labels), side
        self.classifier = Classifier(backbone, len(labels))
        if backbone == "swin_t":  # same parameters, other shift
            whole = ShiftedWholeWindow(768, window_size=[7, 7], shift_size=[3, 3], num_heads=24)
            self.classifier.net.features[7][1].attn = whole
        self.register_buffer("thresholds", torch.as_tensor(thresholds, dtype=torch.float32), persistent=False)
        if self.thresholds.shape != (len(labels),):
            raise ValueError(f"{len(labels)} labels need as many thresholds, found {list(self.thresholds.shape)}")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(images).sigmoid()

    def diagnose(self, probabilities: torch.Tensor) -> torch.Tensor:
        """[N, K] probabilities -> int [N, K] of 0/1."""
        return (probabilities > self.thresholds).long()

    def fingerprint(self) -> str:
        """Hash of the weights: probabilities made by one bot are never taken for another's."""
        digest = hashlib.sha256(self.backbone.encode())
        for key, value in self.classifier.net.state_dict().items():
            digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def state(self) -> dict:
        """Plain values and tensors, enough to build it again."""
        weights = {key: value.cpu() for key, value in self.classifier.net.state_dict().items()}
        facts = {"backbone": self.backbone, "labels": list(self.labels), "thresholds": self.thresholds.tolist()}
        return {"format": 1, "what": "classifier", **facts, "side": self.side, "state_dict": weights}

    @classmethod
    def from_state(cls, state: dict) -> "DiagnosisBot":
        """The classifier of what `state` returned. InputError when that is damaged."""
        try:
            bot = cls(state["backbone"], tuple(state["labels"]), state["thresholds"], state["side"])
            bot.classifier.net.load_state_dict(state["state_dict"], strict=True)
        except InputError:
            raise
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"the classifier is damaged ({str(error)[:200]}); train it again") from error
        return bot.eval()


def load_diagnosisbot(path: str | Path, *, labels=CHEXPERT_14, flag="--diagnosisbot", side=224) -> DiagnosisBot:
    """Our file, or a bare state_dict of the authors (Swin-Tiny or ResNet-34) with the authors' thresholds.

    Raises InputError: not such a file, other labels or another order than `labels`.
    """
    content = load_pickle(path)
    if isinstance(content, dict) and content.get("what") == "classifier":
        bot = DiagnosisBot.from_state(content)
    else:
        bot = _released(content, path, labels, flag, side)
    if bot.labels != tuple(labels):
        raise InputError(
            f"{flag} {path}: its labels are {', '.join(bot.labels)}; this run needs {', '.join(labels)}, in this order"
        )
    return bot


def _released(content, path, labels, flag, side) -> DiagnosisBot:
    state = content.get("model", content.get("state_dict", content)) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise InputError(f"{flag} {path} is not a state_dict")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    head = state.get("head.weight", state.get("fc.weight"))
    if head is None or not {"patch_embed.proj.weight", "layer4.0.conv1.weight"} & set(state):
        raise InputError(
            f"{flag} {path}: neither a Swin-Tiny nor a ResNet-34 classifier (found {', '.join(list(state)[:3])} ...)"
        )
    if head.shape[0] != len(labels):
        raise InputError(f"{flag} {path} has {head.shape[0]} outputs, this run has {len(labels)} labels")
    swin = "patch_embed.proj.weight" in state
    bot = DiagnosisBot("swin_t" if swin else "resnet34", labels, RELEASED_THRESHOLDS, side)
    try:
        state = torchvision_keys(state) if swin else state
        own = {
            k: v
            for k, v in bot.classifier.net.state_dict().items()
            if k.endswith(("position_index", "batches_tracked"))
        }
        bot.classifier.net.load_state_dict({**own, **state}, strict=True)
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{flag} {path} does not fit {bot.backbone}: {str(error)[:600]}") from error
    return bot.eval()

"""The scene graph of an image: which regions the report will speak of, what is seen in each, one vector per region.

B studies, E width of the extractor, D width of the transformer, R regions, N boxes, G sub-graphs (chosen boxes of all
studies, study after study), A attributes of all regions, M of the region that has most. Source: Wang et al. 2025 (SGRRG).
"""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_pool

from modules.nets.memory import MemoryResponse
from modules.nets.transformer import Attention, DecoderLayer, EncoderLayer
from modules.precision import at_least_float32

NEVER = -1e4  # logit of an attribute that a region does not have


class RegionSelector(nn.Module):
    """Mean of the patches [B, E] -> logits [B, R]: will the report speak of the region? rows=0: without the memory."""

    def __init__(self, width: int, regions: int, *, rows: int, heads: int, topk: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.memory = None
        if rows:
            self.memory = nn.Parameter(torch.randn(rows, width) / width)
            self.project_memory = nn.Linear(width, width)
            self.respond = MemoryResponse(width, heads, topk, dropout)
        self.fuse = nn.Linear(2 * width if rows else width, width)
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(width, regions)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        x = self.project(pooled)
        if self.memory is not None:
            bank = self.respond.rows(self.project_memory(self.memory)[None])
            x = torch.cat([x, self.respond(x[:, None], *bank)[:, 0]], -1)
        return self.head(self.dropout(F.gelu(self.fuse(x))))


class BoxFeatures(nn.Module):
    """The maximum of the feature map inside each box, projected: [G, E]."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(width, width), nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, features: torch.Tensor, study: torch.Tensor, boxes: torch.Tensor, side: int) -> torch.Tensor:
        """features [B, E, h, w] of images of `side` pixels; of each box its study [G] and x0 y0 x1 y1 in pixels [G, 4]."""
        rois = torch.cat([study[:, None].to(boxes.dtype), boxes], 1)
        # corners are rounded to cells; a box that starts outside the map gives zeros
        pooled = roi_pool(at_least_float32(features), rois.to(at_least_float32(features)), 1, features.shape[-1] / side)
        return self.dropout(F.gelu(self.norm(self.linear(pooled.flatten(1)))))


class AttributeHeads(nn.Module):
    """One linear layer per region: [G, E] -> logits [G, M], NEVER beyond the region's own.

    A head whose region is not among the G is not used at all: it gets no gradient, so no decay and no momentum.
    """

    def __init__(self, width: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes
        self.heads = nn.ModuleDict({str(r): nn.Linear(width, size) for r, size in enumerate(sizes) if size})

    def forward(self, features: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        order = regions.argsort(stable=True)
        counts = regions.bincount(minlength=len(self.sizes)).tolist()
        rows = []
        for region, part in enumerate(features[order].split(counts)):
            if counts[region]:
                logits = self.heads[str(region)](part) if self.sizes[region] else part[:, :0]
                rows.append(F.pad(logits, (0, max(self.sizes) - self.sizes[region]), value=NEVER))
        return torch.cat(rows)[order.argsort()]


class GraphEncoder(nn.Module):
    """A sub-graph (a region and its attributes) -> one vector: self-attention over the nodes, then their maximum."""

    starts: torch.Tensor

    def __init__(self, width: int, sizes: tuple[int, ...], out: int, *, layers: int, **shape) -> None:
        """sizes: attributes per region; shape: the keywords of EncoderLayer."""
        super().__init__()
        starts = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
        self.register_buffer("starts", starts, persistent=False)
        self.project, self.kind = nn.Linear(width, out), nn.Embedding(len(sizes) + 1, out)  # the last kind: attribute
        self.attribute = nn.Embedding(sum(sizes) + 1, out)  # the last row: padding
        self.norm, self.dropout = nn.LayerNorm(out), nn.Dropout(shape["dropout"])
        self.layers = nn.ModuleList(EncoderLayer(out, **shape) for _ in range(layers))
        self.end_norm = nn.LayerNorm(out)

    def forward(self, features: torch.Tensor, regions: torch.Tensor, attributes: torch.Tensor) -> torch.Tensor:
        """Of each sub-graph its box's features [G, E], its region [G], its attributes bool [G, M] -> [G, D]."""
        real, numbers = attributes.to(torch.uint8).sort(dim=1, descending=True, stable=True)
        most = int(real.sum(1).max())
        real, numbers = real[:, :most].bool(), numbers[:, :most] + self.starts[regions][:, None]
        numbers = numbers.masked_fill(~real, self.attribute.num_embeddings - 1)
        nodes = self.dropout(self.norm(self.attribute(numbers) + self.kind.weight[-1]))
        x = torch.cat([(self.project(features) + self.kind(regions))[:, None], nodes], 1)
        real = F.pad(real, (1, 0), value=True)
        for layer in self.layers:
            x = layer(x, None, real[:, None, None, :])
        return self.end_norm(x).masked_fill(~real[..., None], -torch.inf).amax(1)


class GraphDecoderLayer(DecoderLayer):
    """Self-attention, attention to the patches, attention to the study's sub-graphs, feed-forward.

    keys, values and masks of what is looked at come in pairs (patches, sub-graphs); those of the sub-graphs are None where
    no study of the batch has one. A study without any skips that attention.
    """

    def __init__(self, width: int, heads: int, inner: int, dropout: float, norm=nn.LayerNorm, **settings) -> None:
        super().__init__(width, heads, inner, dropout, norm, **settings)
        self.graph_attention, self.graph_norm = Attention(width, heads, dropout), norm(width)

    def graphs(self, graphs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the sub-graphs [B, G', D], made once per study: two of [B, heads, G', D / heads]."""
        a = self.graph_attention
        return a.project("k", graphs).contiguous(), a.project("v", graphs).contiguous()

    def _rest(self, x, position, keys, values, memory_mask, condition):
        a = self.cross_attention
        seen = a.attend(a.project("q", self.norm2(x)), keys[0], values[0], mask=memory_mask[0])
        x = x + self.dropout(seen)
        if keys[1] is not None:
            a, mask = self.graph_attention, memory_mask[1]
            some = mask.any(-1)[:, 0, :, None]  # [B, 1, 1]
            # where there is none the attention looks at the zeros that fill the row, and is not added
            seen = a.attend(a.project("q", self.graph_norm(x)), keys[1], values[1], mask=mask | ~some[:, None])
            x = torch.where(some, x + self.dropout(seen), x)
        return x + self.dropout(self.feed(self.norm3(x)))


def side_by_side(graphs: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of the chosen boxes [G, D], chosen bool [B, N] -> [B, G', D] and which are real, bool [B, G']."""
    counts = chosen.sum(1)
    real = torch.arange(int(counts.max()), device=chosen.device) < counts[:, None]
    return graphs.new_zeros(*real.shape, graphs.shape[1]).masked_scatter(real[..., None], graphs), real


def contrast_loss(graphs: torch.Tensor, regions: torch.Tensor, abnormal: torch.Tensor, margin: float) -> torch.Tensor:
    """Mean over all ordered pairs of sub-graphs of one region, each with itself too: graphs [G, D], abnormal bool [G].

    Alike (both normal or both abnormal): 1 - cosine; else the cosine above `margin`.
    """
    with torch.autocast(graphs.device.type, enabled=False):
        graphs = F.normalize(at_least_float32(graphs), dim=-1)
        cosine = graphs @ graphs.mT
        alike = abnormal[:, None] == abnormal
        each = torch.where(alike, 1 - cosine, cosine - margin).relu()
        pairs = regions[:, None] == regions
        return (each * pairs).sum() / pairs.sum()

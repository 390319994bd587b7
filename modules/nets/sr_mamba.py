"""SR-Mamba: the patches of a view read in two orders by a selective scan. Source: Yang et al. 2024 (MambaMIL), CSR-LMCA.

B images, P patches, F width of the extractor, D width here, E = 2 D channels of the scan, N states, R rank of the step.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from modules.nets.selective_scan import selective_scan
from modules.precision import at_least_float32

STATES, KERNEL, RATE = 16, 4, 10  # states of a channel, taps of the convolution, stride of the second order
STEPS = (0.001, 0.1)  # smallest and largest step at the careful start


def rearranged(x: torch.Tensor, rate: int = RATE) -> torch.Tensor:
    """[B, L, any] -> [B, K rate, any], K = ceil(L / rate): zeros at the end, then every `rate`-th position, from 0 on, 1 on ...

    Position k rate + j moves to j K + k.
    """
    groups = -(-x.shape[1] // rate)
    x = F.pad(x, (0, 0, 0, groups * rate - x.shape[1]))
    return x.unflatten(1, (groups, rate)).transpose(1, 2).flatten(1, 2)


def restored(x: torch.Tensor, length: int, rate: int = RATE) -> torch.Tensor:
    """The inverse of `rearranged`: [B, K rate, any] -> [B, length, any]."""
    return x.unflatten(1, (rate, -1)).transpose(1, 2).flatten(1, 2)[:, :length]


class ScanPath(nn.Module):
    """One reading: causal convolution, SiLU, a selective scan whose B, C and step depend on the position.

    u [B, L, E] -> [B, L, E]: c = SiLU(conv u); [r | B | C] = x_proj c; dt = softplus(dt_proj r); y = scan(c, dt, -exp A_log, B,
    C, D).
    """

    def __init__(self, channels: int, rank: int, *, scan: str) -> None:
        super().__init__()
        self.rank, self.scan = rank, scan
        self.conv = nn.Conv1d(channels, channels, KERNEL, groups=channels)
        self.x_proj = nn.Linear(channels, rank + 2 * STATES, bias=False)
        self.dt_proj = nn.Linear(rank, channels)
        self.A_log = nn.Parameter(torch.arange(1.0, STATES + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        c = F.silu(self.conv(F.pad(u.mT, (KERNEL - 1, 0))).mT)
        r, B, C = self.x_proj(c).split((self.rank, STATES, STATES), -1)
        dt = F.softplus(self.dt_proj(r))
        return selective_scan(c, dt, -torch.exp(self.A_log), B, C, self.D, form=self.scan)


class SRMamba(nn.Module):
    """x [B, L, D] -> [B, L, D]: the sum of two readings, in order and rearranged, gated by SiLU(z). float32 also in autocast.

    start: "mamba" = steps start between 0.001 and 0.1, the same draw for both readings; "zero" = bias 0, steps of about 0.7.
    """

    in_float32 = True  # see Precision.generation

    def __init__(self, width: int, *, scan: str = "auto", start: str = "mamba") -> None:
        super().__init__()
        channels, rank = 2 * width, -(-width // 16)
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        self.ordered, self.rearranged = (ScanPath(channels, rank, scan=scan) for _ in range(2))
        self.out_proj = nn.Linear(channels, width, bias=False)
        xavier_normal(self)
        if start == "mamba":
            self._careful_start()
        elif start != "zero":
            raise ValueError(f"start of the steps {start}: choose mamba or zero")

    @torch.no_grad()
    def _careful_start(self) -> None:
        low, high = (math.log(value) for value in STEPS)
        bias = self.ordered.dt_proj.bias
        step = torch.exp(low + (high - low) * torch.rand_like(bias))
        bound = 1 / math.sqrt(self.ordered.rank)
        for path in (self.ordered, self.rearranged):
            path.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus gives the step back
            nn.init.uniform_(path.dt_proj.weight, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            u, z = self.in_proj(at_least_float32(x)).chunk(2, -1)
            y = self.ordered(u) + restored(self.rearranged(rearranged(u)), u.shape[1])
            return self.out_proj(y * F.silu(z))


class SRBranch(nn.Module):
    """Patches of one view x [B, P, F] -> the same shape: ReLU(dropout(x + scale (f - x))), f what SR-Mamba layers make of x.

    output: "tokens" = one f per patch; "vector" = one per view, the patches' mean weighted by an attention pool.
    scale_learned: the weight of f is one trained number that starts at `scale`.
    """

    def __init__(
        self,
        features: int,
        width: int = 512,
        *,
        layers: int = 2,
        output: str = "tokens",
        scale: float = 0.001,
        scale_learned: bool = True,
        start: str = "mamba",
        scan: str = "auto",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if output not in ("tokens", "vector"):
            raise ValueError(f"output of SR-Mamba {output}: choose tokens or vector")
        self.narrow = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.layers = nn.ModuleList(SRMamba(width, scan=scan, start=start) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.pool = None
        if output == "vector":
            self.pool = nn.Sequential(nn.Linear(width, width // 4), nn.Tanh(), nn.Linear(width // 4, 1))
        self.widen = nn.Linear(width, features)
        self.dropout = nn.Dropout(dropout)
        for part in (self.narrow, self.pool, self.widen):
            if part is not None:
                xavier_normal(part)
        self.scale = nn.Parameter(torch.tensor(float(scale))) if scale_learned else float(scale)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        """Patches [B, P, F] -> [B, P, D] behind the layers and their norm."""
        h = self.narrow(x)
        for norm, layer in zip(self.norms, self.layers):
            h = h + layer(norm(h))
        return self.norm(h)

    def seen(self, x: torch.Tensor) -> torch.Tensor:
        """f: [B, P, F] for each patch, or [B, 1, F] for the view."""
        h = self.tokens(x)
        if self.pool is not None:
            h = self.pool(h).softmax(1).mT @ h
        return self.widen(h)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.dropout(x + self.scale * (self.seen(x) - x)))


def xavier_normal(part: nn.Module) -> None:
    """Every Linear starts xavier-normal, its bias 0, as released."""
    for module in part.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

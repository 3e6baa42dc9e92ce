"""Global-guided normalisation (GGN): local features are normalised, then scaled and shifted by maps made from the whole scene.

After the abstract of Zhu et al., TGRS 2024 (doi 10.1109/TGRS.2024.3482688), the only text at hand: that local features are normalised
and modulated with parameters from global features is theirs; shapes and all other choices are ours.
"""

from torch import Tensor, nn

from rsdistill.models.pyramid import norm_layer


class GlobalGuidedNorm(nn.Module):
    """relu(norm(L) · (1 + gamma) + beta), where norm has no parameters of its own and acts the same on every tile."""

    def __init__(self, dim: int, norm: str) -> None:
        super().__init__()
        self.norm = norm_layer(norm, dim, affine=False)

    def forward(self, local: Tensor, guidance: Tensor) -> Tensor:
        """Return (N, D, h, w).

        Args:
            local: (N, D, h, w) features.
            guidance: (N, 2D, h, w) or (N, 2D, 1, 1): gamma, then beta.
        """
        gamma, beta = guidance.chunk(2, dim=1)
        guided: Tensor = self.norm(local) * (1 + gamma) + beta
        return guided.relu()


class PlainNorm(nn.Module):
    """relu(norm(L)) with the norm's own scale and shift: what stands where GGN is left out."""

    def __init__(self, dim: int, norm: str) -> None:
        super().__init__()
        self.norm = norm_layer(norm, dim)

    def forward(self, local: Tensor) -> Tensor:
        """Return (N, D, h, w) for features of that shape."""
        normed: Tensor = self.norm(local)
        return normed.relu()


class Guide(nn.Module):
    """Makes gamma and beta from the global pyramid, on its own coarse grid: 64 times cheaper at r = 8 than on the tile's, and seamless."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(2 * dim, hidden, 3, padding=1)
        self.outer = nn.Conv2d(hidden, 2 * dim, 3, padding=1)
        # Zero: training begins with plain normalisation, and the guidance grows from there.
        nn.init.zeros_(self.outer.weight)
        if self.outer.bias is not None:
            nn.init.zeros_(self.outer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return guidance (M, 2D, h, w) from features (M, 2D, h, w)."""
        guidance: Tensor = self.outer(self.inner(features).relu())
        return guidance

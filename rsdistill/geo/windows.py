"""Windows and grids: integer rectangles of pixels, and where on Earth they lie."""

from dataclasses import dataclass
from math import ceil, gcd
from typing import NamedTuple, Self

from affine import Affine
from rasterio.crs import CRS


class Window(NamedTuple):
    """An integer rectangle of pixels; rows run down, columns to the right."""

    row: int
    col: int
    height: int
    width: int

    @property
    def stop(self) -> tuple[int, int]:
        """The (row, col) one past the last pixel."""
        return self.row + self.height, self.col + self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Numpy slices of this window in an array that starts at (0, 0)."""
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)

    def intersection(self, other: "Window") -> "Window":
        """The pixels in both windows; height or width is 0 where they do not meet."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        stop_row, stop_col = min(self.stop[0], other.stop[0]), min(self.stop[1], other.stop[1])
        return Window(row, col, max(0, stop_row - row), max(0, stop_col - col))

    def grown(self, margin: int, height: int, width: int) -> "Window":
        """Return this window with ``margin`` pixels more on each side, clipped to a raster of ``height`` × ``width``."""
        row, col = max(0, self.row - margin), max(0, self.col - margin)
        return Window(row, col, min(height, self.stop[0] + margin) - row, min(width, self.stop[1] + margin) - col)

    def relative_to(self, origin: "Window") -> "Window":
        """Return this window counted from the upper left pixel of ``origin``."""
        return Window(self.row - origin.row, self.col - origin.col, self.height, self.width)


@dataclass(frozen=True)
class Grid:
    """A raster's pixels on Earth: size, CRS (None: pixel coordinates only) and the affine transform of pixel edges."""

    height: int
    width: int
    crs: CRS | None
    transform: Affine

    @property
    def window(self) -> Window:
        """All pixels."""
        return Window(0, 0, self.height, self.width)

    @property
    def georeferenced(self) -> bool:
        """True where a CRS is known."""
        return self.crs is not None

    @property
    def rotated(self) -> bool:
        """True where rows do not run along the x axis (rotation or shear)."""
        return abs(self.transform.b) > 1e-9 * abs(self.transform.a) or abs(self.transform.d) > 1e-9 * abs(self.transform.e)

    @property
    def pixel_size(self) -> tuple[float, float]:
        """Height and width of a pixel in the CRS's units."""
        a, b, _, d, e, _ = self.transform[:6]
        return (b * b + e * e) ** 0.5, (a * a + d * d) ** 0.5

    def __getitem__(self, window: Window) -> Self:
        """The sub-grid of ``window``."""
        return type(self)(window.height, window.width, self.crs, self.transform @ Affine.translation(window.col, window.row))


class Placement(NamedTuple):
    """One window of a plan: what is read, and the core inside it that it owns."""

    read: Window
    core: Window


@dataclass(frozen=True)
class Plan:
    """Even, snug windows over a raster; every pixel lies in exactly one core."""

    height: int
    width: int
    tile: tuple[int, int]
    margin: int
    rows: tuple[tuple[int, int, int], ...]
    """Per row of windows: first row read, first row owned, one past the last row owned."""
    cols: tuple[tuple[int, int, int], ...]

    @property
    def overlap_factor(self) -> float:
        """Pixels that pass through the network per pixel of the raster."""
        return len(self.rows) * self.tile[0] * len(self.cols) * self.tile[1] / (self.height * self.width)

    def placement(self, i: int, j: int) -> Placement:
        """The window in row ``i`` and column ``j`` of the plan; ``read`` is clipped to the raster."""
        (top, core_top, core_bottom), (left, core_left, core_right) = self.rows[i], self.cols[j]
        height, width = min(self.tile[0], self.height - top), min(self.tile[1], self.width - left)
        return Placement(Window(top, left, height, width), Window(core_top, core_left, core_bottom - core_top, core_right - core_left))

    def __len__(self) -> int:
        return len(self.rows) * len(self.cols)


def _axis(length: int, tile_max: int, margin: int, stride: int) -> tuple[int, tuple[tuple[int, int, int], ...]]:
    """Cut ``length`` pixels into windows of one size: (size, (start, core start, core stop) each).

    The count is the least that ``tile_max`` allows; the size is then the least multiple of ``stride`` that still gives each inner
    cut ``margin`` pixels on both sides, and the windows are spread evenly so that all the overlap paid for is used. They start on
    multiples of ``stride``, since a network that makes its maps smaller answers otherwise when its input moves by less than that; of
    a divisor of it where the margin leaves less than a stride (an exported model takes whole tiles only). The last one may reach
    beyond the raster.
    """
    if length <= tile_max:
        size = ceil(length / stride) * stride
        return size, ((0, 0, length),)
    room = tile_max - 2 * margin
    step = stride if room >= stride else gcd(room, stride)
    gaps = ceil(ceil((length - tile_max) / step) / (room // step))
    size = ceil((length + 2 * margin * gaps) / (gaps + 1) / stride) * stride
    while ceil(ceil((length - size) / step) / gaps) * step > size - 2 * margin:
        size += stride
    slack = ceil((length - size) / step)
    starts = [step * round(k * slack / gaps) for k in range(gaps + 1)]
    cuts = [0, *((starts[k] + size + starts[k + 1]) // 2 for k in range(gaps)), length]
    return size, tuple((starts[k], cuts[k], cuts[k + 1]) for k in range(gaps + 1))


def plan(height: int, width: int, tile_max: int, margin: int, stride: int = 1) -> Plan:
    """Plan windows over a raster of ``height`` × ``width`` pixels.

    Args:
        height: rows of the raster, ≥ 1.
        width: columns of the raster, ≥ 1.
        tile_max: largest window side in pixels; a multiple of ``stride``.
        margin: pixels read but not owned on each inner side of a window.
        stride: windows' sides are multiples of it, what the network needs.

    Raises:
        ValueError: the margin leaves no core, or ``tile_max`` is no multiple of ``stride``.
    """
    if min(height, width) < 1:
        raise ValueError(f"a raster of {height} x {width} pixels has no windows")
    if tile_max % stride or tile_max < stride:
        raise ValueError(f"tile {tile_max} is not a multiple of the network's stride {stride}")
    if tile_max - 2 * margin < 1 or margin < 0:
        raise ValueError(f"margin {margin} leaves no core in a tile of {tile_max}")
    tile_height, rows = _axis(height, tile_max, margin, stride)
    tile_width, cols = _axis(width, tile_max, margin, stride)
    return Plan(height, width, (tile_height, tile_width), margin, rows, cols)

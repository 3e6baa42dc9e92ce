"""Pages of the reports: templates filled in, with figures as people read them."""

from base64 import b64encode
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import Any

from rsdistill.geo.files import atomic


def write_page(path: Path, template: str, **content: Any) -> None:
    """Fill a template of this folder and write it as one HTML file that needs no other.

    Raises:
        DiskError: it cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rsdistill.outputs", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "count": count, "difference": difference}
    text = environment.get_template(template).render(**content)
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def uri(kind: str, content: bytes) -> str:
    """Return a file as a ``data:`` URI."""
    return f"data:{kind};base64,{b64encode(content).decode('ascii')}"


def drawing(figure: Any) -> str:
    """Return a matplotlib figure as the URI of a drawing of lines, sharp at any size."""
    content = BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    return uri("image/svg+xml", content.getvalue())


def percent(share: float | None) -> str:
    """A share in percent with one decimal; a dash for none."""
    return "–" if share is None or not isfinite(share) else f"{100 * share:.1f}"


def count(number: float) -> str:
    """A whole number with narrow spaces between thousands."""
    return f"{round(number):,}".replace(",", "\u202f") if isfinite(number) else "–"


def difference(row: dict[str, Any]) -> str:
    """A method's difference to ``ce`` in points, with its interval where there is one."""
    if row["method"] == "ce" or not isfinite(row["to_ce"]):
        return "–"
    interval = f" ± {100 * row['to_ce_interval']:.1f}" if isfinite(row["to_ce_interval"]) else ""
    return f"{100 * row['to_ce']:+.1f}{interval}"

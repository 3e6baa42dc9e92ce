"""Bands matched by name: which bands of a scene are those that a model, or another scene, knows by numbers and names."""

from collections.abc import Sequence

from rsdistill.errors import SceneError, nearest
from rsdistill.geo.scenes import Scene


def match_bands(scene: Scene, numbers: Sequence[int], names: Sequence[str | None]) -> tuple[int, ...]:
    """The bands of ``scene`` that are called ``names``; those with the ``numbers`` where names do not tell.

    They do not tell where a wanted band has no name or shares it with another, or where the scene calls no band, or two, by one of them.

    Args:
        scene: what is to be read.
        numbers: 1-based, as they count elsewhere.
        names: of the same bands, as they are called elsewhere.

    Raises:
        SceneError: the scene has some of the names, but not all; or not so many bands as a number says.
    """
    known = set(filter(None, names))
    counts = [scene.descriptions.count(name) for name in names]
    if len(known) < len(names) or not any(counts) or max(counts) > 1:
        return scene.bands(numbers)
    for name, count in zip(names, counts, strict=True):
        if not count:
            own = [one for one in scene.descriptions if one]
            raise SceneError(
                f"{scene.path} has no band called '{name}'{nearest(str(name), own)}",
                hint=f"it has {', '.join(own)}; --bands says which to read",
            )
    return tuple(scene.descriptions.index(name) + 1 for name in names)

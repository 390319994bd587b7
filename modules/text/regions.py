"""The anatomical regions of a scene graph, and the layout that a file of scene graphs and a model must share.

R regions; A_r attributes of region r: `category|name` or `state|name`, such as `yes|Pleural Effusion`.
"""

from dataclasses import dataclass

# Order of SGRRG's released arrays (Wang et al. 2025); the names are Chest ImaGenome's.
REGIONS = (
    "left lung", "right lung", "cardiac silhouette", "mediastinum", "left lower lung zone", "right lower lung zone",
    "right hilar structures", "left hilar structures", "upper mediastinum", "left costophrenic angle",
    "right costophrenic angle", "left mid lung zone", "right mid lung zone", "aortic arch", "right upper lung zone",
    "left upper lung zone", "right hemidiaphragm", "right clavicle", "left clavicle", "left hemidiaphragm",
    "right apical zone", "trachea", "left apical zone", "carina", "svc", "right atrium", "cavoatrial junction",
    "abdomen", "spine",
)  # fmt: skip


@dataclass(frozen=True)
class GraphLayout:
    """Names behind the numbers of a scene graph.

    regions: R names, a region's number is its position. attributes: per region the names of its attributes in order; a
    region may have none.
    """

    regions: tuple[str, ...]
    attributes: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if len(self.regions) != len(self.attributes):
            raise ValueError(f"{len(self.regions)} regions, but attributes of {len(self.attributes)}")
        for names in (self.regions, *self.attributes):
            if len(set(names)) != len(names):
                raise ValueError(f"a name stands twice in {names}")

    @property
    def heads(self) -> tuple[int, ...]:
        """A_r for each of the R regions."""
        return tuple(map(len, self.attributes))

    def state(self) -> dict:
        """Plain values, for checkpoints and manifests: {"regions": [names], "attributes": {region: [names]}}."""
        return {
            "regions": list(self.regions),
            "attributes": {region: list(names) for region, names in zip(self.regions, self.attributes)},
        }

    @classmethod
    def from_state(cls, state: dict) -> "GraphLayout":
        """From what `state` gave, or from a manifest that holds it. Raises KeyError for anything else."""
        regions = tuple(state["regions"])
        return cls(regions, tuple(tuple(state["attributes"][region]) for region in regions))

    def difference(self, other: "GraphLayout") -> str | None:
        """What differs from `other`, in one sentence; None where nothing does."""
        if self.regions != other.regions:
            return f"regions: {_apart(self.regions, other.regions)}"
        unlike = [r for r, mine, theirs in zip(self.regions, self.attributes, other.attributes) if mine != theirs]
        if not unlike:
            return None
        at = self.regions.index(unlike[0])
        what = _apart(self.attributes[at], other.attributes[at])
        return f"attributes of {len(unlike)} of {len(self.regions)} regions, such as {unlike[0]}: {what}"


def _apart(mine: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    """How two lists of names differ: up to three names that only one of them has, or that the order is another."""
    only = [name for name in mine if name not in theirs], [name for name in theirs if name not in mine]
    if not any(only):
        return f"the same {len(mine)} names in another order"
    here, there = (", ".join(names[:3]) + (" ..." if len(names) > 3 else "") or "nothing" for names in only)
    return f"{len(mine)} names against {len(theirs)}; only here {here}; only there {there}"

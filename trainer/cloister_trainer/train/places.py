"""Ray's placement groups: the places of ranks that a lost controller leaves taken.

Ray Train has an actor of its own that gives them back. It asks a dashboard whether the controller lives, which a Ray of
the run's own has not: there the next start would wait for places in vain.
"""

from __future__ import annotations

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

REMOVED = "REMOVED"


def give_back_places() -> None:
    """Remove all placement groups of a Ray that is the run's own, and with them the ranks that are left in them."""
    for id_, group in placement_group_table().items():
        if group["state"] != REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(id_))))

"""Ray's placement groups: the places of ranks that a lost controller leaves taken.

Ray Train has an actor of its own that gives them back. It asks the dashboard of whichever Ray it finds on the machine
whether the controller lives; without one, or with several, the next start would wait for places in vain.
"""

from __future__ import annotations

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

REMOVED = "REMOVED"


def taken_places() -> set[str]:
    """Ids of the placement groups that there are."""
    return {id_ for id_, group in placement_group_table().items() if group["state"] != REMOVED}


def give_back_places(but: set[str]) -> None:
    """Remove all placement groups but these, and with them the ranks that are left in them."""
    for id_ in taken_places() - but:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(id_))))

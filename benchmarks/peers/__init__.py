"""What is timed: our operators, and the peers that people use in their place."""

from benchmarks.peers import assignment, attention, detection, mask_costs, masks, points
from benchmarks.peers.peer import Contender, Peer


def all_peers() -> list[Peer]:
    """Every peer of every operator, installed or not."""
    modules = (attention, assignment, detection, mask_costs, masks, points)
    return [peer for module in modules for peer in module.peers()]


__all__ = ["Contender", "Peer", "all_peers"]

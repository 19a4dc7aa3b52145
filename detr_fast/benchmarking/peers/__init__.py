"""What is timed: our operators, and the peers that people use in their place."""

from detr_fast.benchmarking.peers import assignment, attention, detection, masks, points
from detr_fast.benchmarking.peers.peer import Contender, Peer


def all_peers() -> list[Peer]:
    """Every peer of every operator, installed or not."""
    return [*attention.peers(), *assignment.peers(), *detection.peers(), *masks.peers(), *points.peers()]


__all__ = ["Contender", "Peer", "all_peers"]

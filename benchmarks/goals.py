"""The speed-ups that the operators are held to, on two cores of an AVX2 machine."""

from __future__ import annotations

from benchmarks.cases import FORWARD

GRID_SAMPLE = "grid_sample path"
TORCH_MS_DEFORM_ATTN = "torch-ms-deform-attn"
SCIPY = "scipy, (Q, T) matrices"
PY_LAP_SOLVER = "py-lap-solver"
OFFICIAL_DETR = "facebookresearch/detr"
OFFICIAL_MASK2FORMER = "facebookresearch/Mask2Former"

ASSIGNMENT_MEDIAN = 10.0

_ATTENTION = {
    (GRID_SAMPLE, "encoder"): (40.0, 35.0),
    (GRID_SAMPLE, "Mask2Former"): (40.0, 35.0),
    (GRID_SAMPLE, "decoder"): (30.0, 10.0),
    (GRID_SAMPLE, "RF-DETR"): (30.0, 18.0),
    (TORCH_MS_DEFORM_ATTN, "encoder"): (5.0, 7.0),
    (TORCH_MS_DEFORM_ATTN, "Mask2Former"): (5.0, 7.0),
    (TORCH_MS_DEFORM_ATTN, "decoder"): (5.0, 3.0),
    (TORCH_MS_DEFORM_ATTN, "RF-DETR"): (5.0, 3.0),
}
_MATCHER = {"B=16 Q=100 L=6": 60.0, "B=16 Q=300 L=6": 120.0, "B=4 Q=900 L=7": 50.0}


def goal(operator: str, case: str, pass_: str, peer: str, threads: int) -> float | None:
    """The least ratio peer time / ours that is asked for, or None where none is."""
    if threads not in (1, 2):
        return None
    if operator == "ms_deform_attn" and (peer, case) in _ATTENTION:
        return _ATTENTION[peer, case][pass_ != FORWARD]
    if operator == "linear_assignment" and threads == 2 and case != "1x1 random":
        return {SCIPY: 5.0, PY_LAP_SOLVER: 3.0}.get(peer)
    if operator == "matcher" and peer == OFFICIAL_DETR:
        return _MATCHER.get(case)
    return None

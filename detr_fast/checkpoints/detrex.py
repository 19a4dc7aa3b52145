"""State dicts of detrex, whose DINO is the official one with the module names of detectron2 and mmcv."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

LAYER = r"^transformer\.(encoder|decoder)\.layers\.(\d+)\."
RENAMED = tuple(
    (re.compile(detrex), official)
    for detrex, official in (
        (r"^backbone\.(patch_embed|layers|norm\d)", r"backbone.0.\1"),
        (r"^backbone\.stem\.", "backbone.0.body."),
        (r"^backbone\.res([2-5])\.", lambda stage: f"backbone.0.body.layer{int(stage[1]) - 1}."),
        (r"\.conv(\d)\.norm\.", r".bn\1."),
        (r"\.shortcut\.norm\.", ".downsample.1."),
        (r"\.shortcut\.", ".downsample.0."),
        (r"^transformer\.level_embeds$", "transformer.level_embed"),
        (LAYER + r"ffns\.0\.layers\.0\.0\.", r"transformer.\1.layers.\2.linear1."),
        (LAYER + r"ffns\.0\.layers\.1\.", r"transformer.\1.layers.\2.linear2."),
        (r"^(transformer\.encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
        (r"^(transformer\.decoder\.layers\.\d+)\.attentions\.0\.attn\.", r"\1.self_attn."),
        (r"^(transformer\.decoder\.layers\.\d+)\.attentions\.1\.", r"\1.cross_attn."),
        (r"^(transformer\.encoder\.layers\.\d+)\.norms\.([01])\.", lambda n: f"{n[1]}.norm{int(n[2]) + 1}."),
        # in the order of the forward pass, where the official code counts cross-attention first
        (
            r"^(transformer\.decoder\.layers\.\d+)\.norms\.([012])\.",
            lambda n: f"{n[1]}.norm{'213'[int(n[2])]}.",
        ),
    )
)
NECK = re.compile(r"^neck\.(convs|extra_convs)\.(\d+)\.(conv|norm)\.")
HEAD = re.compile(r"^(transformer\.decoder\.)?(class|bbox)_embed\.(\d+)\.")


def is_detrex(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of detrex's DINO."""
    return "transformer.level_embeds" in state and "neck.convs.0.conv.weight" in state


def from_detrex(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same entries under the official names; the last class and box heads are the encoder's."""
    levels = {int(found[2]) for name in state if (found := NECK.match(name)) and found[1] == "convs"}
    heads = max((int(found[3]) for name in state if (found := HEAD.match(name))), default=0)
    renamed = {}
    for name, tensor in state.items():
        if found := HEAD.match(name):
            if int(found[3]) == heads:
                name = HEAD.sub(rf"transformer.enc_out_{found[2]}_embed.", name)
        elif found := NECK.match(name):
            level = int(found[2]) + (len(levels) if found[1] == "extra_convs" else 0)
            name = NECK.sub(f"input_proj.{level}.{0 if found[3] == 'conv' else 1}.", name)
        else:
            for old, new in RENAMED:
                name = old.sub(new, name)
        renamed[name] = tensor
    return renamed

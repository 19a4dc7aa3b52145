"""The interfaces under which code bases have multi-scale deformable attention, each served by our operator.

A form says which classes it stands for, by name and by the arguments of their forward, how it is called, and
how to call it on a small random input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detr_fast.integrations.swap import Replacement, argument_names
from detr_fast.ops import ms_deform_attn, ms_deform_attn_fused


class Example(NamedTuple):
    """A small input of any form; masks are drawn alike for both meanings that they have."""

    query: Tensor
    """[B, Q, C]"""
    positions: Tensor
    """[1, Q, C]"""
    source: Tensor
    """[B, S, C]"""
    reference_points: Tensor
    """[B, Q, N or 1, 2 or 4]"""
    shapes: list[tuple[int, int]]
    mask: Tensor | None
    """[B, S]"""

    @property
    def shapes_tensor(self) -> Tensor:
        """[N, 2]"""
        return torch.tensor(self.shapes)

    @property
    def starts(self) -> Tensor:
        """[N], where each level begins."""
        sizes = self.shapes_tensor.prod(1)
        return sizes.cumsum(0) - sizes


class Form(Replacement):
    """Base of the forms.

    Attributes:
        name: of the classes that a form stands for.
        needed, optional: names of the arguments that their forward has and may have.
        positions: names of the replaced forward's arguments, in its order.
    """

    what = "deformable attention with softmax and locations fused"
    name: str
    needed: frozenset[str]
    optional: frozenset[str] = frozenset()
    positions: tuple[str, ...]

    @classmethod
    def attributes(cls, replaced: Any) -> dict[str, Any]:
        return {"positions": tuple(argument_names(replaced.forward))}

    @classmethod
    def named(cls, name: str) -> bool:
        """Whether a class of this name may be one of the form."""
        return name == cls.name

    @classmethod
    def takes(cls, names: Sequence[str]) -> bool:
        """Whether these are the arguments of the form's forward."""
        return cls.needed <= set(names) <= cls.needed | cls.optional

    @classmethod
    def inputs(cls, module: Any) -> list[dict[str, Any]]:
        """Arguments for a trial: reference points of all kinds, with and without a mask."""
        names = argument_names(type(module).forward)
        return [
            {key: value for key, value in cls.arguments(x).items() if key in names or "kwargs" in names}
            for x in examples(module)
        ]

    @classmethod
    def arguments(cls, example: Example) -> dict[str, Any]:
        """An example by the names of this form's arguments."""
        raise NotImplementedError

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(self.positions, args, strict=False)) | kwargs


class CoreAttention(Form):
    """`MultiScaleDeformableAttention` of transformers: the core alone, from locations and weights."""

    what = "deformable attention"
    name = "MultiScaleDeformableAttention"
    needed = frozenset(
        (
            "value",
            "value_spatial_shapes",
            "value_spatial_shapes_list",
            "level_start_index",
            "sampling_locations",
            "attention_weights",
            "im2col_step",
        )
    )

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: list[tuple[int, int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        return ms_deform_attn(value, value_spatial_shapes_list, sampling_locations, attention_weights)

    @classmethod
    def inputs(cls, module: Any) -> list[dict[str, Any]]:
        shapes = [(3, 4), (2, 3)]
        return [
            {
                "value": random(2, 18, 2, 4),
                "value_spatial_shapes": torch.tensor(shapes),
                "value_spatial_shapes_list": shapes,
                "level_start_index": torch.tensor([0, 12]),
                "sampling_locations": random(2, 3, 2, 2, 3, 2) * 1.4 - 0.2,
                "attention_weights": random(2, 3, 2, 2, 3),
                "im2col_step": 64,
            }
        ]


class FusedAttention(Form):
    """The wrappers `...MultiscaleDeformableAttention` of transformers, around a core.

    The second element of its result, the attention weights, is None where the model reads them by forward
    hooks alone and there is none.
    """

    name = "MultiscaleDeformableAttention"
    needed = frozenset(("hidden_states", "encoder_hidden_states", "reference_points"))
    optional = frozenset(
        (
            "attention_mask",
            "encoder_attention_mask",
            "kwargs",
            "level_start_index",
            "output_attentions",
            "position_embeddings",
            "spatial_shapes",
            "spatial_shapes_list",
        )
    )
    mask_is_padding = False
    weights_for_hooks = False

    @classmethod
    def named(cls, name: str) -> bool:
        return name.endswith(cls.name)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        module: Any = self
        given = self._given(args, kwargs)
        query = given["hidden_states"]
        embeddings = given.get("position_embeddings")
        if embeddings is not None and "position_embeddings" in self.positions:
            query = query + embeddings
        shapes = given.get("spatial_shapes_list")  # OneFormer of transformers 4 has none
        output, logits = fused_attention(
            module,
            query,
            given["encoder_hidden_states"],
            given["reference_points"],
            given["spatial_shapes"] if shapes is None else shapes,
            given.get("attention_mask"),
            self.mask_is_padding,
        )
        if self.weights_for_hooks and not has_hooks(module) and not given.get("output_attentions"):
            return output, None
        weights = logits.flatten(3).softmax(-1)
        return output, weights if hasattr(module, "offset_scale") else weights.view_as(logits)

    @classmethod
    def arguments(cls, example: Example) -> dict[str, Any]:
        return {
            "hidden_states": example.query,
            "position_embeddings": example.positions,
            "encoder_hidden_states": example.source,
            "attention_mask": example.mask,
            "reference_points": example.reference_points,
            "spatial_shapes": example.shapes_tensor,
            "spatial_shapes_list": example.shapes,
            "output_attentions": True,
        }


class OfficialAttention(Form):
    """`MSDeformAttn` of Deformable-DETR and the many that copy its `ops`, RF-DETR among them."""

    name = "MSDeformAttn"
    needed = frozenset(
        ("query", "reference_points", "input_flatten", "input_spatial_shapes", "input_level_start_index")
    )
    optional = frozenset(("input_padding_mask", "input_spatial_shapes_hw"))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if getattr(self, "_export", False):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        given = self._given(args, kwargs)
        shapes = given.get("input_spatial_shapes_hw")
        return fused_attention(
            self,
            given["query"],
            given["input_flatten"],
            given["reference_points"],
            given["input_spatial_shapes"] if shapes is None else shapes,
            given.get("input_padding_mask"),
            mask_is_padding=True,
        )[0]

    @classmethod
    def arguments(cls, example: Example) -> dict[str, Any]:
        return {
            "query": example.query,
            "reference_points": example.reference_points,
            "input_flatten": example.source,
            "input_spatial_shapes": example.shapes_tensor,
            "input_level_start_index": example.starts,
            "input_padding_mask": example.mask,
        }


class MMCVAttention(Form):
    """`MultiScaleDeformableAttention` of mmcv, of detrex and, without the residual, of GroundingDINO."""

    name = "MultiScaleDeformableAttention"
    needed = frozenset(
        (
            "query",
            "key",
            "value",
            "query_pos",
            "key_padding_mask",
            "reference_points",
            "spatial_shapes",
            "level_start_index",
            "kwargs",
        )
    )
    optional = frozenset(("identity",))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        module: Any = self
        given = self._given(args, kwargs)
        query, value = given["query"], given.get("value")
        identity = given.get("identity", given.get("residual"))  # its name in mmcv before 1.3
        identity, value = query if identity is None else identity, query if value is None else value
        if (embeddings := given.get("query_pos")) is not None:
            query = query + embeddings
        if not module.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        output, _ = fused_attention(
            module,
            query,
            value,
            given["reference_points"],
            given["spatial_shapes"],
            given.get("key_padding_mask"),
            mask_is_padding=True,
        )
        if not module.batch_first:
            output = output.transpose(0, 1)
        return module.dropout(output) + identity if "identity" in self.positions else output

    @classmethod
    def inputs(cls, module: Any) -> list[dict[str, Any]]:
        found = super().inputs(module)
        if not module.batch_first:
            for given in found:
                given |= {key: given[key].transpose(0, 1) for key in ("query", "query_pos", "value")}
        return found

    @classmethod
    def arguments(cls, example: Example) -> dict[str, Any]:
        return {
            "query": example.query,
            "query_pos": example.positions,
            "value": example.source,
            "key_padding_mask": example.mask,
            "reference_points": example.reference_points,
            "spatial_shapes": example.shapes_tensor,
            "level_start_index": example.starts,
        }


class RTDETRAttention(Form):
    """`MSDeformableAttention` of RT-DETR, RT-DETRv2, D-FINE and DEIM.

    The latter two have no projections of their own; their maps come as a list of [B, H, D, h * w].
    """

    name = "MSDeformableAttention"
    needed = frozenset(("query", "reference_points", "value", "value_spatial_shapes"))
    optional = frozenset(("value_mask",))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        given = self._given(args, kwargs)
        value = given["value"]
        if not isinstance(value, Tensor):
            value = torch.cat([level.permute(0, 3, 1, 2) for level in value], dim=1).flatten(2)
        return fused_attention(
            self,
            given["query"],
            value,
            given["reference_points"],
            given["value_spatial_shapes"],
            given.get("value_mask"),
            mask_is_padding=False,
        )[0]

    @classmethod
    def inputs(cls, module: Any) -> list[dict[str, Any]]:
        found = super().inputs(module)
        if not hasattr(module, "value_proj"):
            for given in found:
                maps = given["value"].unflatten(2, (heads_of(module), -1)).permute(0, 2, 3, 1)
                given["value"] = maps.split([h * w for h, w in given["value_spatial_shapes"]], dim=-1)
        return found

    @classmethod
    def arguments(cls, example: Example) -> dict[str, Any]:
        return {
            "query": example.query,
            "value": example.source,
            "value_mask": example.mask,
            "reference_points": example.reference_points,
            "value_spatial_shapes": example.shapes,
        }


FORMS: tuple[type[Form], ...] = (
    CoreAttention,
    FusedAttention,
    OfficialAttention,
    MMCVAttention,
    RTDETRAttention,
)


def fused_attention(
    module: Any,
    query: Tensor,
    source: Tensor,
    reference_points: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    mask: Tensor | None,
    mask_is_padding: bool,
) -> tuple[Tensor, Tensor]:
    """The output [B, Q, C] of a module with Deformable DETR's layers, and its logits.

    These are [B, Q, H, N, P], or [B, Q, H, sum of P] where levels differ in P or sampling is discrete.

    Args:
        module: has `sampling_offsets`, `attention_weights` and maybe `value_proj`, `output_proj`.
        query: [B, Q, C], positions added.
        source: [B, S, C], the maps.
        reference_points: [B, Q, N or 1, 2 or 4].
        spatial_shapes: (height, width) of each level.
        mask: [B, S] bool, or none.
        mask_is_padding: True in the mask means padding, not content.
    """
    projected = hasattr(module, "value_proj")
    value = module.value_proj(source) if projected else source
    if mask is not None:
        # nobody else reads a fresh projection, and a copy of its size costs more than the filling
        ours = projected and not torch.is_grad_enabled() and not has_hooks(module.value_proj)
        fill = value.masked_fill_ if ours else value.masked_fill
        value = fill((mask if mask_is_padding else ~mask)[..., None], 0.0)
    heads, points = heads_of(module), points_of(module)
    discrete = is_discrete(module)
    uniform = len(set(points)) == 1 and not discrete
    form = (heads, len(points), points[0]) if uniform else (heads, sum(points))
    offsets = module.sampling_offsets(query).unflatten(-1, (*form, 2))
    logits = module.attention_weights(query).unflatten(-1, form)
    scale = getattr(module, "offset_scale", 0.5)
    if discrete:
        offsets = nearest_pixels(reference_points, offsets, spatial_shapes, points, scale)
        reference_points = offsets.new_zeros(*offsets.shape[:2], 1, 2)
    output = ms_deform_attn_fused(
        value.unflatten(-1, (heads, -1)),
        spatial_shapes,
        reference_points,
        offsets,
        logits,
        points_per_level=None if uniform else points,
        offset_scale=scale,
    )
    return module.output_proj(output) if hasattr(module, "output_proj") else output, logits


def nearest_pixels(
    reference_points: Tensor,
    offsets: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    points: Sequence[int],
    scale: float,
) -> Tensor:
    """RT-DETRv2's discrete method as offsets [B, Q, H, sum of P, 2] in pixels from a reference point of 0.

    It takes the pixel `int(location * size + 0.5)`, clamped to the level, and has no gradient by location.
    Bilinear sampling at the middle of that pixel is exact.
    """
    counts = torch.tensor(points, device=offsets.device)
    sides = torch.as_tensor(spatial_shapes, device=offsets.device).flip(1).repeat_interleave(counts, 0)
    reference_points = reference_points.expand(-1, -1, len(points), -1)
    reference = reference_points.repeat_interleave(counts, 2)[:, :, None]
    if reference.shape[-1] == 2:
        locations = reference + offsets / sides
    else:
        share = (1 / counts).repeat_interleave(counts)[:, None].to(offsets.dtype)
        locations = reference[..., :2] + offsets * share * reference[..., 2:] * scale
    pixels = (locations * sides + 0.5).long().clamp(min=0)
    return torch.minimum(pixels, sides - 1) + 0.5


def has_hooks(module: Any) -> bool:
    """Whether forward hooks see what a module returns."""
    return bool(module._forward_hooks or nn.modules.module._global_forward_hooks)


def is_discrete(module: Any) -> bool:
    """Whether a wrapper samples by RT-DETRv2's discrete method."""
    return "discrete" in (getattr(module, "method", None), getattr(module, "decoder_method", None))


def heads_of(module: Any) -> int:
    """Heads of a wrapper."""
    return module.n_heads if hasattr(module, "n_heads") else module.num_heads


def points_of(module: Any) -> list[int]:
    """Points of each level of a wrapper."""
    for name in ("num_points_list", "n_points_list"):
        if hasattr(module, name):
            return list(getattr(module, name))
    if hasattr(module, "n_points"):
        return [module.n_points] * module.n_levels
    return [module.num_points] * module.num_levels


def examples(module: Any) -> list[Example]:
    """Small inputs: reference points of both forms, also one for all levels; with and without a mask."""
    levels, channels = len(points_of(module)), module.sampling_offsets.in_features
    shapes = [(2 + n % 2, 2 + n // 2 % 2) for n in range(levels)]
    size = sum(height * width for height, width in shapes)
    query, positions = random(2, 3, channels), random(1, 3, channels)
    source = random(2, size, module.value_proj.in_features if hasattr(module, "value_proj") else channels)
    mask, reference = random(2, size) < 0.7, random(2, 3, levels, 4)
    return [
        Example(query, positions, source, points, shapes, given_mask)
        for given_mask in (mask, None)
        for points in (reference, reference[..., :2], reference[:, :, :1])
    ]


def random(*shape: int, seed: int = 0) -> Tensor:
    """Uniform numbers in 0..1 that leave torch's own generator alone."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))

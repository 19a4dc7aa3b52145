"""Multi-scale deformable attention modules of other code bases, run by our operator.

Three kinds are known by name. Of transformers the wrapper `...MultiscaleDeformableAttention`, whose softmax
and arithmetic of locations are fused with the sampling, and the core `MultiScaleDeformableAttention`, which
has no parameters; of Deformable-DETR and the many that copy its `ops` the module `MSDeformAttn`. Whether a
class of such a name means what we take it for is not read off a version: each is run on a small random input
beside ours, and left alone where the two differ.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from detr_fast.integrations.swap import Replacement, combined
from detr_fast.ops import ms_deform_attn, ms_deform_attn_fused

CORE, WRAPPER, OFFICIAL = "MultiScaleDeformableAttention", "MultiscaleDeformableAttention", "MSDeformAttn"
_NEEDED = frozenset(("hidden_states", "encoder_hidden_states", "reference_points", "spatial_shapes_list"))
_KNOWN = _NEEDED | {
    "attention_mask",
    "encoder_attention_mask",
    "kwargs",
    "level_start_index",
    "output_attentions",
    "position_embeddings",
    "spatial_shapes",
}
_TOLERANCE = 1e-4  # of the largest, in float32: another meaning differs by far more


class FusedAttention(Replacement):
    """A wrapper's forward with one fused call between its projections.

    The second element of its result, the attention weights, is None where the model reads them by forward
    hooks alone and there is none.
    """

    what = "deformable attention with softmax and locations fused"
    mask_is_padding = False
    weights_for_hooks = False
    positions: tuple[str, ...]
    """The names of the replaced forward's arguments, in its order."""

    @classmethod
    def attributes(cls, replaced: Any) -> dict[str, Any]:
        return {"positions": tuple(_names(replaced))}

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        module = cast(Any, self)
        given = dict(zip(self.positions, args, strict=False)) | kwargs
        query = given["hidden_states"]
        if (embeddings := given.get("position_embeddings")) is not None:
            query = query + embeddings
        output, logits = fused_attention(
            module,
            query,
            given["encoder_hidden_states"],
            given["reference_points"],
            given["spatial_shapes_list"],
            given.get("attention_mask"),
            self.mask_is_padding,
        )
        if self.weights_for_hooks and not module._forward_hooks and not given.get("output_attentions"):
            return output, None
        weights = logits.flatten(3).softmax(-1)
        return output, weights if hasattr(module, "offset_scale") else weights.view_as(logits)


def fused_attention(
    module: Any,
    query: Tensor,
    source: Tensor,
    reference_points: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    mask: Tensor | None,
    mask_is_padding: bool,
) -> tuple[Tensor, Tensor]:
    """The output [B, Q, C] of a module with Deformable DETR's layers, and its logits [B, Q, H, N, P].

    Args:
        module: has `sampling_offsets`, `attention_weights` and maybe `value_proj`, `output_proj`.
        query: [B, Q, C], positions added.
        source: [B, S, C], the maps.
        reference_points: [B, Q, N or 1, 2 or 4].
        spatial_shapes: (height, width) of each level.
        mask: [B, S] bool, or none.
        mask_is_padding: True in the mask means padding, not content.
    """
    value = module.value_proj(source) if hasattr(module, "value_proj") else source
    if mask is not None:
        value = value.masked_fill((mask if mask_is_padding else ~mask)[..., None], 0.0)
    points = points_of(module)
    form = (module.n_heads, len(points), points[0])
    offsets = module.sampling_offsets(query).unflatten(-1, (*form, 2))
    logits = module.attention_weights(query).unflatten(-1, form)
    scale = getattr(module, "offset_scale", 0.5)
    if scale != 0.5 and reference_points.shape[-1] == 4:
        offsets = offsets * (2 * scale)
    reference_points = reference_points.expand(-1, -1, len(points), -1)
    value = value.unflatten(-1, (module.n_heads, -1))
    output = ms_deform_attn_fused(value, spatial_shapes, reference_points, offsets, logits)
    return module.output_proj(output) if hasattr(module, "output_proj") else output, logits


class OfficialAttention(Replacement):
    """The forward of Deformable-DETR's `MSDeformAttn`, by way of the wrapper's."""

    what = FusedAttention.what

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor,
        input_level_start_index: Tensor,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        return fused_attention(
            self, query, input_flatten, reference_points, input_spatial_shapes, input_padding_mask, True
        )[0]


class CoreAttention(Replacement):
    """The core alone, from locations and weights."""

    what = "deformable attention"

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


REPLACEMENTS = (FusedAttention, OfficialAttention, CoreAttention)


def points_of(module: Any) -> list[int]:
    """Points of each level of a wrapper."""
    for name in ("num_points_list", "n_points_list"):
        if hasattr(module, name):
            return list(getattr(module, name))
    return [module.n_points] * module.n_levels


def known_class(module: nn.Module) -> Any:
    """The class that makes this module an attention of one of the kinds; None if it is none."""
    for found in type(module).__mro__:
        ours = found.__module__.partition(".")[0] in ("transformers", "transformers_modules")
        if found.__name__ == OFFICIAL or (
            ours and (found.__name__ == CORE or found.__name__.endswith(WRAPPER))
        ):
            return None if issubclass(found, Replacement) else found
    return None


def choose(module: Any, weights_for_hooks: bool) -> type[Any] | str:
    """The class that an attention module gets, or the reason why it is left alone.

    Args:
        module: one that has a `known_class`.
        weights_for_hooks: nothing but forward hooks reads the weights that a wrapper returns.
    """
    known, own = known_class(module), cast(Any, type(module))
    if own.forward is not known.forward:
        return f"its class {own.__name__} overrides forward"
    if "forward" in module.__dict__:
        return "another forward is bound to the instance"
    names = _names(known)
    if known.__name__ == CORE:
        if names != _names(CoreAttention):
            return _unknown(", ".join(_names(CoreAttention)), names)
        return _tried(module, combined(CoreAttention, own), _core_inputs())
    official = known.__name__ == OFFICIAL
    if official and names != _names(OfficialAttention):
        return _unknown(", ".join(_names(OfficialAttention)), names)
    if not official and not _NEEDED <= set(names) <= _KNOWN:
        return _unknown(f"{', '.join(sorted(_NEEDED))} and at most {', '.join(sorted(_KNOWN))}", names)
    linears = [getattr(module, name, None) for name in ("sampling_offsets", "attention_weights")]
    linears += [getattr(module, name) for name in ("value_proj", "output_proj") if hasattr(module, name)]
    for linear in linears:
        if not isinstance(linear, nn.Linear) or not linear.weight.is_floating_point():
            return f"expected linear layers of floats; got {type(linear).__name__} (quantised?)"
    if "discrete" in (getattr(module, "method", None), getattr(module, "decoder_method", None)):
        return "it samples by the discrete method"
    points = points_of(module)
    if len(set(points)) != 1:
        return f"its levels have different numbers of points, {points}"
    if official:
        return _tried(module, combined(OfficialAttention, own), _official_inputs(module))
    found: type[Any] | str = ""
    for mask_is_padding in (False, True):
        options = (("mask_is_padding", mask_is_padding), ("weights_for_hooks", weights_for_hooks))
        found = _tried(module, combined(FusedAttention, own, *options), _wrapper_inputs(module))
        if isinstance(found, type):
            break
    return found


def _names(mixin: Any) -> list[str]:
    return list(inspect.signature(mixin.forward).parameters)[1:]


def _unknown(expected: str, names: list[str]) -> str:
    return f"unknown signature: expected forward with {expected}; got ({', '.join(names)})"


def _tried(module: Any, fast: type[Any], inputs: list[dict[str, Any]]) -> type[Any] | str:
    """`fast` where both forwards agree on each input that the module's own takes, else what was found."""
    replaced = type(module)
    errors = []
    try:
        twin = copy.deepcopy(module).float()
        device = next((p.device for p in twin.parameters()), torch.device("cpu"))
        with torch.no_grad():
            for part in twin.modules():
                part._forward_hooks.clear()
                part._forward_pre_hooks.clear()
            for parameter in twin.parameters():
                parameter.copy_(_random(*parameter.shape, seed=parameter.numel()) - 0.5)
            for given in inputs:
                given = {key: x.to(device) if isinstance(x, Tensor) else x for key, x in given.items()}
                try:
                    expected = replaced.forward(twin, **given)
                except (IndexError, RuntimeError, TypeError, ValueError) as error:
                    errors.append(error)
                    continue
                twin.__class__ = fast
                if not _agree(expected, twin(**given)):
                    return "on a random input its result is not that of multi-scale deformable attention"
                twin.__class__ = replaced
    except Exception as error:  # whatever a module of an unknown version does, it is left alone
        return f"it could not be tried: {type(error).__name__}: {error}"
    return fast if len(errors) < len(inputs) else f"it could not be tried: {errors[-1]}"


def _agree(expected: Any, got: Any) -> bool:
    if isinstance(expected, tuple):
        return len(expected) == len(got) and all(map(_agree, expected, got))
    return expected.shape == got.shape and bool(
        (expected - got).abs().max() <= _TOLERANCE * expected.abs().max()
    )


def _wrapper_inputs(module: Any) -> list[dict[str, Any]]:
    """Small inputs: reference points of both forms, also one for all levels; with and without a mask."""
    levels = len(points_of(module))
    shapes = [(2 + n % 2, 2 + n // 2 % 2) for n in range(levels)]
    size = sum(height * width for height, width in shapes)
    reference = _random(2, 3, levels, 4)
    shared = {
        "hidden_states": _random(2, 3, module.sampling_offsets.in_features),
        "encoder_hidden_states": _random(2, size, module.d_model),
        "attention_mask": _random(2, size) < 0.7,
        "spatial_shapes": torch.tensor(shapes),
        "spatial_shapes_list": shapes,
        "output_attentions": True,
    }
    names = inspect.signature(type(module).forward).parameters
    if "position_embeddings" in names:
        shared["position_embeddings"] = _random(1, 3, module.sampling_offsets.in_features)
    if "spatial_shapes" not in names and "kwargs" not in names:
        del shared["spatial_shapes"]
    masked = [shared | {"reference_points": x} for x in (reference, reference[..., :2], reference[:, :, :1])]
    return masked + [given | {"attention_mask": None} for given in masked]


def _official_inputs(module: Any) -> list[dict[str, Any]]:
    inputs = []
    for given in _wrapper_inputs(module):
        mask, shapes = given["attention_mask"], torch.tensor(given["spatial_shapes_list"])
        inputs.append(
            {
                "query": given["hidden_states"],
                "reference_points": given["reference_points"],
                "input_flatten": given["encoder_hidden_states"],
                "input_spatial_shapes": shapes,
                "input_level_start_index": shapes.prod(1).cumsum(0) - shapes.prod(1),
                "input_padding_mask": mask,
            }
        )
    return inputs


def _core_inputs() -> list[dict[str, Any]]:
    shapes = [(3, 4), (2, 3)]
    return [
        {
            "value": _random(2, 18, 2, 4),
            "value_spatial_shapes": torch.tensor(shapes),
            "value_spatial_shapes_list": shapes,
            "level_start_index": torch.tensor([0, 12]),
            "sampling_locations": _random(2, 3, 2, 2, 3, 2) * 1.4 - 0.2,
            "attention_weights": _random(2, 3, 2, 2, 3),
            "im2col_step": 64,
        }
    ]


def _random(*shape: int, seed: int = 0) -> Tensor:
    """Uniform numbers in 0..1 that leave torch's own generator alone."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))

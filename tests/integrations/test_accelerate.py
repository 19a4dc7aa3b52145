"""What `accelerate` keeps, survives, refuses and says."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.deformable_detr import modeling_deformable_detr as upstream

import detr_fast
from detr_fast.integrations import attention
from detr_fast.integrations.attention_forms import FusedAttention
from detr_fast.ops.operator import Operator
from tests.integrations import tiny

NAME = "deformable_detr"


def accelerated() -> nn.Module:
    model = tiny.build(NAME).eval()
    assert detr_fast.accelerate(model).replaced
    return model


def logits(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**given).logits


def test_a_second_call_changes_nothing_and_says_so() -> None:
    model = accelerated()
    classes = [type(module) for module in model.modules()]
    report = detr_fast.accelerate(model)
    assert not report.replaced
    assert {reason for _, reason in report.skipped} == {"already accelerated"}
    assert [type(module) for module in model.modules()] == classes


def test_other_models_stay_as_they_are() -> None:
    other = tiny.build(NAME)
    accelerated()
    assert not any(isinstance(module, FusedAttention) for module in other.modules())


def test_the_report_reads_well() -> None:
    report = detr_fast.accelerate(tiny.build(NAME))
    assert str(report).splitlines()[0] == "DeformableDetrForObjectDetection: 5 replaced, 0 left alone"
    assert "model.encoder.layers.*.self_attn (2x)" in str(report)


@pytest.mark.parametrize("carry", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles_stay_accelerated_and_restorable(carry) -> None:
    model, given = accelerated(), tiny.inputs(NAME)
    other = carry(model)
    kinds = [type(module) for module in model.modules()]
    assert [type(module) for module in other.modules()] == kinds
    assert torch.equal(logits(other, given), logits(model, given))
    detr_fast.restore(other)
    assert not any(isinstance(module, FusedAttention) for module in other.modules())
    assert [type(module) for module in model.modules()] == kinds


def test_saved_models_load_without_us(tmp_path: Path) -> None:
    model, given = accelerated(), tiny.inputs(NAME)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path).eval()
    assert not any(isinstance(module, FusedAttention) for module in loaded.modules())
    torch.testing.assert_close(logits(loaded, given), logits(model, given), rtol=1e-5, atol=1e-6)


def test_hooks_go_on_and_see_the_weights() -> None:
    model, given = tiny.build(NAME).eval(), tiny.inputs(NAME)
    layer, seen = model.model.encoder.layers[0].self_attn, []
    layer.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    logits(model, given)
    detr_fast.accelerate(model)
    logits(model, given)
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], seen[1])


def test_hooks_on_every_module_see_the_weights() -> None:
    model, given = accelerated(), tiny.inputs(NAME)
    layer, seen = model.model.encoder.layers[0].self_attn, []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.append(output[1]) if module is layer else None
    )
    try:
        logits(model, given)
    finally:
        handle.remove()
    assert seen[0].shape[-2:] == (3, layer.n_points)


def test_hooks_on_the_projection_see_what_is_padding_later() -> None:
    model, given, seen = tiny.build(NAME).eval(), tiny.inputs(NAME), []
    layer = model.model.encoder.layers[0].self_attn
    layer.value_proj.register_forward_hook(lambda module, args, output: seen.append(output))
    logits(model, given)
    detr_fast.accelerate(model)
    logits(model, given)
    torch.testing.assert_close(seen[0], seen[1])


def test_backward_hooks_are_called() -> None:
    model, given, seen = accelerated(), tiny.inputs(NAME), []
    layer = model.model.encoder.layers[0].self_attn
    layer.value_proj.register_full_backward_hook(lambda *_: None)
    layer.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0]))
    model(**given).logits.sum().backward()
    assert seen[0].isfinite().all()


def test_positional_arguments_mean_the_same() -> None:
    layer = tiny.build(NAME).model.encoder.layers[0].self_attn
    shapes = [(3, 4), (2, 2), (1, 1)]
    tensor = torch.tensor(shapes)
    mask = torch.rand(2, 17) < 0.7
    given = (torch.randn(2, 5, 32), mask, torch.randn(2, 17, 32), None, torch.randn(2, 5, 32))
    given += (torch.rand(2, 5, 3, 2), tensor, shapes, None)
    expected = layer(*given)[0]
    assert [path for path, _ in detr_fast.accelerate(layer).replaced] == [""]
    torch.testing.assert_close(layer(*given)[0], expected, rtol=1e-5, atol=1e-6)


class OlderMultiscaleDeformableAttention(upstream.DeformableDetrMultiscaleDeformableAttention):
    """With shapes as a tensor alone, as in OneFormer of transformers 4."""

    def forward(self, hidden_states, encoder_hidden_states, reference_points, spatial_shapes):
        given = {"reference_points": reference_points, "spatial_shapes": spatial_shapes}
        given |= {"spatial_shapes_list": spatial_shapes.tolist(), "level_start_index": None}
        return super().forward(hidden_states, encoder_hidden_states=encoder_hidden_states, **given)


def test_a_wrapper_without_a_list_of_shapes() -> None:
    layer = tiny.build(NAME).model.encoder.layers[0].self_attn
    layer.__class__ = OlderMultiscaleDeformableAttention
    shapes = torch.tensor([(3, 4), (2, 2), (1, 1)])
    given = (torch.randn(2, 5, 32), torch.randn(2, 17, 32), torch.rand(2, 5, 3, 2), shapes)
    expected = layer(*given)
    assert [path for path, _ in detr_fast.accelerate(layer).replaced] == [""]
    torch.testing.assert_close(layer(*given), expected, rtol=1e-5, atol=1e-6)


def test_one_graph_under_torch_compile() -> None:
    model, given = tiny.build(NAME).eval(), tiny.inputs(NAME)
    expected = logits(model, given)
    detr_fast.accelerate(model)
    layer = model.model.encoder.layers[0]
    layer.forward = torch.compile(layer.forward, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(logits(model, given), expected, rtol=1e-5, atol=1e-6)


def test_gradient_checkpointing_and_moves() -> None:
    model, given = tiny.build(NAME, dropout=0.0), tiny.inputs(NAME)
    detr_fast.accelerate(model)
    model.train()
    model(**given).logits.sum().backward()
    expected = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.to(torch.float64).to(torch.float32)
    model.gradient_checkpointing_enable()
    model(**given).logits.sum().backward()
    for key, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(key).grad, gradient, msg=key)


def test_autocast_stays_within_the_precision_of_its_dtype() -> None:
    model, given = tiny.build(NAME).eval(), tiny.inputs(NAME)
    exact = logits(model, given)
    detr_fast.accelerate(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert (logits(model, given).float() - exact).abs().max() <= 0.05 * exact.abs().max()


def test_distributed_data_parallel(tmp_path: Path) -> None:
    model, given = tiny.build(NAME).eval(), tiny.inputs(NAME)
    expected = logits(model, given)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        report = detr_fast.accelerate(parallel)
        assert all(path.startswith("module.") for path, _ in report.replaced)
        output = parallel(**given).logits
        output.sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)


class Overriding(upstream.DeformableDetrMultiscaleDeformableAttention):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def test_an_overridden_forward_keeps_its_wrapper_and_gets_the_core() -> None:
    model, given = tiny.build(NAME).eval(), tiny.inputs(NAME)
    expected = logits(model, given)
    for layer in model.model.encoder.layers:
        layer.self_attn.__class__ = Overriding
    report = detr_fast.accelerate(model)
    left = [path for path, reason in report.skipped if "Overriding overrides forward" in reason]
    assert left == [f"model.encoder.layers.{i}.self_attn" for i in range(2)]
    assert ("model.encoder.layers.0.self_attn.attn", "deformable attention") in report.replaced
    torch.testing.assert_close(logits(model, given), expected, rtol=1e-5, atol=1e-6)


def left_alone(model: nn.Module, strict: bool = True) -> str:
    report = detr_fast.accelerate(model, strict)
    other = (".attn", "loss_function")
    wrappers = [(path, reason) for path, reason in report.skipped if not path.endswith(other)]
    assert not [path for path, _ in report.replaced if not path.endswith(other)]
    assert len({reason for _, reason in wrappers}) == 1
    return wrappers[0][1]


def test_a_forward_bound_to_the_instance_is_left_alone() -> None:
    model = tiny.build(NAME)
    for module in model.modules():
        if attention.known_class(module):
            module.forward = module.forward
    assert left_alone(model) == "another forward is bound to the instance"


def test_a_quantised_model_is_left_alone() -> None:
    model = torch.ao.quantization.quantize_dynamic(tiny.build(NAME).eval(), {nn.Linear}, torch.qint8)
    assert "quantised" in left_alone(model)


def test_a_changed_meaning_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = upstream.MultiScaleDeformableAttention.forward

    @functools.wraps(original)
    def forward(self, *args, **kwargs):
        given = inspect.signature(original).bind(self, *args, **kwargs).arguments
        return original(**(given | {"sampling_locations": given["sampling_locations"] + 0.01}))

    monkeypatch.setattr(upstream.MultiScaleDeformableAttention, "forward", forward)
    report = detr_fast.accelerate(tiny.build(NAME))
    assert [path for path, _ in report.replaced] == ["loss_function"]
    assert all(reason.startswith("on a random input its result is not") for _, reason in report.skipped)


def test_an_unknown_signature_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self, hidden_states, memory):
        raise NotImplementedError

    monkeypatch.setattr(upstream.DeformableDetrMultiscaleDeformableAttention, "forward", forward)
    assert "unknown signature" in left_alone(tiny.build(NAME))
    assert "got (hidden_states, memory)" in left_alone(tiny.build(NAME))


def test_without_a_fast_backend_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = dict.fromkeys(("cuda", "triton", "native", "cpu"), "broken") | {"reference": None}
    monkeypatch.setattr(Operator, "explain", lambda *_: reasons)
    report = detr_fast.accelerate(tiny.build(NAME))
    assert not report.replaced
    assert all(x.startswith("no fast backend serves torch.float32 on cpu") for _, x in report.skipped)


def test_a_model_without_anything_known_raises() -> None:
    with pytest.raises(ValueError, match="got Linear without any"):
        detr_fast.accelerate(nn.Linear(2, 2))
    report = detr_fast.accelerate(nn.Linear(2, 2), strict=False)
    assert (report.replaced, report.skipped) == ([], [])
    with pytest.raises(ValueError, match="accelerate it before"):
        detr_fast.accelerate(torch.jit.script(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module; got str"):
        detr_fast.accelerate("model")


def test_a_part_of_a_model_then_all_of_it_and_back_twice() -> None:
    model, given = tiny.build(NAME).eval(), tiny.inputs(NAME)
    expected = logits(model, given)
    assert len(detr_fast.accelerate(model.model.decoder).replaced) == 2
    report = detr_fast.accelerate(model)
    assert [reason for _, reason in report.skipped] == ["already accelerated"] * 2
    torch.testing.assert_close(logits(model, given), expected, rtol=1e-5, atol=1e-6)
    detr_fast.restore(model)
    detr_fast.restore(model)
    assert torch.equal(logits(model, given), expected)


def test_a_compiled_model() -> None:
    model, given = tiny.build(NAME).eval(), tiny.inputs(NAME)
    expected = logits(model, given)
    compiled = torch.compile(model, backend="eager")
    report = detr_fast.accelerate(compiled)
    assert all(path.startswith("_orig_mod.") for path, _ in report.replaced)
    torch.testing.assert_close(logits(compiled, given), expected, rtol=1e-5, atol=1e-6)


def test_an_exported_model_says_what_to_do() -> None:
    exported = torch.export.export(nn.Linear(2, 2), (torch.randn(1, 2),)).module()
    with pytest.raises(ValueError, match=r"got GraphModule without any; .* accelerate it before"):
        detr_fast.accelerate(exported)


def test_what_no_fast_backend_serves_is_left_alone() -> None:
    report = detr_fast.accelerate(tiny.build(NAME).double())
    assert not report.replaced
    assert all("no fast backend serves torch.float64" in reason for _, reason in report.skipped)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_a_cpu(dtype: torch.dtype) -> None:
    model, given = tiny.build(NAME).eval().to(dtype), tiny.inputs(NAME)
    given = {key: x.to(dtype) if x.is_floating_point() else x for key, x in given.items()}
    expected = logits(model, given).float()
    assert detr_fast.accelerate(model).replaced
    error = (logits(model, given).float() - expected).abs().max()
    assert error <= 0.05 * expected.abs().max()


@pytest.mark.parametrize("kind", ["device", "dtype"])
def test_defaults_of_a_script_change_nothing(kind: str) -> None:
    models = [tiny.build(NAME), tiny.build(NAME)]
    expected = detr_fast.accelerate(models[0]).replaced
    dtype = torch.get_default_dtype()
    try:
        if kind == "device":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(torch.float64)
        assert detr_fast.accelerate(models[1]).replaced == expected
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(dtype)


@pytest.mark.parametrize("name", [NAME, "mask2former"])
def test_random_numbers_go_on_as_ever(name: str) -> None:
    model = tiny.build(name)
    state = torch.get_rng_state()
    detr_fast.accelerate(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_imported_that_is_not_there() -> None:
    code = (
        "import sys, torch, detr_fast\n"
        "detr_fast.accelerate(torch.nn.Linear(1, 1), strict=False)\n"
        "print([name for name in ('transformers', 'mmcv', 'detectron2', 'kernels') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

"""Every back end of deform_attn that runs here against the float64 reference, and the operator around them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.ops import backends, deform_attn, deform_attn_reference
from workbench.ops.native import Native

SHAPES = [(7, 5), (3, 1), (1, 4)]
FLAT = [size for shape in SHAPES for size in shape]


def _cpu() -> Native:
    try:
        return backends.load("cpu")
    except WorkbenchError as error:
        pytest.skip(f"no compiled back end on this machine: {error}")


def _instruction_sets() -> list[str]:
    try:
        return list(backends.load("cpu").instruction_sets())
    except WorkbenchError:
        return ["none"]


@pytest.fixture(params=_instruction_sets())
def cpu(request: pytest.FixtureRequest) -> Iterator[Native]:
    """The compiled CPU back end, once an instruction set of this processor."""
    native = _cpu()
    native.isa = native.instruction_sets()[request.param]
    yield native
    native.isa = -1


def _inputs(
    batch=2,
    shapes=tuple(SHAPES),
    heads=3,
    channels=5,
    queries=11,
    points=3,
    dtype=torch.float32,
    seed=0,
    device="cpu",
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = sum(height * width for height, width in shapes)
    sizes = (batch, queries, heads, len(shapes), points)
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    value = torch.randn(batch, pixels, heads, channels, generator=generator).to(dtype)
    locations = (torch.rand(*sizes, 2, generator=generator) * 1.6 - 0.3).to(accumulate)
    weights = torch.randn(*sizes, generator=generator).to(accumulate)
    return value.to(device), locations.to(device), weights.to(device)


def _exact(inputs, shapes, grad_output: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().double().requires_grad_() for tensor in inputs]
    output = deform_attn_reference(leaves[0], shapes, *leaves[1:])
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output.double())]


def _error(result: Tensor, exact: Tensor) -> float:
    """The largest error, over the largest element."""
    if exact.numel() == 0:
        return 0.0
    return float((result.detach().double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30))


def _assert_right(native: Native, inputs, shapes, tolerances=(1e-5, 1e-4), skip_locations=False) -> None:
    value, locations, weights = inputs
    flat = [size for shape in shapes for size in shape]
    size = (value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    grad_output = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(value)
    exact = _exact(inputs, shapes, grad_output)
    output = native.forward(value, flat, locations, weights)
    grads = native.backward(grad_output, value, flat, locations, weights)
    assert output.shape == size and output.dtype == value.dtype
    assert _error(output, exact[0]) <= tolerances[0]
    for name, result, right in zip(("value", "locations", "weights"), grads, exact[1:], strict=True):
        assert result.shape == right.shape
        if not (skip_locations and name == "locations"):
            assert _error(result, right) <= tolerances[1], name


# ---- numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "tolerances"),
    [
        (torch.float32, (1e-5, 1e-4)),
        (torch.float64, (1e-13, 1e-12)),
        (torch.bfloat16, (1e-2, 1e-2)),
        (torch.float16, (2e-3, 2e-3)),
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [1, 3, 8, 12, 16, 32, 33, 64, 100, 128])
def test_every_dtype_and_width_agrees_with_float64(cpu, dtype, tolerances, channels):
    _assert_right(cpu, _inputs(channels=channels, dtype=dtype), SHAPES, tolerances)


def _locations(kind: str, sizes: tuple[int, ...], shapes, generator: torch.Generator) -> Tensor:
    """Locations of one kind; those meant to hit pixels do so exactly on levels whose sizes are powers of two."""
    if kind == "inside":
        return torch.rand(*sizes, 2, generator=generator)
    if kind == "far":
        return torch.randn(*sizes, 2, generator=generator) * 10.0 ** torch.randint(
            0, 30, (*sizes, 2), generator=generator
        )
    if kind == "border":
        return torch.randint(0, 2, (*sizes, 2), generator=generator).float()
    extent = torch.tensor([(width, height) for height, width in shapes])[:, None].expand(*sizes, 2)
    pixel = (torch.rand(*sizes, 2, generator=generator) * (extent + 2)).floor() - 1
    return (pixel + 0.5) / extent


@settings(max_examples=60)
@given(
    batch=st.integers(0, 3),
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    heads=st.integers(1, 16),
    channels=st.integers(1, 128),
    queries=st.integers(0, 40),
    points=st.integers(1, 8),
    kind=st.sampled_from(["inside", "far", "border", "pixel"]),
    powers=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_location_agrees_with_float64(
    batch, shapes, heads, channels, queries, points, kind, powers, seed
):
    if powers:
        shapes = [(1 << height // 3, 1 << width // 3) for height, width in shapes]
    value, locations, weights = _inputs(batch, shapes, heads, channels, queries, points, seed=seed)
    locations = _locations(kind, weights.shape, shapes, torch.Generator().manual_seed(seed))
    # On a pixel the derivative by the location jumps; where the pixel's location is rounded, its side is anybody's.
    rounded = kind == "pixel" and not powers
    _assert_right(_cpu(), (value, locations, weights), shapes, skip_locations=rounded)


def test_locations_on_pixels_have_the_derivative_of_the_reference(cpu):
    shapes = [(4, 8), (2, 2), (1, 1)]
    value, _, weights = _inputs(shapes=shapes, queries=200)
    locations = _locations("pixel", weights.shape, shapes, torch.Generator().manual_seed(0))
    _assert_right(cpu, (value, locations, weights), shapes)


def test_a_large_map_loses_no_precision(cpu):
    shapes = [(3, 3000)]
    _assert_right(cpu, _inputs(1, shapes, heads=2, channels=4, queries=300), shapes, (1e-6, 1e-5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_locations_that_are_no_numbers_read_nothing_outside(cpu, bad):
    value, locations, weights = _inputs()
    locations[:, 0] = bad
    output = cpu.forward(value, FLAT, locations, weights)
    kept = cpu.forward(value, FLAT, locations[:, 1:].contiguous(), weights[:, 1:].contiguous())
    assert torch.equal(output[:, 1:], kept)


def test_many_queries_cross_all_blocks(cpu):
    _assert_right(cpu, _inputs(1, queries=1000, points=1, channels=8), SHAPES)
    _assert_right(cpu, _inputs(1, queries=3, points=150, channels=8), SHAPES)


@pytest.mark.parametrize("runner", ["openmp", "threads"])
def test_any_number_of_threads_gives_the_same_bits(cpu, runner, monkeypatch):
    if runner == "threads":
        monkeypatch.setattr("workbench.ops.native.openmp_runner", lambda: None)
    inputs, grad_output = _inputs(queries=77), torch.randn(2, 77, 15)
    results = []
    try:
        for threads in (1, 2, 3, 7, 16):
            torch.set_num_threads(threads)
            value, locations, weights = inputs
            output = cpu.forward(value, FLAT, locations, weights)
            results.append([output, *cpu.backward(grad_output, value, FLAT, locations, weights)])
    finally:
        torch.set_num_threads(1)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_gradcheck():
    leaves = [tensor.requires_grad_() for tensor in _inputs(1, queries=3, heads=2, points=2, dtype=torch.float64)]
    _cpu()
    assert torch.autograd.gradcheck(lambda v, x, w: deform_attn(v, SHAPES, x, w), leaves)


# ---- the operator ------------------------------------------------------------------------------------------


@pytest.fixture(params=["reference", "cpu"])
def forced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cpu":
        _cpu()
    monkeypatch.setenv("WORKBENCH_OPS", request.param)
    return request.param


def test_deform_attn_matches_the_reference_with_its_gradients(forced):
    leaves = [tensor.requires_grad_() for tensor in _inputs()]
    output = deform_attn(leaves[0], SHAPES, *leaves[1:])
    grad_output = torch.randn_like(output)
    grads = torch.autograd.grad(output, leaves, grad_output)
    for result, right in zip((output, *grads), _exact(leaves, SHAPES, grad_output), strict=True):
        assert _error(result, right) < 1e-5


def test_inputs_need_not_be_contiguous(forced):
    value, locations, weights = _inputs()
    right = deform_attn(value, SHAPES, locations, weights)
    odd = [
        value.transpose(1, 2).contiguous().transpose(1, 2),
        locations.flip(-1).contiguous().flip(-1).transpose(0, 1).contiguous().transpose(0, 1),
        torch.stack([weights, weights], -1)[..., 0],
    ]
    leaves = [tensor.requires_grad_() for tensor in odd]
    output = deform_attn(leaves[0], SHAPES, *leaves[1:])
    assert torch.equal(output, right)
    grads = torch.autograd.grad(output.sum(), leaves)  # the gradient of a sum is an expanded scalar
    for result, exact in zip(grads, _exact(odd, SHAPES, torch.ones(()).expand(output.shape))[1:], strict=True):
        assert _error(result, exact) < 1e-5


@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0), (0, 0)])
def test_empty_inputs(forced, batch, queries):
    leaves = [tensor.requires_grad_() for tensor in _inputs(batch, queries=queries)]
    output = deform_attn(leaves[0], SHAPES, *leaves[1:])
    assert output.shape == (batch, queries, 15)
    grads = torch.autograd.grad(output.sum(), leaves)
    assert all(not grad.any() for grad in grads)


def test_opcheck(forced):
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [tensor.requires_grad_() for tensor in _inputs(dtype=dtype)]
        torch.library.opcheck(torch.ops.workbench.deform_attn, (leaves[0], FLAT, *leaves[1:]))
        inputs = _inputs(dtype=dtype)
        arguments = (torch.randn(2, 11, 15).to(dtype), inputs[0], FLAT, *inputs[1:])
        checks = ("test_schema", "test_faketensor")  # it is the gradient: it has none of its own
        torch.library.opcheck(torch.ops.workbench.deform_attn_backward, arguments, test_utils=checks)


def test_compile_has_no_graph_break_and_trains(forced):
    compiled = torch.compile(deform_attn, fullgraph=True, backend="aot_eager")
    leaves = [tensor.requires_grad_() for tensor in _inputs()]
    grad_output = torch.randn(2, 11, 15)
    output = compiled(leaves[0], SHAPES, *leaves[1:])
    grads = torch.autograd.grad(output, leaves, grad_output)
    for result, right in zip((output, *grads), _exact(leaves, SHAPES, grad_output), strict=True):
        assert _error(result, right) < 1e-5


class _Module(torch.nn.Module):
    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return deform_attn(value, SHAPES, locations, weights)


def test_export_with_a_dynamic_batch_and_number_of_queries(forced):
    inputs = _inputs()
    batch, queries = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("queries", min=1, max=99)
    dynamic = {
        "value": {0: batch},
        "locations": {0: batch, 1: queries},
        "weights": {0: batch, 1: queries},
    }
    program = torch.export.export(_Module(), inputs, dynamic_shapes=dynamic)
    assert "workbench.deform_attn" in str(program.graph)
    others = _inputs(3, queries=20)
    assert torch.equal(program.module()(*others), _Module()(*others))


def test_autocast_takes_the_mixture_it_makes(forced):
    value, locations, weights = _inputs(channels=8)
    layer = torch.nn.Linear(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(value)
        output = deform_attn(half, SHAPES, locations, weights.softmax(-1))
    assert half.dtype == output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.dtype == torch.float32
    exact = _exact((half, locations, weights.softmax(-1)), SHAPES, output)[0]
    assert _error(output, exact) < 1e-2


def test_half_precision_locations_get_gradients_of_their_own_dtype(forced):
    leaves = [tensor.bfloat16().requires_grad_() for tensor in _inputs()]
    deform_attn(leaves[0], SHAPES, *leaves[1:]).float().sum().backward()
    assert [leaf.grad.dtype for leaf in leaves] == [torch.bfloat16] * 3


def test_meta_tensors_of_more_than_2_31_elements():
    shapes = [(4096, 4096), (2048, 2048)]
    value, locations, weights = (
        torch.empty(size, device="meta")
        for size in [(3, 5 << 22, 8, 32), (3, 5 << 22, 8, 2, 4, 2), (3, 5 << 22, 8, 2, 4)]
    )
    assert value.numel() > 2**31
    assert deform_attn(value, shapes, locations, weights).shape == (3, 5 << 22, 256)
    with pytest.raises(ValueError, match=r"value: expected fewer than 2\^31 pixels"):
        deform_attn(
            torch.empty(1, 1 << 31, 1, 1, device="meta"),
            [(1 << 16, 1 << 15)],
            torch.empty(1, 1, 1, 1, 1, 2, device="meta"),
            torch.empty(1, 1, 1, 1, 1, device="meta"),
        )


def test_wrong_arguments_are_named():
    value, locations, weights = _inputs()
    meta = weights.to("meta")
    x, w = locations, weights
    cases = [
        (
            ValueError,
            r"value: expected shape \(B, S, M, D\).*got \(2, 42, 3\)",
            (value[..., 0], SHAPES, x, w),
        ),
        (ValueError, r"value: expected shape \(B, 35, M, D\).*35 pixels", (value, SHAPES[:1], x, w)),
        (ValueError, r"spatial_shapes: expected one or more", (value, [], x, w)),
        (ValueError, r"spatial_shapes: .*at least 1", (value, [(0, 5), (42, 1)], x, w)),
        (ValueError, r"spatial_shapes: expected one or more", (value, [(7, 5, 1), (3, 1, 1)], x, w)),
        (
            ValueError,
            r"sampling_loc.*\(2, 11, 3, 3, 3, 2\).*\(2, 11, 3, 3, 3, 1\)",
            (value, SHAPES, x[..., :1], w),
        ),
        (ValueError, r"sampling_locations: .*\(2, Lq, 3, 3, P, 2\)", (value, SHAPES, x[0], w)),
        (ValueError, r"sampling_locations: .*\(2, 11, 3, 3, 3, 2\)", (value, SHAPES, x[:, :, :2], w)),
        (
            ValueError,
            r"attention_weights: .*\(2, 11, 3, 3, 3\).*\(2, 10, 3, 3, 3\)",
            (value, SHAPES, x, w[:, :10]),
        ),
        (ValueError, r"P >= 1", (value, SHAPES, x[..., :0, :], w[..., :0])),
        (ValueError, r"attention_weights: expected device cpu, as value, got meta", (value, SHAPES, x, meta)),
        (TypeError, r"sampling_locations: .*float32.*got torch.float64", (value, SHAPES, x.double(), w)),
        (TypeError, r"attention_weights: .*got torch.int64", (value, SHAPES, x, w.long())),
        (TypeError, r"value: expected a floating dtype, got torch.int32", (value.int(), SHAPES, x, w)),
    ]
    for kind, message, arguments in cases:
        with pytest.raises(kind, match=message):
            deform_attn(*arguments)


# ---- the choice of a back end ------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a new process: nothing loaded, nothing failed."""
    monkeypatch.delenv("WORKBENCH_OPS", raising=False)
    monkeypatch.setattr(backends, "_loaded", {})
    monkeypatch.setattr(backends, "_failed", {})


def test_without_a_compiler_the_reference_runs_with_one_warning(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    value, locations, weights = _inputs()
    with pytest.warns(RuntimeWarning, match=r"reference on cpu.*slower.*no-such-compiler.*install a C\+\+") as caught:
        output = deform_attn(value, SHAPES, locations, weights)
    assert len(caught) == 1
    assert torch.equal(output, deform_attn_reference(value, SHAPES, locations, weights))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deform_attn(value, SHAPES, locations, weights)


def test_a_forced_back_end_that_cannot_be_had_is_an_error(fresh, monkeypatch):
    inputs = _inputs()
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("WORKBENCH_OPS", "cpu")
    with pytest.raises(WorkbenchError, match="no-such-compiler"):
        deform_attn(inputs[0], SHAPES, *inputs[1:])
    monkeypatch.setenv("WORKBENCH_OPS", "cuda")
    with pytest.raises(WorkbenchError, match=r"WORKBENCH_OPS=cuda cannot serve torch.float32 tensors on cpu"):
        deform_attn(inputs[0], SHAPES, *inputs[1:])
    monkeypatch.setenv("WORKBENCH_OPS", "gpu")
    with pytest.raises(WorkbenchError, match=r"WORKBENCH_OPS=gpu is no back end: .*reference, cpu, cuda"):
        deform_attn(inputs[0], SHAPES, *inputs[1:])


def test_forcing_the_reference_compiles_nothing(fresh, monkeypatch):
    monkeypatch.setenv("WORKBENCH_OPS", "reference")
    monkeypatch.setattr(backends, "load", lambda name: pytest.fail("a back end was loaded"))
    inputs = _inputs()
    deform_attn(inputs[0], SHAPES, *inputs[1:])


# ---- on a GPU ----------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "tolerances"),
    [(torch.float32, (1e-5, 1e-4)), (torch.float16, (2e-3, 2e-3)), (torch.bfloat16, (1e-2, 1e-2))],
    ids=str,
)
@pytest.mark.parametrize("channels", [1, 3, 8, 16, 24, 32, 33, 64, 128, 264])
def test_cuda_agrees_with_float64(dtype, tolerances, channels):
    inputs = _inputs(channels=channels, queries=53, dtype=dtype, device="cuda")
    _assert_right(backends.load("cuda"), inputs, SHAPES, tolerances)


@pytest.mark.gpu
@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0), (3, 1)])
def test_cuda_takes_empty_and_misaligned_inputs(batch, queries):
    inputs = _inputs(batch, queries=queries, device="cuda")
    _assert_right(backends.load("cuda"), inputs, SHAPES)
    shifted = torch.randn(inputs[0].numel() + 1, device="cuda")[1:].view(inputs[0].shape)
    _assert_right(backends.load("cuda"), (shifted, *inputs[1:]), SHAPES)


@pytest.mark.gpu
def test_cuda_operator_trains_under_autocast_and_compile():
    value, locations, weights = (tensor.requires_grad_() for tensor in _inputs(channels=32, device="cuda"))
    compiled = torch.compile(deform_attn, fullgraph=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        compiled(value.bfloat16(), SHAPES, locations, weights).float().sum().backward()
    exact = _exact((value, locations, weights), SHAPES, torch.ones(2, 11, 96, device="cuda"))
    assert _error(value.grad, exact[1]) < 1e-2

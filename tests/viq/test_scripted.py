"""Small packs by TorchScript: the eager network's bits in any pack, and nothing else where they would not be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.viq.conftest import noise
from torch import Tensor, nn

import viq.scripted
from viq import Codes, ViQ
from viq.encoder import Encoder
from viq.layers import Linear
from viq.linear import laid_out, linear
from viq.packing import Packing
from viq.patches import Patches, normalise
from viq.scripted import ROWS, Scripted

GRIDS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=7)
IMAGES = [noise(*shape) for shape in ((48, 64), (16, 16), (130, 75), (96, 112), (1, 400))]


@pytest.fixture(scope="module", params=["nano", "golden"])
def model(request: pytest.FixtureRequest, golden_root: Path) -> ViQ:
    root, size = (None, None) if request.param == "nano" else (golden_root, "16k")
    made = ViQ.from_pretrained(root, size, device="cpu", dtype="float32", parts=("encoder",))
    assert made.script_small_packs()
    return made


@pytest.fixture
def nano() -> ViQ:
    return ViQ.from_pretrained(device="cpu", parts=("encoder",))


@pytest.fixture(scope="module")
def eager() -> ViQ:
    return ViQ.from_pretrained(device="cpu", parts=("encoder",))


def without_eager(model: ViQ, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the eager network fail."""

    def fail(*_: Any) -> Tensor:
        raise AssertionError("computed eagerly")

    monkeypatch.setattr(model.encoder, "forward", fail)


@settings(deadline=None, max_examples=40)
@given(grids=GRIDS, seed=st.integers(0, 2**32))
@torch.inference_mode()
def test_values_before_quantization_have_the_bits_of_the_eager_network(
    model: ViQ, grids: list[tuple[int, int]], seed: int
) -> None:
    packing = Packing.of(grids, model.row_multiple)
    patches = packing.pad(torch.rand((packing.patches, 768), generator=torch.Generator().manual_seed(seed)) * 2 - 1)
    assert model._scripted is not None
    ours, expected = model._scripted.values(patches, packing), model.encoder.project(patches, packing)
    assert torch.equal(ours[: 4 * packing.patches], expected[: 4 * packing.patches])


SIZES = st.lists(st.tuples(st.integers(1, 170), st.integers(1, 170)), min_size=1, max_size=5)


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES)
def test_codes_of_images_that_fill_no_patches_are_those_of_the_eager_network(
    model: ViQ, sizes: list[tuple[int, int]]
) -> None:
    images = [Patches.of(noise(*size)) for size in sizes]
    packing = Packing.of([image.grid for image in images], model.row_multiple)
    assert model._scripted is not None
    with torch.inference_mode():
        ours = model._scripted.codes([image.rows for image in images], sizes, packing)
        pixels = torch.from_numpy(np.concatenate([image.rows for image in images]))
        values = normalise(packing.pad(pixels), sizes, packing, torch.float32)
        assert ours is not None
        assert torch.equal(ours[: 4 * packing.patches], model.encoder(values, packing)[: 4 * packing.patches])


def test_one_call_goes_from_bytes_to_codes(nano: ViQ) -> None:
    images = [Patches.of(image) for image in IMAGES]
    assert nano.script_small_packs()
    nano.launch_encode(images)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        nano.launch_encode(images)
    outermost = [event.name for event in seen.events() if event.cpu_parent is None]
    assert [name for name in outermost if name != "aten::lift_fresh"] == ["forward"]  # that one is `from_numpy`


@pytest.mark.parametrize("count", [1, 2, 3])
def test_bits_do_not_depend_on_the_number_of_threads(
    model: ViQ, count: int, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [ViQ.encode_pixels(model, [image])[0] for image in IMAGES]
    without_eager(model, monkeypatch)
    threads(count)
    assert model.encode_pixels(IMAGES) == expected


def test_small_packs_are_scripted_and_large_ones_eager(nano: ViQ, eager: ViQ, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [noise(16, 16 * ROWS)]
    assert nano.script_small_packs()
    without_eager(nano, monkeypatch)
    assert nano.encode_pixels(IMAGES) == eager.encode_pixels(IMAGES)
    assert nano.encode_pixels(whole) == eager.encode_pixels(whole)
    with pytest.raises(AssertionError, match="computed eagerly"):
        nano.encode_pixels([*whole, noise(16, 16)])


def test_codes_keep_their_fingerprint(nano: ViQ, eager: ViQ) -> None:
    assert nano.script_small_packs()
    assert nano.fingerprint == eager.fingerprint == nano.encode_pixels(IMAGES[:1])[0].fingerprint


def test_several_threads_compute_beside_one_another(nano: ViQ, eager: ViQ) -> None:
    expected = eager.encode_pixels(IMAGES)
    assert nano.script_small_packs()
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: nano.encode_pixels(IMAGES), range(24))
        assert all(codes == expected for codes in found)


def test_what_the_process_has_switched_on_is_not_in_the_graph(nano: ViQ, eager: ViQ) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert nano.script_small_packs()
    assert nano.encode_pixels(IMAGES) == eager.encode_pixels(IMAGES)


def test_its_sums_and_rotations_take_no_memory_of_their_own(nano: ViQ) -> None:
    assert nano.script_small_packs()
    assert nano._scripted is not None
    kinds = [node.kind() for node in nano._scripted._run.inlined_graph.nodes()]
    assert "aten::add_" in kinds
    assert "aten::sub_" in kinds
    assert "aten::sub" not in kinds
    assert kinds.count("aten::cat") == kinds.count("prim::Loop")  # of what attention gives, image by image
    assert kinds.count("aten::add") == 1  # of what the network is given: its positions


def layouts_agree() -> bool:
    """Whether weights laid out give the bits of those that are not, as with torch 2.11 to 2.13 and not with 2.10."""
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.rand(shape, generator=draw) for shape in ((64, 512), (128, 512), (128,)))
    return torch.equal(linear(x, weight, bias), linear(x, laid_out(weight), bias))


of_one_layout = pytest.mark.skipif(
    not layouts_agree(), reason="this torch's products of weights laid out have other bits"
)


@of_one_layout
def test_only_the_weights_of_products_are_held_twice(nano: ViQ) -> None:
    assert nano.script_small_packs()
    assert nano._scripted is not None
    own = {one.data_ptr() for one in nano.encoder.parameters()}
    assert {one.data_ptr() for one in nano._scripted._run.parameters()} <= own
    assert copies(nano) == sum(isinstance(module, Linear) for module in nano.encoder.modules())


def copies(model: ViQ) -> int:
    """How many weights are laid out for the products of small packs."""
    assert model._scripted is not None
    return sum(one.is_mkldnn for one in model._scripted._run.buffers())


def laid_out_otherwise(weight: Tensor) -> Tensor:
    return laid_out(weight * (1 + 2**-20))


def not_laid_out(_: Tensor) -> Tensor:
    raise RuntimeError("no oneDNN here")


@pytest.mark.parametrize(
    ("name", "value"),
    [("_LAID_OUT", 1000), ("laid_out", laid_out_otherwise), ("laid_out", not_laid_out)],
    ids=["large network", "other bits", "no oneDNN"],
)
def test_where_weights_are_not_laid_out_small_packs_are_scripted_with_those_of_the_network(
    nano: ViQ, eager: ViQ, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viq.scripted, name, value)
    assert nano.script_small_packs()
    assert copies(nano) == 0
    expected = eager.encode_pixels(IMAGES)
    weights_stepped(nano)
    with torch.no_grad():
        for weight in nano.encoder.parameters():
            weight.div_(1.5)
    without_eager(nano, monkeypatch)  # changes in place are followed
    assert codes_alike(nano.encode_pixels(IMAGES), expected)


def codes_alike(ours: list[Codes], theirs: list[Codes]) -> bool:
    """Whether nearly all codes are the same: weights multiplied and divided again are rounded."""
    pairs = list(zip(ours, theirs, strict=True))
    same = sum(int((a.array == b.array).sum()) for a, b in pairs)
    return same > 0.99 * sum(a.array.size for a, _ in pairs)


@of_one_layout
def test_weights_laid_out_are_left_once_those_of_the_network_change(nano: ViQ, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nano.script_small_packs()
    weights_stepped(nano)
    without_eager(nano, monkeypatch)
    with pytest.raises(AssertionError, match="computed eagerly"):
        nano.encode_pixels(IMAGES[:1])
    monkeypatch.undo()
    expected = nano.encode_pixels(IMAGES)
    assert nano.script_small_packs()  # once more, with the weights as they are now
    without_eager(nano, monkeypatch)
    assert nano.encode_pixels(IMAGES) == expected


def test_a_network_made_without_counts_of_changes_is_scripted_too(eager: ViQ) -> None:
    with torch.inference_mode():
        made = ViQ.from_pretrained(device="cpu", parts=("encoder",))
        assert made.script_small_packs()
    assert made.encode_pixels(IMAGES) == eager.encode_pixels(IMAGES)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "fp8"])
def test_there_is_none_in_fewer_bits(dtype: str) -> None:
    half = ViQ.from_pretrained(device="cpu", dtype=dtype, parts=("encoder",))
    assert not half.script_small_packs()


def test_there_is_none_for_another_head_or_without_an_encoder(nano: ViQ, tmp_path: Path) -> None:
    nano.build_head("torchscript", tmp_path / "head.pt")
    other = ViQ.from_pretrained(device="cpu", parts=("encoder",), head="torchscript", head_file=tmp_path / "head.pt")
    assert not other.script_small_packs()
    assert not ViQ.from_pretrained(device="cpu", parts=("embedder",)).script_small_packs()


def test_there_is_none_for_a_network_so_large_that_python_does_not_matter(
    nano: ViQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viq.scripted, "_PARAMETERS", 1000)
    assert not nano.script_small_packs()


def test_one_that_would_give_other_bits_is_not_used(nano: ViQ, eager: ViQ, monkeypatch: pytest.MonkeyPatch) -> None:
    values = Encoder.values
    monkeypatch.setattr(Encoder, "values", lambda *given: values(*given) * (1 + 2**-22))
    assert not nano.script_small_packs()
    monkeypatch.undo()
    assert nano.encode_pixels(IMAGES) == eager.encode_pixels(IMAGES)


def weights_assigned(model: ViQ) -> None:
    other = {name: weight * 1.5 for name, weight in model.encoder.state_dict().items()}
    model.encoder.load_state_dict(other, assign=True)


def weights_copied(model: ViQ) -> None:
    model.encoder.load_state_dict({name: weight * 1.5 for name, weight in model.encoder.state_dict().items()})


def weights_stepped(model: ViQ) -> None:
    with torch.no_grad():
        for weight in model.encoder.parameters():
            weight.mul_(1.5)


def weights_narrowed_and_widened(model: ViQ) -> None:
    model.encoder.bfloat16().float()


def weights_given_as_a_vector(model: ViQ) -> None:
    weights = list(model.encoder.parameters())
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(weights).detach() * 1.5, weights)


def module_replaced(model: ViQ) -> None:
    model.encoder.mix = copy.deepcopy(model.encoder.mix)
    with torch.no_grad():
        model.encoder.mix.fc2.bias.add_(1)


def hook_added(model: ViQ) -> None:
    model.encoder.mix.register_forward_hook(lambda _module, _given, made: made + 1)


@pytest.mark.parametrize(
    "change",
    [
        weights_assigned,
        weights_copied,
        weights_stepped,
        weights_narrowed_and_widened,
        weights_given_as_a_vector,
        module_replaced,
        hook_added,
    ],
    ids=lambda f: f.__name__,
)
def test_what_changes_in_the_network_changes_its_codes_in_small_packs_too(
    nano: ViQ, change: Callable[[ViQ], None]
) -> None:
    assert nano.script_small_packs()
    before = nano.encode_pixels(IMAGES)  # and keeps what depends on grids
    change(nano)
    fresh = ViQ.from_pretrained(device="cpu", parts=("encoder",))
    change(fresh)
    assert nano.encode_pixels(IMAGES) == fresh.encode_pixels(IMAGES) != before


def test_there_is_none_of_a_network_with_hooks(nano: ViQ) -> None:
    handle = nano.encoder.mix.register_forward_hook(lambda _module, _given, made: made + 1)
    assert not nano.script_small_packs()
    handle.remove()
    assert nano.script_small_packs()


def test_the_network_is_left_as_it_was(nano: ViQ) -> None:
    nano.encoder.train()
    assert nano.script_small_packs()
    assert nano.encoder.training


def test_what_numbers_are_by_default_is_no_matter(nano: ViQ, eager: ViQ) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert nano.script_small_packs()
    finally:
        torch.set_default_dtype(torch.float32)
    assert nano.encode_pixels(IMAGES) == eager.encode_pixels(IMAGES)


@pytest.mark.parametrize(
    "error", [AttributeError("no trace"), RuntimeError("tracing failed"), NotImplementedError(), MemoryError()]
)
def test_without_torchscript_all_is_eager(
    nano: ViQ, eager: ViQ, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trace(*_: Any, **__: Any) -> nn.Module:
        raise error

    monkeypatch.setattr(torch.jit, "trace", trace)
    assert not nano.script_small_packs()
    assert nano.encode_pixels(IMAGES) == eager.encode_pixels(IMAGES)


def test_it_is_given_at_once_the_second_time(nano: ViQ, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nano.script_small_packs()
    monkeypatch.setattr(Scripted, "__init__", None)
    assert nano.script_small_packs()


def test_values_that_are_no_numbers_are_told(nano: ViQ) -> None:
    with torch.no_grad():
        nano.encoder.project_in.bias[0] = float("nan")
    assert nano.script_small_packs()  # the eager network's bits, whatever they are
    with pytest.raises(viq.errors.ViQError, match="no numbers"):
        nano.encode_pixels(IMAGES[:1])


def test_the_service_has_small_packs_scripted(eager: ViQ, monkeypatch: pytest.MonkeyPatch) -> None:
    from viq_serving.app import _models
    from viq_serving.settings import Settings

    monkeypatch.delenv("VIQ_WEIGHTS_ROOT", raising=False)
    (served,) = _models(Settings.load({"device": "cpu", "replicas": 1}))
    assert isinstance(served, ViQ)
    without_eager(served, monkeypatch)
    assert served.encode_pixels(IMAGES) == eager.encode_pixels(IMAGES)

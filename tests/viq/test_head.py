"""What may compute the quantization head: each back end against the eager network, on a small random model."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from viq import Codes, ViQ
from viq.head import HeadGraph, HeadwiseBlock
from viq.head_build import traced_head
from viq.packing import Packing
from viq.random_weights import Layout, encoder_state
from viq.torch_warnings import quiet_about_torch

LAYOUT = Layout(size="16k", width=64, depth=1, heads=4, headwise_width=16, head_blocks=1, headwise_blocks=1, grid=8)
SHAPES = ((16, 16), (1, 400), (75, 203), (128, 128), (255, 257), (33, 50))
IMAGES = [np.random.default_rng(shape).integers(0, 256, (*shape, 3), np.uint8) for shape in SHAPES]
SUFFIXES = {"torchscript": ".pt", "aoti": ".pt2", "onnx": ".onnx"}
COMPILED = ("compile", "aoti")

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="torch's compiler needs a C++ compiler"
)


def saved(root: Path, seed: int = 0) -> Path:
    folder = root / "converted_16k"
    folder.mkdir(parents=True)
    torch.save(encoder_state(LAYOUT, seed), folder / "model_viq_fsq_16k.pth")
    (folder / "viq.json").write_text(f'{{"num_heads": {LAYOUT.heads}}}\n')
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def eager(root: Path) -> ViQ:
    return loaded(root)


Backend = Callable[[str], ViQ]


@pytest.fixture(scope="module")
def backend(root: Path, eager: ViQ, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    """The model with a head of that name, built once."""
    made: dict[str, ViQ] = {}

    def model(head: str) -> ViQ:
        if head not in made:
            files = []
            if head in SUFFIXES:
                files.append(tmp_path_factory.mktemp(head) / f"head{SUFFIXES[head]}")
                eager.build_head(head, files[0])
            made[head] = loaded(root, head, files)
        return made[head]

    return model


def loaded(root: Path, head: str = "eager", files: list[Path] | None = None) -> ViQ:
    return ViQ.from_pretrained(root, "16k", device="cpu", parts=("encoder",), head=head, head_file=files or ())


def operations(program: Any) -> set[str]:
    return {node.kind() for node in program.inlined_graph.nodes()}


def agreement(ours: list[Codes], theirs: list[Codes]) -> float:
    pairs = list(zip(ours, theirs, strict=True))
    return sum(int((a.array == b.array).sum()) for a, b in pairs) / sum(a.array.size for a, _ in pairs)


def test_the_graph_on_tensors_alone_has_the_bits_of_the_eager_head(eager: ViQ) -> None:
    packing = Packing.of([(3, 4), (1, 1), (7, 9)], eager.row_multiple)
    x, table = torch.randn(packing.rows, LAYOUT.width), eager.encoder.rotations(packing)
    with torch.inference_mode():
        values = eager.encoder.head(x, packing, table)[: packing.patches * 4]
        assert torch.equal(HeadGraph(eager.encoder)(x, *packing.on(x.device), table)[: packing.patches * 4], values)


def test_the_graph_that_is_saved_serves_those_who_want_gradients_or_cast_what_they_give_it(eager: ViQ) -> None:
    head, packing = traced_head(eager.encoder), Packing.of([(3, 4), (1, 1), (7, 9)], eager.row_multiple)
    x, table = torch.randn(packing.rows, LAYOUT.width), eager.encoder.rotations(packing)
    with torch.inference_mode():
        values = eager.encoder.head(x, packing, table)[: packing.patches * 4]
    watched = head(x.clone().requires_grad_(True), *packing.on(x.device), table)[: packing.patches * 4]
    assert torch.equal(watched.detach(), values)
    # A sum that is written into one of its terms has that one's bits, which autocast makes fewer.
    assert {"aten::add", "aten::add_"} & operations(head) == {"aten::add"}


@pytest.mark.parametrize(
    "head", ["torchscript", "onnx", *(pytest.param(name, marks=needs_compiler) for name in COMPILED)]
)
def test_a_back_end_gives_the_eager_codes_for_any_pack_under_a_fingerprint_of_its_own(
    eager: ViQ, backend: Backend, head: str
) -> None:
    model, expected = backend(head), eager.encode(IMAGES)
    together = model.encode(IMAGES)
    # The same sums, but for the order in which a fused kernel adds within a row: an edge is hit now and then.
    assert agreement(together, expected) == 1.0 if head == "torchscript" else agreement(together, expected) > 0.999
    assert model.family == eager.family
    assert model.fingerprint != eager.fingerprint
    assert all(codes.fingerprint == model.fingerprint for codes in together)


@pytest.mark.parametrize("head", ["torchscript", *(pytest.param(name, marks=needs_compiler) for name in COMPILED)])
def test_what_a_back_end_computes_does_not_depend_on_company_order_or_threads(
    backend: Backend, threads: Callable[[int], None], head: str
) -> None:
    model = backend(head)
    assert model.invariant
    with torch._dynamo.config.patch(error_on_recompile=True):  # once is enough for all packs
        together = model.encode(IMAGES)
        assert [model.encode([image])[0] for image in IMAGES] == together
        assert model.encode(IMAGES[::-1]) == together[::-1]
        threads(1)
        assert model.encode(IMAGES) == together
        assert model.encode(IMAGES[:1] * 40) == together[:1] * 40
    with ThreadPoolExecutor(4) as pool:  # replicas of one device share a model
        assert list(pool.map(model.encode, [IMAGES] * 8)) == [together] * 8


def test_a_saved_torchscript_head_runs_where_this_package_cannot_be_imported(eager: ViQ, tmp_path: Path) -> None:
    file = tmp_path / "head.pt"
    eager.build_head("torchscript", file)
    packing = Packing.of([(5, 3), (9, 11)], eager.row_multiple)
    x, table = torch.randn(packing.rows, LAYOUT.width), eager.encoder.rotations(packing)
    torch.save([x, *packing.on(x.device), table], tmp_path / "inputs.pt")
    script = """
import importlib.util, sys, warnings
sys.path.append(sys.argv[1])
assert importlib.util.find_spec("viq") is None and importlib.util.find_spec("viq_serving") is None
import torch
warnings.simplefilter("ignore")
with torch.inference_mode():
    torch.save(torch.jit.load(sys.argv[2])(*torch.load(sys.argv[3])), sys.argv[4])
"""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    # Without `site`, the path file by which this checkout is installed is not read.
    command = [sys.executable, "-I", "-S", "-c", script, str(Path(spec.origin).parents[1])]
    subprocess.run([*command, *(str(tmp_path / name) for name in ("head.pt", "inputs.pt", "out.pt"))], check=True)
    with torch.inference_mode():
        expected = eager.encoder.head(x, packing, table)
    assert torch.equal(torch.load(tmp_path / "out.pt")[: packing.patches * 4], expected[: packing.patches * 4])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_torchscript_head_has_the_eager_codes_in_16_bits_too(root: Path, tmp_path: Path, dtype: str) -> None:
    eager = ViQ.from_pretrained(root, "16k", device="cpu", parts=("encoder",), dtype=dtype)
    file = tmp_path / "head.pt"
    eager.build_head("torchscript", file)
    model = ViQ.from_pretrained(
        root, "16k", device="cpu", parts=("encoder",), dtype=dtype, head="torchscript", head_file=file
    )
    assert agreement(model.encode(IMAGES), eager.encode(IMAGES)) == 1.0


def test_attention_under_a_mask_as_tensorrt_is_given_it_agrees_with_the_eager_head(eager: ViQ, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from viq.head_backends import facts_of
    from viq.head_build import exported
    from viq.head_onnx import write

    file = tmp_path / "head.onnx"
    write(exported(eager.encoder), file, facts_of(eager.encoder, "onnx", eager.family, "16k"), masked=True)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    for grids in ([(1, 1)], [(3, 4), (1, 1), (7, 9)], [(8, 8)] * 5):
        packing = Packing.of(grids, eager.row_multiple)
        x, table = torch.randn(packing.rows, LAYOUT.width), eager.encoder.rotations(packing)
        where = packing.on(x.device)
        given = {"rows": x, "ends": where.ends, "longest": where.longest, "rotation": table}
        (values,) = session.run(None, {name: given[name].numpy() for name in names})
        with torch.inference_mode():
            expected = eager.encoder.head(x, packing, table)[: packing.patches * 4]
        torch.testing.assert_close(torch.from_numpy(values[: packing.patches * 4]), expected, rtol=1e-4, atol=1e-5)


def test_only_torchs_own_warnings_are_kept_quiet() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with quiet_about_torch():
            warnings.warn("`torch.jit.load` is deprecated. Please switch to `torch.export`.", DeprecationWarning, 1)
            warnings.warn("ours", DeprecationWarning, 1)
    assert [str(one.message) for one in told] == ["ours"]


def test_the_eager_head_computes_nothing_in_the_place_of_the_one_that_was_chosen(
    eager: ViQ, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["torchscript", "onnx", *(COMPILED if not needs_compiler.args[0] else ())]
    expected = {name: backend(name).encode(IMAGES) for name in names}

    def computed(*given: object) -> None:
        raise AssertionError("the eager head computes")

    monkeypatch.setattr(HeadwiseBlock, "forward", computed)
    with pytest.raises(AssertionError, match="the eager head computes"):
        eager.encode(IMAGES)
    for name in names:
        assert backend(name).encode(IMAGES) == expected[name]

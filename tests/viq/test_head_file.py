"""Files of compiled heads: what they say of themselves, and which are refused before anything in them runs."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from viq import ViQ
from viq.errors import InvalidInput, WeightsError
from viq.hardware import multiplies_natively
from viq.head_file import ENTRY, check_whole, read_facts
from viq.head_tensorrt import shapes_of
from viq.packing import Packing
from viq.random_weights import Layout, encoder_state
from viq_serving.cli.main import main

LAYOUT = Layout(size="16k", width=32, depth=1, heads=2, headwise_width=16, head_blocks=1, headwise_blocks=1, grid=4)

LEFT_OUT = object()


def saved(root: Path, seed: int) -> Path:
    folder = root / "converted_16k"
    folder.mkdir(parents=True)
    torch.save(encoder_state(LAYOUT, seed), folder / "model_viq_fsq_16k.pth")
    (folder / "viq.json").write_text(f'{{"num_heads": {LAYOUT.heads}}}\n')
    return root


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two sets of weights of one shape."""
    folder = tmp_path_factory.mktemp("roots")
    return saved(folder / "one", 0), saved(folder / "two", 1)


@pytest.fixture(scope="module")
def file(roots: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("head") / "head.pt"
    loaded(roots[0]).build_head("torchscript", path)
    return path


def loaded(root: Path, head: str = "eager", *files: Path | str, dtype: str = "float32") -> ViQ:
    return ViQ.from_pretrained(
        root, "16k", device="cpu", dtype=dtype, parts=("encoder",), head=head, head_file=list(files)
    )


def changed(file: Path, path: Path, **facts: object) -> Path:
    """A copy of a head file that says something else of itself, or nothing of what is `LEFT_OUT`."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w") as new:
        for one in old.infolist():
            data = old.read(one)
            if one.filename.endswith(ENTRY):
                said = {**json.loads(data), **facts}
                data = json.dumps({name: value for name, value in said.items() if value is not LEFT_OUT}).encode()
            new.writestr(one.filename, data)
    return path


def test_a_head_file_says_what_it_is_for(roots: tuple[Path, Path], file: Path) -> None:
    model, facts = loaded(roots[0]), read_facts(file)
    assert (facts.format, facts.family, facts.size, facts.dtype) == ("torchscript", model.family, "16k", "float32")
    assert facts.device.startswith("cpu/")
    assert facts.torch == ".".join(torch.__version__.split(".")[:2])


def test_a_head_of_other_weights_is_refused_and_the_right_one_of_several_is_taken(
    roots: tuple[Path, Path], file: Path, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=f"no head file for weights {loaded(roots[1]).family}.*{file}"):
        loaded(roots[1], "torchscript", file)
    other = tmp_path / "other.pt"
    loaded(roots[1]).build_head("torchscript", other)
    assert loaded(roots[1], "torchscript", file, other).head == "torchscript"


def test_of_several_files_for_the_same_family_the_one_that_fits_is_taken_wherever_it_stands(
    roots: tuple[Path, Path], file: Path, tmp_path: Path
) -> None:
    others = [
        changed(file, tmp_path / f"{fact}.pt", **{fact: value})
        for fact, value in (("weights", "0"), ("torch", "1.0"), ("dtype", "bfloat16"))
    ]
    others.append(changed(file, tmp_path / "another.pt", family="0" * 16, weights=LEFT_OUT))
    for files in ([*others, file], [file, *others]):
        assert loaded(roots[0], "torchscript", *files).head == "torchscript"
    two = changed(file, tmp_path / "two.pt", weights="0", torch="1.0")
    with pytest.raises(WeightsError, match=f"{others[0]}: is for weights 0, expected"):  # the nearest is named
        loaded(roots[0], "torchscript", two, others[0])


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("torch", "1.0"),
        ("device", "cuda/sm_90"),
        ("dtype", "bfloat16"),
        ("format", "aoti"),
        ("width", 1536),
        ("cpu", "0"),
        ("weights", "0"),
    ],
)
def test_a_head_made_for_something_else_is_refused_by_name_without_loading_it(
    roots: tuple[Path, Path], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fact: str, value: object
) -> None:
    other = changed(file, tmp_path / "head.pt", **{fact: value})
    monkeypatch.setattr(torch.jit, "load", None)
    with pytest.raises(WeightsError, match=f"{other}: is for {fact} {value}, expected"):
        loaded(roots[0], "torchscript", other)


def test_weights_changed_where_the_remembered_family_does_not_look_are_noticed(
    roots: tuple[Path, Path], file: Path, tmp_path: Path
) -> None:
    root = saved(tmp_path, 0)
    path, name = (
        root / "converted_16k" / "model_viq_fsq_16k.pth",
        "fusion_block.vq_low_pre_token_shuffle_head.fc2.weight",
    )
    family = loaded(root, "torchscript", file).family
    state = torch.load(path, weights_only=True)
    state[name].view(-1)[-4500] += 1
    torch.save(state, path)
    assert loaded(root).family == family  # as samples of each tensor are compared
    with pytest.raises(WeightsError, match=f"{file}: is for weights [0-9a-f]{{16}}, expected"):
        loaded(root, "torchscript", file)


def test_a_head_file_of_an_earlier_version_is_to_be_built_anew(
    roots: tuple[Path, Path], file: Path, tmp_path: Path
) -> None:
    path = changed(file, tmp_path / "head.pt", weights=LEFT_OUT)
    with pytest.raises(WeightsError, match="made by an earlier viq: build it anew"):
        loaded(roots[0], "torchscript", path)


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "not readable"), (b"PK\x03\x04 nothing", "not readable"), (b"\x80\x02}q\x00.", "not readable")],
)
def test_what_is_no_head_file_is_refused(roots: tuple[Path, Path], tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "head.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=told):
        loaded(roots[0], "torchscript", path)


def test_an_archive_without_facts_or_with_too_many_is_refused(roots: tuple[Path, Path], tmp_path: Path) -> None:
    for content, told in (({}, "no head made by"), ({ENTRY: "{"}, "not readable"), ({ENTRY: "{}"}, "not readable"),
                          ({ENTRY: " " * 70_000}, "at most 65536")):  # fmt: skip
        path = tmp_path / "head.pt"
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in content.items():
                archive.writestr(name, text)
        with pytest.raises(WeightsError, match=told):
            loaded(roots[0], "torchscript", path)


def test_a_truncated_head_is_refused(roots: tuple[Path, Path], file: Path, tmp_path: Path) -> None:
    path = tmp_path / "head.pt"
    path.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(WeightsError, match=r"head\.pt"):
        loaded(roots[0], "torchscript", path)


def test_onnx_that_is_none_or_says_nothing_of_itself_is_refused(roots: tuple[Path, Path], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "head.onnx"
    path.write_bytes(b"\xff\xff\xff\xff nothing")
    with pytest.raises(WeightsError, match="not readable as ONNX"):
        loaded(roots[0], "onnx", path)
    path.write_bytes(onnx.ModelProto().SerializeToString())
    with pytest.raises(WeightsError, match="no property"):
        loaded(roots[0], "onnx", path)


def test_a_head_is_not_taken_from_weights_or_a_hub(roots: tuple[Path, Path], file: Path) -> None:
    inside = roots[0] / "converted_16k" / "head.pt"
    inside.write_bytes(file.read_bytes())
    with pytest.raises(WeightsError, match="a head is code, and not taken from a folder of weights"):
        loaded(roots[0], "torchscript", inside)
    with pytest.raises(WeightsError, match="only taken from a path on this machine"):
        loaded(roots[0], "torchscript", "hf:someone/heads/head.pt")
    with pytest.raises(WeightsError, match="not taken from a folder of weights"):
        loaded(roots[0]).build_head("torchscript", roots[0] / "converted_16k" / "another.pt")


def test_heads_and_files_that_do_not_go_together_are_refused(roots: tuple[Path, Path], file: Path) -> None:
    with pytest.raises(InvalidInput, match="there are eager, compile"):
        loaded(roots[0], "caffe")
    with pytest.raises(InvalidInput, match="a head file is for"):
        loaded(roots[0], "compile", file)
    with pytest.raises(WeightsError, match="viq build-head --format aoti"):
        loaded(roots[0], "aoti")
    with pytest.raises(InvalidInput, match=r"files of format torchscript end with \.pt"):
        loaded(roots[0]).build_head("torchscript", Path("head.onnx"))
    with pytest.raises(InvalidInput, match="a part of the encoder"):
        ViQ.from_pretrained(device="cpu", parts=("embedder",), head="compile")
    with pytest.raises(InvalidInput, match="CUDA graphs and cuDNN attention are for"):
        ViQ.from_pretrained(roots[0], "16k", device="cpu", parts=("encoder",), cuda_graphs=True)


def test_a_tensorrt_engine_is_for_every_pack_up_to_its_most_rows() -> None:
    least, _, most = shapes_of("x", (-1, 1536))
    assert (least, most) == ((32, 1536), (16_384, 1536))
    fewest, _, ends = shapes_of("ends", (-1,))
    for grids in ([(1, 1)], [(1, 1)] * 16_383, [(1, 1)] * 16_384, [(128, 128)]):
        packing = Packing.of(grids, 32)
        assert least[0] <= packing.rows <= most[0]
        assert fewest[0] <= packing.on(torch.device("cpu")).ends.shape[0] <= ends[0]
    assert Packing.of([(1, 1)] * 16_383, 32).on(torch.device("cpu")).ends.shape == ends


def test_tensorrt_names_what_is_missing_and_leaves_no_file(roots: tuple[Path, Path], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(WeightsError, match=r"TensorRT, which is not installed|torch finds no CUDA device"):
        loaded(roots[0]).build_head("tensorrt", tmp_path / "head.engine")
    assert not list(tmp_path.iterdir())


def test_the_command_builds_a_head_that_encode_and_info_take(
    roots: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = ["--weights-root", str(roots[0]), "--size", "16k", "--device", "cpu"]
    head = tmp_path / "head.pt"
    assert main(["build-head", "--format", "torchscript", "-o", str(head), *weights]) == 0
    assert f"{head}: torchscript for {loaded(roots[0]).family} (size 16k), float32, cpu/" in capsys.readouterr().out
    picture = tmp_path / "picture.ppm"
    picture.write_bytes(b"P6 20 40 255\n" + bytes(range(240)) * 10)
    taken = ["--head", "torchscript", "--head-file", str(head)]
    assert main(["encode", str(picture), "-o", str(tmp_path), *weights, *taken]) == 0
    assert main(["encode", str(picture), "-o", str(tmp_path), *weights, "--head", "torchscript"]) == 3
    assert "viq build-head" in capsys.readouterr().err
    assert main(["encode", str(picture), "-o", str(tmp_path), *weights, "--head-file", str(head)]) == 2
    assert main(["build-head", "--format", "torchscript", "-o", str(tmp_path / "no" / "head.pt"), *weights]) == 2


def test_the_service_takes_of_several_heads_the_one_for_its_weights(file: Path, tmp_path: Path) -> None:
    from viq_serving.app import _models
    from viq_serving.settings import Settings

    nano = ViQ.from_pretrained(device="cpu", parts=("encoder",))
    nano.build_head("torchscript", tmp_path / "nano.pt")
    settings = Settings.load(
        {"device": "cpu", "replicas": 1, "head": "torchscript", "head_file": f"{file},{tmp_path / 'nano.pt'}"}
    )
    (model,) = _models(settings)
    assert isinstance(model, ViQ)
    assert (model.head, model.invariant) == ("torchscript", True)
    assert model.fingerprint != nano.fingerprint


def test_a_head_with_one_bit_changed_in_its_weights_is_refused(
    roots: tuple[Path, Path], file: Path, tmp_path: Path
) -> None:
    path, weights = tmp_path / "head.pt", loaded(roots[0]).encoder.mix.fc1.weight.numpy().tobytes()
    path.write_bytes(_with_a_bit_changed(file.read_bytes(), weights))
    with pytest.raises(WeightsError, match=f"{path}: damaged"):
        loaded(roots[0], "torchscript", path)


def test_onnx_with_one_bit_changed_or_without_a_checksum_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from viq.head_onnx import seal

    weights, path = bytes(range(64)) * 4, tmp_path / "head.onnx"
    held = onnx.helper.make_tensor("weights", onnx.TensorProto.UINT8, [len(weights)], weights, raw=True)
    graph = onnx.helper.make_graph([], "head", [], [], [held])
    onnx.save_model(onnx.helper.make_model(graph), str(path))
    with pytest.raises(WeightsError, match="damaged"):
        check_whole(path)
    seal(path)
    check_whole(path)
    path.write_bytes(_with_a_bit_changed(path.read_bytes(), weights))
    with pytest.raises(WeightsError, match="damaged"):
        check_whole(path)


def _with_a_bit_changed(data: bytes, weights: bytes) -> bytes:
    changed_ = bytearray(data)
    changed_[data.index(weights) + len(weights) // 2] ^= 1
    return bytes(changed_)


@pytest.mark.parametrize(
    ("fact", "value"), [("format", []), ("family", {}), ("torch", None), ("width", "32"), ("cpu", 1)]
)
def test_facts_of_another_type_are_refused(
    roots: tuple[Path, Path], file: Path, tmp_path: Path, fact: str, value: object
) -> None:
    with pytest.raises(WeightsError, match=f"says {fact} "):
        loaded(roots[0], "torchscript", changed(file, tmp_path / "head.pt", **{fact: value}))


@pytest.mark.skipif(multiplies_natively(torch.bfloat16), reason="this CPU has matrix instructions for bfloat16")
def test_machine_code_of_16_bits_is_refused_where_it_cannot_be_made(roots: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="aoti in bfloat16"):
        loaded(roots[0], dtype="bfloat16").build_head("aoti", tmp_path / "head.pt2")
    assert not list(tmp_path.iterdir())

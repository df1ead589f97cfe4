"""encode, decode and embed: which files come out, and what becomes of those that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from viq import Codes, ViQ

Run = Callable[..., tuple[int, str, str]]
MakePicture = Callable[..., Path]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def model() -> ViQ:
    return ViQ.from_pretrained()


def test_files_hold_what_the_library_gives(viq: Run, picture: MakePicture, model: ViQ, tmp_path: Path) -> None:
    cat, dog = picture("cat.png", 20, 35), picture("dog.bmp", 1, 1)
    assert viq("encode", cat, dog, "-o", tmp_path / "codes")[0] == 0
    files = [tmp_path / "codes" / f"{stem}.npz" for stem in ("cat", "dog")]
    made = [Codes.from_npz(file) for file in files]
    assert made == model.encode([Image.open(cat), Image.open(dog)])
    assert (made[0].image_size, made[0].grid, made[0].fingerprint) == ((20, 35), (2, 3), model.fingerprint)

    assert viq("decode", *files, "-o", tmp_path / "pictures")[0] == 0
    for stem, expected in zip(("cat", "dog"), model.decode(made), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "pictures" / f"{stem}.png")), expected)

    assert viq("embed", files[0], dog, "-o", tmp_path / "features")[0] == 0
    for stem, feature in zip(("cat", "dog"), model.embed(made), strict=True):
        array = np.load(tmp_path / "features" / f"{stem}.npy", allow_pickle=False)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, feature.numpy())


def test_compact_files_hold_the_same_and_are_read_wherever_codes_are(
    viq: Run, picture: MakePicture, model: ViQ, tmp_path: Path
) -> None:
    cat = picture("cat.png", 20, 35)
    for form in ("npz", "viq"):
        assert viq("encode", cat, "--format", form, "-o", tmp_path)[0] == 0
        for command in ("decode", "embed"):
            assert viq(command, tmp_path / f"cat.{form}", "-o", tmp_path / form)[0] == 0
    assert Codes.from_viq(tmp_path / "cat.viq") == Codes.from_npz(tmp_path / "cat.npz")
    for name in ("cat.png", "cat.npy"):
        assert (tmp_path / "viq" / name).read_bytes() == (tmp_path / "npz" / name).read_bytes()
    (tmp_path / "cut.viq").write_bytes((tmp_path / "cat.viq").read_bytes()[:-1])
    code, _, err = viq("decode", tmp_path / "cut.viq", "-o", tmp_path)
    assert (code, "it is cut short" in err) == (1, True)


def test_more_images_than_a_batch_holds_all_come_out(
    viq: Run, picture: MakePicture, model: ViQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("viq_serving.cli.batches.BATCH_PATCHES", 10)
    images = [picture(f"{i}.png", 16 * i, 33) for i in range(1, 7)]  # 3 to 18 patches
    assert viq("encode", *images, "-o", tmp_path / "codes")[0] == 0
    made = [Codes.from_npz(tmp_path / "codes" / f"{image.stem}.npz") for image in images]
    assert made == model.encode([Image.open(image) for image in images])


def test_failed_inputs_are_named_and_the_rest_is_done(viq: Run, picture: MakePicture, tmp_path: Path) -> None:
    cat = picture("cat.png")
    text = tmp_path / "text.png"
    text.write_bytes(b"no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "short.png").write_bytes(cat.read_bytes()[:-200])
    (tmp_path / "folder.png").mkdir()
    wrong = [text, *(tmp_path / name for name in ("empty.png", "short.png", "folder.png", "absent.png"))]
    code, _, err = viq("encode", *wrong, cat, "-o", tmp_path / "out")
    assert code == 1
    assert names(tmp_path / "out") == ["cat.npz"]
    for path, reason in zip(
        wrong, ("not an image", "empty", "cannot be decoded", "Is a directory", "No such file"), strict=True
    ):
        assert any(line.startswith(f"{path}: ") and reason in line for line in err.splitlines())
    assert "5 of 6 inputs failed" in err


def test_an_image_over_a_limit_fails_by_the_limit(viq: Run, huge: Path, tmp_path: Path) -> None:
    for command in ("encode", "embed"):
        code, _, err = viq(command, huge, "-o", tmp_path / "out")
        assert code == 1
        assert "900000000 pixels" in err


def test_codes_that_cannot_be_decoded_fail_alone(viq: Run, picture: MakePicture, tmp_path: Path) -> None:
    assert viq("encode", picture("cat.png"), "-o", tmp_path)[0] == 0
    good = Codes.from_npz(tmp_path / "cat.npz")
    Codes(good.array, good.image_size, "64k", good.fingerprint).to_npz(tmp_path / "size.npz")
    Codes(good.array, good.image_size, "nano", f"{'0' * 16}.00000000").to_npz(tmp_path / "family.npz")
    Codes(good.array, good.image_size, "nano").to_npz(tmp_path / "unmarked.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cat.npz").read_bytes()[:-9])
    inputs = [tmp_path / f"{name}.npz" for name in ("cat", "size", "family", "unmarked", "cut")]
    for command, suffix in (("decode", "png"), ("embed", "npy")):
        out = tmp_path / command
        code, _, err = viq(command, *inputs, "-o", out)
        assert code == 1
        assert names(out) == [f"cat.{suffix}", f"unmarked.{suffix}"]
        reasons = {"size": "of size 64k", "family": f"made by weights {'0' * 16}", "cut": "not a readable npz"}
        for name, reason in reasons.items():
            assert any(f"{name}.npz: " in line and reason in line for line in err.splitlines())
        assert viq(command, inputs[2], "-o", out, "--any-fingerprint")[0] == 0
        assert (out / f"family.{suffix}").read_bytes() == (out / f"cat.{suffix}").read_bytes()


@pytest.mark.parametrize(("name", "suffix"), [("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp")])
def test_decode_writes_the_format_asked_for(
    viq: Run, picture: MakePicture, tmp_path: Path, name: str, suffix: str
) -> None:
    assert viq("encode", picture("cat.tiff"), "-o", tmp_path)[0] == 0
    assert viq("decode", tmp_path / "cat.npz", "--format", name, "-o", tmp_path / "out")[0] == 0
    with Image.open(tmp_path / "out" / f"cat{suffix}") as made:
        assert (made.format, made.size) == (name.upper(), (35, 20))


def test_pixel_options_reach_the_pixels(viq: Run, model: ViQ, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (40, 20), (200, 30, 60, 0)).save(tmp_path / "cat.png", exif=exif)
    shapes = {(): (40, 20), ("--no-exif",): (20, 40), ("--alpha", "drop"): (40, 20)}
    for options, (height, width) in shapes.items():
        for command in ("encode", "embed"):
            assert viq(command, tmp_path / "cat.png", "-o", tmp_path, *options)[0] == 0
        colour = (200, 30, 60) if "drop" in options else (255, 255, 255)
        (expected,) = model.encode([Image.new("RGB", (width, height), colour)])
        assert Codes.from_npz(tmp_path / "cat.npz") == expected
        np.testing.assert_array_equal(np.load(tmp_path / "cat.npy"), model.embed([expected])[0].numpy())


def test_existing_results_are_replaced_and_nothing_unfinished_stays(
    viq: Run, picture: MakePicture, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cat.npz").write_bytes(b"old")
    (tmp_path / "out" / "dog.npz").mkdir()  # nothing can be put in its place
    code, _, err = viq("encode", picture("cat.png"), picture("dog.png", 16, 16), "-o", tmp_path / "out")
    assert code == 1
    assert "dog.png: Is a directory" in err
    assert Codes.from_npz(tmp_path / "out" / "cat.npz").grid == (2, 3)
    assert names(tmp_path / "out") == ["cat.npz", "dog.npz"]


def test_results_go_to_the_current_folder_unless_told(shell: Run, picture: MakePicture, tmp_path: Path) -> None:
    picture("pictures/cat.png")
    assert shell("encode", "pictures/cat.png", cwd=tmp_path)[0] == 0
    code, out, err = shell("decode", "cat.npz", cwd=tmp_path)
    assert (code, out) == (0, "")
    assert "untrained" not in err
    assert names(tmp_path) == ["cat.npz", "cat.png", "pictures"]


def test_decode_does_not_replace_the_picture_it_came_from_unless_told(
    viq: Run, picture: MakePicture, tmp_path: Path
) -> None:
    cat = picture("cat.png", 20, 35)
    original = cat.read_bytes()
    assert viq("encode", cat, "-o", tmp_path)[0] == 0
    code, _, err = viq("decode", tmp_path / "cat.npz", "-o", tmp_path)
    assert (code, cat.read_bytes()) == (2, original)
    assert f"{cat} exists; --overwrite" in err
    assert viq("decode", tmp_path / "cat.npz", "-o", tmp_path, "--overwrite")[0] == 0
    assert cat.read_bytes() != original

"""The client, and the command with --server, against a running service: the same results as here."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from viq import Codes, ViQ
from viq.errors import FingerprintMismatch, InvalidInput, TooLarge, UnknownModel
from viq_serving.client import Client, ServerError

Run = Callable[..., tuple[int, str, str]]
MakePicture = Callable[..., Path]


@pytest.fixture(scope="module")
def model() -> ViQ:
    return ViQ.from_pretrained()


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    with Client(server, timeout=60) as made:
        yield made


def test_the_command_writes_the_same_files_with_a_server_as_without(
    viq: Run, server: str, picture: MakePicture, tmp_path: Path
) -> None:
    cat, dog, text = picture("cat.png"), picture("dog.png", 1, 50), tmp_path / "text.png"
    text.write_bytes(b"no picture")
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, options in ((here, []), (there, ["--server", server])):
        assert viq("encode", cat, text, dog, "-o", folder, *options)[0] == 1
        codes = [folder / "cat.npz", folder / "dog.npz"]
        assert viq("decode", *codes, "-o", folder, *options)[0] == 0
        code, _, err = viq("embed", codes[0], dog, "-o", folder, *options)
        assert code == 0
        assert "untrained" not in err
    names = ["cat.npy", "cat.npz", "cat.png", "dog.npy", "dog.npz", "dog.png"]
    for folder in (here, there):
        assert sorted(path.name for path in folder.iterdir()) == names
    for name in names:
        if name.endswith(".png"):  # threads move a value by a bit, and rounding makes that one
            ours, theirs = (np.asarray(Image.open(folder / name)) for folder in (here, there))
            np.testing.assert_allclose(ours, theirs, atol=1)
        else:
            assert (here / name).read_bytes() == (there / name).read_bytes()


def test_info_and_plan_say_the_same_with_a_server(viq: Run, server: str) -> None:
    assert viq("info", "--server", server)[1].startswith("nano, default\n")
    here, there = (json.loads(viq("info", "--json", *o)[1])["models"][0] for o in ([], ["--server", server]))
    for key in ("size", "fingerprint", "levels", "codebook_size", "dtype", "device"):
        assert here[key] == there[key]
    sizes = ["640x480", "1x1", "30000x30000"]
    assert viq("plan", *sizes) == viq("plan", *sizes, "--server", server)
    assert viq("plan", *sizes, "--json") == viq("plan", *sizes, "--json", "--server", server)


def test_a_size_that_the_server_lacks_ends_with_3(viq: Run, server: str, tmp_path: Path) -> None:
    code, _, err = viq("encode", "a.png", "-o", tmp_path, "--server", server, "--size", "2k")
    assert code == 3
    assert "does not serve size 2k; it has nano" in err


def test_a_server_that_goes_away_ends_the_work_with_3(viq: Run, picture: MakePicture, tmp_path: Path) -> None:
    row = {"size": "nano", "default": True}
    reply = json.dumps({"models": [row]}).encode()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_once() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(reply))
                connection.sendall(reply)
            listener.close()

        thread = threading.Thread(target=answer_once)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        code, _, err = viq("encode", picture("cat.png"), picture("dog.png"), "-o", tmp_path / "out", "--server", url)
        thread.join()
    assert code == 3
    assert f"no answer from {url}" in err


def test_the_client_gives_what_the_library_gives_for_every_kind_of_image(
    client: Client, picture: MakePicture, model: ViQ
) -> None:
    path = picture("cat.png")
    image, pixels = Image.open(path), np.asarray(Image.open(path))
    expected = model.encode([pixels])[0]
    made = client.encode([path, str(path), path.read_bytes(), image, pixels])
    assert made == [expected] * 5
    features, of_pixels = client.embed([expected, pixels])
    np.testing.assert_array_equal(features, model.embed([expected])[0].numpy())
    np.testing.assert_array_equal(features, of_pixels)
    (back,) = client.decode([expected])
    np.testing.assert_allclose(back, model.decode([expected])[0], atol=1)


def test_pixel_options_hold_for_files_and_for_images_in_memory(client: Client, model: ViQ, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGBA", (40, 20), (9, 99, 199, 0)).save(tmp_path / "a.png", exif=exif)
    expected = model.encode([Image.new("RGB", (40, 20), (9, 99, 199))])
    for form in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        assert client.encode([form], exif=False, alpha="drop") == expected


def test_errors_come_back_as_their_types(client: Client, model: ViQ, picture: MakePicture, huge: Path) -> None:
    with pytest.raises(InvalidInput, match="not an image"):
        client.encode([b"no picture"])
    with pytest.raises(UnknownModel, match="2k"):
        client.encode([picture()], size="2k")
    with pytest.raises(TooLarge, match="900000000"):
        client.encode([huge])
    with pytest.raises(InvalidInput):
        client.plan([(0, 5)])
    codes = model.encode([np.zeros((16, 16, 3), np.uint8)])[0]
    foreign = Codes(codes.array, codes.image_size, codes.size, f"{'0' * 16}.00000000")
    with pytest.raises(FingerprintMismatch, match="0000"):
        client.decode([foreign])
    with pytest.raises(FingerprintMismatch):
        client.embed([foreign])
    assert len(client.decode([foreign], any_fingerprint=True)) == 1
    assert len(client.embed([foreign], any_fingerprint=True)) == 1


def test_what_is_no_such_service_is_a_server_error(server: str) -> None:
    with Client(f"{server}/elsewhere") as client, pytest.raises(ServerError, match="no such path") as caught:
        client.models()
    assert caught.value.code == "not_found"
    with Client("http://127.0.0.1:1") as client, pytest.raises(ServerError, match="no answer") as caught:
        client.models()
    assert caught.value.code == "unreachable"


@pytest.mark.parametrize("url", ["localhost", "ftp://host", "http://", "http://host:port"])
def test_an_address_that_is_none_is_invalid_input(url: str) -> None:
    with pytest.raises(InvalidInput, match="server"):
        Client(url)

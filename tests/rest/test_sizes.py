"""Several sizes behind one port: each request names one, codes bring their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from safetensors.torch import save_file

from viq.random_weights import Layout, drawer_state, embedder_state, encoder_state

MakeImage = Callable[..., bytes]
Serve = Callable[..., AbstractContextManager[httpx.Client]]
JSON = {"Content-Type": "application/json"}


def write_weights(root: Path, size: str, seed: int) -> None:
    """A tiny random model of `size` in the released layout."""
    layout = Layout(size, width=64, depth=1, heads=4, headwise_width=64, grid=128, vae_base=8)
    folder = root / f"converted_{size}"
    folder.mkdir()
    (folder / "viq.json").write_text(json.dumps({"num_heads": layout.heads}))
    states = {
        f"model_viq_fsq_{size}": encoder_state(layout, seed),
        "embedder": embedder_state(layout, seed),
        "index_drawer": drawer_state(layout, seed),
    }
    for stem, state in states.items():
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / f"{stem}.safetensors")


@pytest.fixture(scope="module")
def both(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server of 64k, the default, and 4k."""
    root = tmp_path_factory.mktemp("weights")
    write_weights(root, "64k", 1)
    write_weights(root, "4k", 2)
    with serve(weights_root=str(root), size=("64k", "4k")) as client:
        yield client


def test_models_lists_both_and_the_first_is_the_default(both: httpx.Client) -> None:
    models = both.get("/v1/models").json()["models"]
    assert [(model["size"], model["default"]) for model in models] == [("64k", True), ("4k", False)]
    assert [model["codebook_size"] for model in models] == [64000, 4096]
    assert models[0]["fingerprint"] != models[1]["fingerprint"]
    assert all("untrained" not in model for model in models)


def test_a_request_names_its_size_and_the_reply_that_sizes_fingerprint(
    both: httpx.Client, make_image: MakeImage
) -> None:
    fingerprints = {m["size"]: m["fingerprint"] for m in both.get("/v1/models").json()["models"]}
    for query, size in (("", "64k"), ("?size=64k", "64k"), ("?size=4k", "4k")):
        reply = both.post(f"/v1/encode{query}", content=make_image())
        assert reply.json()["model"]["size"] == size
        assert reply.headers["ViQ-Fingerprint"] == reply.json()["model"]["fingerprint"] == fingerprints[size]
        failed = both.post(f"/v1/encode{query}", content=b"no image")
        assert failed.headers["ViQ-Fingerprint"] == fingerprints[size]


def test_codes_find_the_model_of_their_size(both: httpx.Client, make_image: MakeImage) -> None:
    encoded = both.post("/v1/encode?size=4k", content=make_image())
    for method in ("decode", "embed"):
        reply = both.post(f"/v1/{method}", content=encoded.content, headers=JSON)
        assert reply.status_code == 200
        assert reply.headers["ViQ-Size"] == "4k"
        assert reply.headers["ViQ-Fingerprint"] == encoded.headers["ViQ-Fingerprint"]


def test_codes_of_one_size_are_not_decoded_as_another(both: httpx.Client, make_image: MakeImage) -> None:
    encoded = both.post("/v1/encode?size=4k", content=make_image())
    assert both.post("/v1/decode?size=64k", content=encoded.content, headers=JSON).status_code == 409
    anyway = both.post("/v1/decode?size=64k&any_fingerprint=1", content=encoded.content, headers=JSON)
    assert (anyway.status_code, anyway.json()["error"]["code"]) == (422, "invalid_input")


def test_each_size_is_measured_apart(both: httpx.Client, make_image: MakeImage) -> None:
    both.post("/v1/encode?size=4k", content=make_image())
    text = both.get("/metrics").text
    assert 'viq_images_total{method="encode",size="4k"}' in text
    assert 'size="4k",untrained="false"' in text

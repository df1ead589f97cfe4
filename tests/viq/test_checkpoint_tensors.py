"""The tensors of a weights folder: none missing, unexpected or misshapen, all of them plain floats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.viq.weights_folder import (
    CPU,
    DRAWER,
    EMBEDDER,
    ENCODER,
    SMALL,
    Write,
    every_file,
    every_format,
    load,
    own,
    refusal,
    states,
)
from torch import Tensor

from viq.checkpoint import load_decoder, load_embedder, load_encoder
from viq.errors import WeightsError
from viq.random_weights import State
from viq.tensor_file import TensorFile

# Missing, unexpected and misshapen tensors

NEEDED = {
    ENCODER: "fusion_block.vq_low.fsq_pre_attn.0.attn.qkv.weight",
    EMBEDDER: "projector_2.fc1.weight",
    DRAWER: "vae_head.vae.decoder.up_blocks.1.upsamplers.0.resample.1.weight",
}


@every_file
@every_format
def test_a_missing_tensor_is_named_with_its_file(write: Write, stem: str, suffix: str) -> None:
    message = refusal(write(suffix, stem, {NEEDED[stem]: None}))
    assert f"{stem}{suffix}: missing tensor {NEEDED[stem]}" in message


@every_file
@every_format
def test_an_unexpected_tensor_is_named_with_its_file(write: Write, stem: str, suffix: str) -> None:
    for name in ("surplus.weight", f"{NEEDED[stem]}.twin"):
        message = refusal(write(suffix, stem, {name: torch.zeros(3)}))
        assert f"{stem}{suffix}: unexpected tensor {name}" in message


@every_file
@every_format
def test_a_misshapen_tensor_is_named_with_its_file_and_both_shapes(write: Write, stem: str, suffix: str) -> None:
    good = states()[stem][NEEDED[stem]]
    message = refusal(write(suffix, stem, {NEEDED[stem]: torch.zeros(7, *good.shape[1:])}))
    assert f"{stem}{suffix}: tensor {NEEDED[stem]} has shape {(7, *good.shape[1:])}" in message
    assert f"expected {tuple(good.shape)}" in message


def load_alone(stem: str, state: State) -> None:
    """Load one file's tensors without writing them."""
    file = TensorFile(Path(stem), state)
    if stem == ENCODER:
        load_encoder(file, "16k", SMALL.heads, torch.float32, CPU)
    elif stem == EMBEDDER:
        load_embedder(file, "16k", torch.float32, CPU)
    else:
        load_decoder(file, SMALL.heads, torch.float32, CPU)


@every_file
def test_every_single_tensor_is_missed_by_its_name(stem: str) -> None:
    whole = own(stem)
    load_alone(stem, whole)
    for name in whole:
        with pytest.raises(WeightsError) as caught:
            load_alone(stem, {k: t for k, t in whole.items() if k != name})
        assert f"missing tensor {name}" in str(caught.value)


@every_file
def test_no_single_tensor_may_have_another_shape(stem: str) -> None:
    whole = own(stem)
    for i, (name, tensor) in enumerate(whole.items()):
        wrong = (tensor[None], tensor.reshape(-1)[:0], torch.cat([tensor, tensor]))[i % 3]
        with pytest.raises(WeightsError, match="tensor ") as caught:
            load_alone(stem, {**whole, name: wrong})
        # Of two tensors that disagree about a size either may be the one at fault.
        assert any(other in str(caught.value) for other in whole)


@pytest.mark.parametrize("shape", [(16, 16, 1, 3, 3), (16, 16, 0, 3, 3), (16, 16, 5, 3, 3), (16, 16, 3, 3)])
def test_a_video_kernel_of_another_length_is_refused_though_one_slice_of_it_would_fit(shape: tuple[int, ...]) -> None:
    name = "vae_head.vae.decoder.conv_in.weight"
    with pytest.raises(WeightsError, match=r"conv_in\.weight has shape") as caught:
        load_alone(DRAWER, {**states()[DRAWER], name: torch.zeros(shape)})
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("shape", [(32, 12, 8, 8), (32, 3, 14, 14), (32, 768), (0, 3, 16, 16)])
def test_a_patch_kernel_that_only_has_the_right_number_of_elements_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(WeightsError, match=r"patch_embed\.proj\.weight has shape"):
        load_alone(ENCODER, {**states()[ENCODER], "patch_embed.proj.weight": torch.zeros(shape)})


@pytest.mark.parametrize(
    ("stem", "prefix", "name"),
    [
        (EMBEDDER, "projector_3.3.", "projector_3.3.norm.weight"),
        (DRAWER, "vae_preprocess_layers.4.", "vae_preprocess_layers.4.norm1.weight"),
        (ENCODER, "fusion_block.vq_low.fsq_pre_attn.", "fusion_block.vq_low.fsq_pre_attn.0.norm1.weight"),
        (ENCODER, "blocks.", "blocks.0.norm1.weight"),
        (ENCODER, "blocks.0.", "blocks.0.norm1.weight"),
    ],
)
def test_a_whole_block_that_is_missing_is_missed(stem: str, prefix: str, name: str) -> None:
    state = {k: t for k, t in states()[stem].items() if not k.startswith(prefix)}
    with pytest.raises(WeightsError, match=f"missing tensor {name}"):
        load_alone(stem, state)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        (DRAWER, "vae_head.vae.decoder.post_quant_conv.weight"),
        (DRAWER, "vae_head.vae.decoder.up_blocks.0.upsample.weight"),
        (EMBEDDER, "vae_head.conv_out.bias"),
    ],
)
def test_a_second_name_for_a_tensor_of_the_network_is_unexpected(stem: str, name: str) -> None:
    with pytest.raises(WeightsError, match=f"unexpected tensor {name}"):
        load_alone(stem, {**states()[stem], name: torch.zeros(16)})


@every_format
def test_tensors_that_only_training_needs_are_passed_over(write: Write, suffix: str) -> None:
    plain = load(write(suffix)).family
    unneeded = {
        ENCODER: (
            "norm.weight",
            "attn_pool.latent",
            "fusion_block.vq_low.project_out.weight",
            "fusion_block.vq_low_norm_trick_post_quantize_affine_bias",
            "vae_head.vae.encoder.conv_in.weight",
        ),
        DRAWER: (
            "vae_head.vae.encoder.conv_in.weight",
            "vae_head.vae.quant_conv.bias",
            "vae_head.vae.decoder.up_blocks.0.upsamplers.0.time_conv.weight",
        ),
    }
    for stem, names in unneeded.items():
        assert load(write(suffix, stem, {name: torch.ones(5) for name in names})).family == plain


# Entries that are no plain float tensors


@pytest.mark.parametrize("entry", [3, 1.5, "text", None, [torch.zeros(2)], {"a": torch.zeros(2)}, torch.float32])
@every_file
def test_an_entry_that_is_no_tensor_is_named(write: Write, stem: str, entry: object) -> None:
    folder = write()
    torch.save({**states()[stem], "epoch": entry}, folder / f"{stem}.pth")
    message = refusal(folder)
    assert f"{stem}.pth" in message
    assert "epoch" in message


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], 5, "text", None, {3: torch.zeros(3)}, {}])
def test_a_file_that_is_no_dictionary_of_named_tensors_is_refused(write: Write, content: object) -> None:
    folder = write()
    torch.save(content, folder / "embedder.pth")
    assert "embedder.pth" in refusal(folder)


def odd_tensors() -> dict[str, Tensor]:
    return {
        "int64": torch.zeros(32, dtype=torch.int64),
        "uint8": torch.zeros(32, dtype=torch.uint8),
        "bool": torch.zeros(32, dtype=torch.bool),
        "complex64": torch.zeros(32, dtype=torch.complex64),
        "float8": torch.zeros(32).to(torch.float8_e4m3fn),
        "sparse": torch.eye(32)[0].to_sparse(),
        "meta": torch.zeros(32, device="meta"),
        "expanded": torch.zeros(1).expand(32),
    }


@every_file
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # torch 2.11, of any sparse tensor in a file
@pytest.mark.parametrize("kind", odd_tensors())
def test_a_tensor_that_is_not_plain_floats_is_named(write: Write, stem: str, kind: str) -> None:
    name = {ENCODER: "patch_embed.proj.bias", EMBEDDER: "_bias", DRAWER: "vae_preprocess_layers.1.bias"}[stem]
    message = refusal(write(".pth", stem, {name: odd_tensors()[kind]}))
    assert f"{stem}.pth: tensor {name}" in message


@pytest.mark.filterwarnings("ignore:.*quantize.*:UserWarning", "ignore:.*deprecated.*:Warning")
def test_a_quantised_tensor_is_named(write: Write) -> None:
    quantised = torch.quantize_per_tensor(torch.zeros(32), 0.1, 0, torch.qint8)
    message = refusal(write(".pth", EMBEDDER, {"_bias": quantised}))
    assert "embedder.pth" in message


@every_file
@pytest.mark.parametrize("kind", ["int64", "uint8", "bool", "complex64", "float8"])
def test_a_safetensors_tensor_that_is_not_plain_floats_is_named(write: Write, stem: str, kind: str) -> None:
    name = {ENCODER: "patch_embed.proj.bias", EMBEDDER: "_bias", DRAWER: "vae_preprocess_layers.1.bias"}[stem]
    message = refusal(write(".safetensors", stem, {name: odd_tensors()[kind]}))
    assert f"{stem}.safetensors: tensor {name}" in message


def test_a_few_bytes_that_claim_terabytes_are_refused_unread(write: Write) -> None:
    folder = write()
    torch.save({"blocks.0.norm1.weight": torch.zeros(1).expand(2**40)}, folder / f"{ENCODER}.pth")
    assert (folder / f"{ENCODER}.pth").stat().st_size < 10_000
    assert "blocks.0.norm1.weight" in refusal(folder)


def test_parameters_and_transposed_tensors_load_as_their_values(write: Write) -> None:
    folder = write()
    state = states()[EMBEDDER]
    as_saved = {
        "projector_2.fc1.weight": torch.nn.Parameter(state["projector_2.fc1.weight"]),
        "projector_2.fc2.weight": state["projector_2.fc2.weight"].t().contiguous().t(),
    }
    torch.save({**state, **as_saved}, folder / "embedder.pth")
    merge = load(folder, "embedder").embedder.merge
    assert torch.equal(merge.fc1.weight, state["projector_2.fc1.weight"])
    assert torch.equal(merge.fc2.weight, state["projector_2.fc2.weight"])
    assert not merge.fc1.weight.requires_grad

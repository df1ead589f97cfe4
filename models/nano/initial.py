"""Values to begin with: the network starts as a linear autoencoder of cosine coefficients, at 15 to 18 dB.

From random values the first hours of training go into finding one. Every part of it is a plain setting of the
released architecture's own weights:

- an MLP is linear when its hidden units come in pairs of opposite sign, as gelu(x) - gelu(-x) = x, and SiLU likewise;
- a normalised vector forgets its length, and with it a patch's contrast, but not next to large constants;
- nearest-neighbour upsampling followed by [1, 2, 1] is interpolation.

Symbols: `C` width, `D` = 24 coefficients a patch (6 in each of 4 codes).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nano.cosines import COEFFICIENTS, block_coefficients, frequency_rows
from nano.crops import Batch
from nano.network import Network, quantised
from viq.config import CODES_PER_PATCH
from viq.head import HeadwiseBlock
from viq.layers import Block, Mlp, ResidualMlp
from viq.vae import LATENT_CHANNELS, ChannelNorm, MidAttention, ResBlock, VaeDecoder

_BRANCH = 0.1  # gain of what residual branches add at first
_CONSTANT = 3.0  # of the channels that carry scale past normalisation
_PER_CODE = COEFFICIENTS // CODES_PER_PATCH
_PHASES = 2  # latent channels that tell a cell's row and column parity


@torch.no_grad()
def initialise(network: Network, sample: Batch, seed: int = 0) -> None:
    """Fill every trained parameter; `sample` shows what pictures look like. Equal arguments give equal values."""
    draw = torch.Generator().manual_seed(seed)
    _at_random(network, draw)
    _encoder(network, draw)
    _calibrate(network, sample)
    _embedder(network, draw)
    _latents(network, sample)
    _vae(network.decoder.vae, draw)
    _read_out(network, sample)


def _at_random(network: Network, draw: torch.Generator) -> None:
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.weight.normal_(0, module.weight[0].numel() ** -0.5, generator=draw)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            module.weight.fill_(1)
            module.bias.zero_()
        elif isinstance(module, ChannelNorm):
            module.gamma.fill_(1)
    for module in network.modules():
        if isinstance(module, (Block, HeadwiseBlock)):
            module.attn.proj.weight.mul_(_BRANCH)
            module.mlp.fc2.weight.mul_(_BRANCH)
        elif isinstance(module, ResidualMlp):
            module.mlp.fc2.weight.mul_(_BRANCH)
        elif isinstance(module, (ResBlock, MidAttention)):
            (module.conv2 if isinstance(module, ResBlock) else module.proj).weight.mul_(_BRANCH)
    network.embedder.scale.fill_(1)
    network.embedder.shift.zero_()


def _encoder(network: Network, draw: torch.Generator) -> None:
    """Each code's 6 values are cosine coefficients of the patch, the lowest frequencies of all 24."""
    encoder = network.encoder
    width = encoder.pos_embed.shape[-1]
    carried = width * 3 // 4
    encoder.patch_embed.weight.zero_()
    encoder.patch_embed.weight[:carried] = frequency_rows(carried)
    constants = torch.zeros(width)
    constants[carried::2], constants[carried + 1 :: 2] = _CONSTANT, -_CONSTANT
    encoder.pos_embed.normal_(0, 0.02, generator=draw).add_(constants)
    # Token s has its own coefficients first and some of all the others behind them.
    routed = torch.zeros(CODES_PER_PATCH, width, width)
    for token in range(CODES_PER_PATCH):
        own = list(range(token * _PER_CODE, (token + 1) * _PER_CODE))
        others = [i for i in range(carried) if i not in own]
        for channel, source in enumerate([*own, *others][: width // 2]):
            routed[token, channel, source] = 1
    _linear_mlp(encoder.expand, routed.view(-1, width), draw)
    _linear_mlp(encoder.mix, torch.eye(width), draw)
    encoder.project_in.weight.mul_(0.02)
    encoder.project_in.weight[:, :_PER_CODE] += torch.eye(_PER_CODE)


def _calibrate(network: Network, sample: Batch) -> None:
    """Give each dimension's values mean 0 and a spread that uses its levels."""
    encoder = network.encoder
    z = encoder.project(sample.patches, sample.packing)
    deviation = z.std(0)
    encoder.project_in.weight.mul_((0.6 / deviation)[:, None])
    encoder.project_in.bias.copy_(-z.mean(0) * 0.6 / deviation)


def _embedder(network: Network, draw: torch.Generator) -> None:
    """The 24 values to as many features, then in pairs of opposite sign beside constants to the decoder's norms."""
    embedder, decoder = network.embedder, network.decoder
    width = embedder.scale.shape[0]
    embedder.lift.weight.mul_(0.3)
    embedder.lift.weight[:_PER_CODE] = torch.eye(_PER_CODE)
    gather = torch.zeros(width, CODES_PER_PATCH * width)
    for i in range(COEFFICIENTS):
        gather[i, i // _PER_CODE * width + i % _PER_CODE] = 1
    _linear_mlp(embedder.merge, gather, draw)
    _linear_mlp(embedder.refine, torch.eye(width), draw)
    pairs = torch.zeros(width, width)
    for i in range(width // 4):  # a group of the decoder's norm: a, -a, constant, -constant
        pairs[4 * i, i % COEFFICIENTS] = 1
        pairs[4 * i + 1, i % COEFFICIENTS] = -1
        decoder.mlp.fc2.bias[4 * i + 2], decoder.mlp.fc2.bias[4 * i + 3] = 1.5, -1.5
    bias = decoder.mlp.fc2.bias.clone()
    _linear_mlp(decoder.mlp, pairs, draw)
    decoder.mlp.fc2.bias.copy_(bias)


def _latents(network: Network, sample: Batch) -> None:
    """Fit the latent to the cosine coefficients of 8x8 blocks; two channels tell the cells of a patch apart."""
    head = network.decoder.latent_head
    seen: list[Tensor] = []
    hook = head.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    values = quantised(network.encoder.project(sample.patches, sample.packing))
    network.decoder.latents(network.embedder.project(values), sample.packing)
    hook.remove()
    rows = torch.cat([x[0].flatten(1).T for x in seen])
    wanted = block_coefficients(sample.patches[: sample.packing.patches], LATENT_CHANNELS - _PHASES)
    weight, bias = _fitted(rows, wanted.flatten(1))
    channels = 4 * (LATENT_CHANNELS - _PHASES)
    centre = head.conv.weight[:, :, 1, 1]
    head.conv.weight.mul_(0.1)
    centre[:channels], centre[channels:] = weight, 0
    parity = torch.tensor([-1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0, 1.0])
    _bias(head.conv).copy_(torch.cat([bias, parity]))


def _vae(vae: VaeDecoder, draw: torch.Generator) -> None:
    """The latent's channels are carried through, interpolated at every doubling."""
    _keep(vae.post_quant_conv, torch.eye(LATENT_CHANNELS))
    top = vae.conv_in.weight.shape[0]
    spread = torch.zeros(top, LATENT_CHANNELS)
    # Pairs of opposite sign first, as the last norm's SiLU wants them: brightness, two colours, a constant.
    for pair, channel in enumerate((0, 1, 2)):
        spread[2 * pair, channel], spread[2 * pair + 1, channel] = 1, -1
    for row in range(8, min(top, 8 + 2 * LATENT_CHANNELS)):
        spread[row, (row - 5) % LATENT_CHANNELS] = 1 if row < 8 + LATENT_CHANNELS else -1
    _keep(vae.conv_in, spread)
    _bias(vae.conv_in)[6:8] = torch.tensor([2.0, -2.0])
    for name, layer in vae.up_blocks.named_modules():
        if isinstance(layer, nn.Conv2d) and name.endswith(("conv_shortcut", "upsample")):
            _keep(layer, torch.eye(*layer.weight.shape[:2]), interpolate=name.endswith("upsample"))


def _read_out(network: Network, sample: Batch) -> None:
    """Fit the last convolution to the pixels."""
    vae, seen, wanted = network.decoder.vae, [], []
    hook = vae.conv_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    latents = network.decoder.latents(
        network.embedder.project(quantised(network.encoder.project(sample.patches, sample.packing))), sample.packing
    )
    for latent, target in list(zip(latents, sample.targets, strict=True))[:12]:
        vae.unclamped(latent[None])
        height, width = target.shape[1:]
        patches = F.unfold(seen.pop(), 3, padding=1).view(-1, 16 * (latent.shape[1] // 2), 16 * (latent.shape[2] // 2))
        wanted.append((patches[:, :height, :width].flatten(1).T, target.flatten(1).T))
    hook.remove()
    weight, bias = _fitted(torch.cat([x for x, _ in wanted]), torch.cat([y for _, y in wanted]))
    vae.conv_out.weight.copy_(weight.view_as(vae.conv_out.weight))
    _bias(vae.conv_out).copy_(bias)


def _fitted(rows: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Weight `(out, in)` and bias of the least-squares map from `(n, in)` to `(n, out)`, slightly regularised."""
    x, y = rows.double(), wanted.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    centred = x - mean_x
    gram = centred.T @ centred
    gram += 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, centred.T @ (y - mean_y)).T
    return weight.float(), (mean_y - weight @ mean_x).float()


def _linear_mlp(mlp: Mlp, wanted: Tensor, draw: torch.Generator) -> None:
    """Make an MLP compute `wanted` `(out, in)`, its first rows or columns if it is too narrow for all."""
    hidden, inner = mlp.fc1.weight.shape
    half = hidden // 2
    rows = torch.eye(half, inner) if half < inner else torch.cat([torch.eye(inner), torch.zeros(half - inner, inner)])
    used = wanted.abs().sum(0).nonzero().flatten()
    if len(used) <= half < inner:  # the columns that matter, wherever they are
        rows = torch.zeros(half, inner)
        rows[torch.arange(len(used)), used] = 1
    noise = torch.empty_like(rows).normal_(0, inner**-0.5, generator=draw)
    rows = torch.where(rows.abs().sum(1, keepdim=True) > 0, rows, noise)
    kept = torch.zeros(wanted.shape[0], half)
    for unit in range(half):
        source = rows[unit].nonzero().flatten()
        if len(source) == 1:
            kept[:, unit] = wanted[:, int(source)]
    small = torch.empty_like(kept).normal_(0, 0.02, generator=draw)
    mlp.fc1.weight.copy_(torch.cat([rows, -rows]))
    mlp.fc2.weight.copy_(torch.cat([kept + small, -kept - small], dim=1))
    mlp.fc1.bias.zero_()
    mlp.fc2.bias.zero_()


def _keep(layer: nn.Conv2d, wanted: Tensor, interpolate: bool = False) -> None:
    """Make a convolution compute `wanted` `(out, in)` at each pixel, or of its neighbourhood's [1, 2, 1] mean."""
    side = layer.weight.shape[2]
    kernel = torch.zeros(side, side)
    kernel[side // 2, side // 2] = 1
    if interpolate:
        line = torch.tensor([0.25, 0.5, 0.25])
        kernel = torch.outer(line, line)
    layer.weight.mul_(0.1).add_(wanted[:, :, None, None] * kernel)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None  # noqa: S101 - these layers are made with one
    return layer.bias

"""The FastConformer module computes what reference/encoder.py specifies, whatever else is in the batch."""

import itertools

import pytest
import torch

from rnnt_fastdecode import ArgumentError, FastConformer, FastConformerConfig
from rnnt_fastdecode.reference.encoder import encode

CONTEXTS = [
    ("regular", (-1, -1)),
    ("regular", (5, 2)),
    ("regular", (4, 0)),
    ("regular", (-1, 1)),
    ("chunked_limited", (8, 3)),
    ("chunked_limited", (4, 0)),
    ("chunked_limited", (-1, 2)),
    ("chunked_limited", (6, -1)),
]
LENGTHS = (131, 77, 8, 1, 0)


def make_encoder(seed=0, **settings):
    config = FastConformerConfig(
        **{
            "feat_in": 20,
            "d_model": 24,
            "num_layers": 2,
            "num_heads": 3,
            "d_ff": 40,
            "conv_kernel": 5,
            "subsampling_channels": 6,
            **settings,
        }
    )
    encoder = FastConformer(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*encoder.named_parameters(), *encoder.named_buffers()]:
        if name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            is_scale = "norm" in name and name.endswith("weight")
            fan_in = value[0].numel() / 4 if value.ndim > 1 else 16
            value.copy_(1.0 + 0.2 * noise if is_scale else noise * fan_in**-0.5)
    return encoder


def make_batch(seed=0, bins=20, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(lengths), max(lengths), bins, generator=generator)
    return features, torch.tensor(lengths)


def by_reference(encoder, features, context):
    config = encoder.config
    return encode(
        {key: value.double() for key, value in encoder.state_dict().items()},
        features.double(),
        num_heads=config.num_heads,
        causal_subsampling=config.causal_subsampling,
        causal_conv=config.causal_conv,
        xscaling=config.xscaling,
        context_style=config.context_style,
        context=context,
    )


def assert_equals_reference(encoder, context):
    features, lengths = make_batch()
    encoded, out_lengths = encoder(features, lengths, context)
    assert torch.isfinite(encoded).all()
    for row, length in enumerate(lengths.tolist()):
        expected = by_reference(encoder, features[row, :length], context)
        assert out_lengths[row] == len(expected)
        actual = encoded[row, : len(expected)].double()
        torch.testing.assert_close(actual, expected, rtol=0.0, atol=2e-5)


@pytest.mark.parametrize(("style", "context"), CONTEXTS)
def test_every_context_equals_the_reference(style, context):
    assert_equals_reference(make_encoder(context_style=style, contexts=(context,)), context)


@pytest.mark.parametrize(
    ("causal", "norm", "xscaling", "bias"),
    list(itertools.product([False, True], ["batch_norm", "layer_norm"], [False, True], [False, True])),
)
def test_every_architecture_equals_the_reference(causal, norm, xscaling, bias):
    encoder = make_encoder(
        causal_subsampling=causal, causal_conv=causal, conv_norm=norm, xscaling=xscaling, use_bias=bias
    )
    assert_equals_reference(encoder, (-1, -1))


@pytest.mark.parametrize(("subsampling", "conv"), [(True, False), (False, True)])
def test_causal_subsampling_and_causal_convolution_are_independent(subsampling, conv):
    encoder = make_encoder(
        causal_subsampling=subsampling,
        causal_conv=conv,
        conv_norm="layer_norm",
        context_style="chunked_limited",
        contexts=((4, 1),),
    )
    assert_equals_reference(encoder, (4, 1))


@pytest.mark.parametrize("garbage", [1e4, float("inf"), float("nan")])
@pytest.mark.parametrize("causal", [False, True])
def test_padding_never_changes_valid_output(causal, garbage):
    encoder = make_encoder(causal_subsampling=causal, causal_conv=causal)
    features, lengths = make_batch()
    clean, _ = encoder(features, lengths)
    for row, length in enumerate(lengths.tolist()):
        features[row, length:] = garbage
    longer = torch.cat((features, torch.full((len(features), 40, features.shape[2]), garbage)), dim=1)
    for batch in (features, longer):
        encoded, out_lengths = encoder(batch, lengths)
        for row, length in enumerate(out_lengths.tolist()):
            torch.testing.assert_close(encoded[row, :length], clean[row, :length], rtol=0.0, atol=1e-5)


def test_a_row_alone_equals_the_row_in_a_batch():
    encoder = make_encoder(context_style="chunked_limited", contexts=((8, 3),), conv_norm="layer_norm")
    features, lengths = make_batch()
    together, out_lengths = encoder(features, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, frames = encoder(features[row : row + 1, :length], lengths[row : row + 1])
        assert frames.item() == out_lengths[row]
        torch.testing.assert_close(
            alone[0, : frames.item()], together[row, : frames.item()], rtol=0.0, atol=1e-5
        )


@pytest.mark.parametrize("causal", [False, True])
def test_lengths_are_those_of_the_strided_convolutions(causal):
    encoder = make_encoder(causal_subsampling=causal, num_layers=0)
    lengths = list(range(40))
    features, lengths = make_batch(lengths=lengths)
    _, out_lengths = encoder(features, lengths)
    for row, length in enumerate(lengths.tolist()):
        assert out_lengths[row] == len(by_reference(encoder, features[row, :length], (-1, -1)))


def test_causal_encoder_ignores_the_future_beyond_its_chunk():
    encoder = make_encoder(
        causal_subsampling=True,
        causal_conv=True,
        conv_norm="layer_norm",
        context_style="chunked_limited",
        contexts=((8, 3),),
    )
    features, lengths = make_batch(lengths=(120,))
    before, _ = encoder(features, lengths)
    # Encoder frame 8 begins with feature frame 8 * 8 - 7: two chunks of four frames lie entirely before it.
    features[:, 57:] += 1.0
    after, _ = encoder(features, lengths)
    torch.testing.assert_close(after[:, :8], before[:, :8], rtol=0.0, atol=1e-6)
    assert (after[:, 8] - before[:, 8]).abs().max() > 0.1


def test_every_context_differs_from_full_attention():
    features, lengths = make_batch()
    for style, context in CONTEXTS[1:]:
        encoder = make_encoder(context_style=style, contexts=(context, (-1, -1)))
        limited, _ = encoder(features, lengths)
        full, _ = encoder(features, lengths, (-1, -1))
        assert (limited[0, :16] - full[0, :16]).abs().max() > 0.1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.03)])
def test_half_precision_stays_near_the_reference(dtype, tolerance):
    encoder = make_encoder().to(dtype)
    features, lengths = make_batch()
    encoded, _ = encoder(features.to(dtype), lengths)
    assert encoded.dtype == dtype
    expected = by_reference(encoder, features[0].to(dtype), (-1, -1))
    assert (encoded[0, : len(expected)].double() - expected).abs().max() < tolerance


def test_wrong_arguments_are_named():
    encoder = make_encoder()
    features, lengths = make_batch()
    with pytest.raises(ArgumentError, match=r"features must be \[B, T, 20\]"):
        encoder(features[:, :, :19], lengths)
    with pytest.raises(ArgumentError, match=r"lengths must be \[5\] int64"):
        encoder(features, lengths.int())
    with pytest.raises(ArgumentError, match="left context must be a multiple"):
        make_encoder(context_style="chunked_limited", contexts=((70, 5),))

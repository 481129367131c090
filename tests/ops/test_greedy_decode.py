"""greedy_decode, a decoder's whole call as one op, against the reference's loop; and pack_network."""

from dataclasses import replace
from functools import cached_property

import pytest
import torch
from op_cases import DEVICES, op_weights, zero_state
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from rnnt_fastdecode import ArgumentError, ops
from rnnt_fastdecode.reference.decode import greedy_decode
from rnnt_fastdecode.reference.planted import plant
from rnnt_fastdecode.transducer.weights import PredictorWeights

TDT = (0, 1, 2, 4)
KINDS = ("lstm", "stateless", "stateless_relu")
# The resident kernel has no GRU.
CASES = [
    *((kind, durations, "cpu") for kind in (*KINDS, "gru") for durations in ((), TDT)),
    *(
        pytest.param(kind, durations, "cuda", marks=pytest.mark.gpu)
        for kind in KINDS
        for durations in ((), TDT)
    ),
]


class Decoding:
    """greedy_decode with a planted network: the parts of it, and the start of an utterance."""

    def __init__(self, kind="lstm", durations=(), device="cpu", max_symbols=5, activation="relu", **sizes):
        self.planted = plant(predictor_kind=kind, durations=durations, joint_width=64, seed=2, **sizes)
        net = self.net = replace(self.planted.transducer, activation=activation)
        self.kind, self.device, self.max_symbols = kind, device, max_symbols
        weights = op_weights(net.predictor_weights, kind, torch.float32, device)
        carried = zero_state(weights, kind, 1, net.blank_id, torch.float32, device)
        output = torch.zeros(1, 64, device=device)
        first = torch.full((1,), net.blank_id, dtype=torch.int32, device=device)
        ops.predictor_step_(kind, weights, first, carried, output)
        kept = carried[: {"lstm": 2, "gru": 1}.get(kind, 1)]
        counters = (torch.zeros(1, dtype=dtype, device=device) for dtype in (torch.int32, torch.int64))
        self.start = [*kept, output, *counters]
        self.parts = [
            net.encoder_weight.to(device),
            net.encoder_bias.to(device),
            net.weight.to(device),
            net.bias.to(device),
            net.activation,
            net.blank_id,
            list(net.durations),
            max_symbols,
            kind,
            weights,
            PredictorWeights(kind, weights).gate_table if kind == "lstm" else None,
            self.start,
        ]

    @cached_property
    def network(self):
        return ops.pack_network(*self.parts)

    def arguments(self, encoder, lengths, state=(), window=4, host_records=0):
        tensors = encoder.to(self.device), lengths.to(self.device), list(state)
        return [*tensors, window, self.network, host_records]

    def __call__(self, *arguments, **options):
        return ops.greedy_decode(*self.arguments(*arguments, **options))

    def reference(self, encoder, lengths):
        decoded = [
            greedy_decode(self.net, row, int(length), self.max_symbols)
            for row, length in zip(encoder, lengths, strict=True)
        ]
        return [list(zip(d.tokens, d.frames, d.durations, strict=True)) for d in decoded]


def rows_of(labels, batch):
    """Token, frame and duration of every label, row by row."""
    rows = labels[:batch, :2].tolist()
    records = labels[batch:, :3].tolist()
    return [[tuple(record) for record in records[begin : begin + count]] for begin, count in rows]


def ragged(decoding, batch, frames, seed=0):
    lengths = torch.randint(0, frames + 1, (batch,), generator=torch.Generator().manual_seed(seed))
    lengths[0] = frames
    return decoding.planted.encoder(batch, frames, seed=seed), lengths


@pytest.mark.parametrize(("kind", "durations", "device"), CASES)
@pytest.mark.parametrize("batch", [1, 7, 40])
def test_decodes_what_the_reference_decodes(kind, durations, device, batch):
    decoding = Decoding(kind, durations, device)
    encoder, lengths = ragged(decoding, batch, 20, seed=batch)
    labels, _, state = decoding(encoder, lengths)
    assert labels.shape == (batch + batch * 20 * 5, 4) and labels.dtype == torch.int32
    assert rows_of(labels, batch) == decoding.reference(encoder, lengths)
    assert labels[:batch, 3].tolist() == lengths.tolist()
    assert state[-1].tolist() == lengths.tolist()
    for ours, given in zip(state, decoding.start, strict=True):
        assert ours.dtype == given.dtype and ours.numel() == given.numel() * batch


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_knows_every_activation(activation, device):
    decoding = Decoding(device=device, activation=activation)
    encoder, lengths = ragged(decoding, 5, 20)
    labels, *_ = decoding(encoder, lengths)
    assert rows_of(labels, 5) == decoding.reference(encoder, lengths)
    assert rows_of(labels, 5) != Decoding(device=device).reference(encoder, lengths)


@pytest.mark.parametrize(("kind", "durations", "device"), CASES)
def test_chunks_with_carried_state_give_what_one_pass_gives(kind, durations, device):
    decoding = Decoding(kind, durations, device)
    encoder, lengths = ragged(decoding, 5, 23, seed=3)
    found, state = [[] for _ in range(5)], ()
    for begin in range(0, 23, 6):
        part = encoder[:, begin : begin + 6].contiguous()
        labels, _, state = decoding(part, (lengths - begin).clamp(0, part.shape[1]), state)
        for row, labels_of_row in zip(found, rows_of(labels, 5), strict=True):
            row.extend(labels_of_row)
    assert found == decoding.reference(encoder, lengths)


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_that_is_given_is_modified(device):
    decoding = Decoding(device=device, durations=TDT)
    encoder, lengths = ragged(decoding, 3, 9)
    _, _, state = decoding(encoder, lengths)
    arguments = decoding.arguments(encoder, lengths, state)
    tensors = [*arguments[:2], *state, decoding.network.block]
    before = [tensor.clone() for tensor in tensors]
    _, _, after = ops.greedy_decode(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    assert not {t.data_ptr() for t in after} & {t.data_ptr() for t in tensors}


@pytest.mark.parametrize("device", DEVICES)
def test_lengths_are_limited_and_told_as_given(device):
    decoding = Decoding(device=device)
    encoder, _ = ragged(decoding, 3, 9)
    for dtype in (torch.int32, torch.int64):
        labels, _, state = decoding(encoder, torch.tensor([-4, 9, 1000], dtype=dtype))
        assert labels[:3, 3].tolist() == [-4, 9, 1000] and state[-1].tolist() == [0, 9, 9]
        assert rows_of(labels, 3) == decoding.reference(encoder, [0, 9, 9])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("records", [3, 10, 3 + 3 * 9 * 5])
def test_the_host_gets_as_many_records_as_it_wants(records, device):
    decoding = Decoding(device=device)
    encoder, lengths = ragged(decoding, 3, 9)
    labels, host_labels, _ = decoding(encoder, lengths, host_records=records)
    if device == "cuda":
        torch.cuda.synchronize()
        assert host_labels.is_pinned()
    assert host_labels.shape == (records, 4) and host_labels.is_cpu
    used = min(records, 3 + int(labels[:3, 1].sum()))
    assert used > 3 or records == 3
    assert torch.equal(host_labels[:used], labels[:used].cpu())


@pytest.mark.parametrize("device", DEVICES)
def test_without_a_wish_the_host_gets_nothing(device):
    decoding = Decoding(device=device)
    _, host_labels, _ = decoding(*ragged(decoding, 3, 9))
    assert host_labels.shape == (0, 4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("records", [-1, 2, 4 + 3 * 9 * 5])
def test_the_host_cannot_get_what_there_is_not(records, device):
    decoding = Decoding(device=device)
    with pytest.raises(ArgumentError, match=rf"host_records must be 0 or between 3 and 138, got {records}"):
        decoding(*ragged(decoding, 3, 9), host_records=records)


@pytest.mark.gpu
def test_memory_of_the_host_stays_until_it_has_been_written():
    """Dropped unread before the kernel has run, it must not be given to another."""
    decoding = Decoding(device="cuda")
    encoder, lengths = (tensor.cuda() for tensor in ragged(decoding, 3, 9))
    decoding(encoder, lengths, host_records=3)
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)
    place = decoding(encoder, lengths, host_records=3)[1].data_ptr()
    others = [torch.full((3, 4), 77, dtype=torch.int32, pin_memory=True) for _ in range(8)]
    assert place not in [other.data_ptr() for other in others]
    torch.cuda.synchronize()
    assert all((other == 77).all() for other in others)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(3, 0), (0, 5), (0, 0)])
def test_without_rows_or_frames_the_state_stays(device, shape):
    decoding = Decoding(device=device)
    batch, frames = shape
    given = [t if t.shape[0] != 1 else t.expand(batch, *t.shape[1:]).contiguous() for t in decoding.start]
    given[:2] = [t.expand(-1, batch, -1).contiguous() for t in decoding.start[:2]]
    width = decoding.net.encoder_weight.shape[1]
    lengths = torch.zeros(batch, dtype=torch.int64)
    labels, _, state = decoding(torch.zeros(batch, frames, width), lengths, given)
    assert labels.shape == (batch, 4) and labels.eq(0).all()
    assert all(torch.equal(a, b) for a, b in zip(state, given, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_the_projection_may_have_no_bias(device):
    decoding, without_bias = Decoding(device=device), Decoding(device=device)
    encoder, lengths = ragged(decoding, 3, 12)
    decoding.parts[1] = torch.zeros_like(decoding.parts[1])
    without_bias.parts[1] = None
    with_zeros, *_ = decoding(encoder, lengths, window=3)
    without, *_ = without_bias(encoder, lengths, window=3)
    assert rows_of(with_zeros, 3) == rows_of(without, 3)
    assert with_zeros[:3, 1].sum() > 0


@pytest.mark.parametrize(("kind", "durations", "device"), CASES)
def test_no_state_is_the_start_of_an_utterance(kind, durations, device):
    decoding = Decoding(kind, durations, device)
    encoder, lengths = ragged(decoding, 4, 15)
    labels, _, state = decoding(encoder, lengths)
    same_labels, _, same_state = decoding(encoder, lengths, decoding.start)
    assert rows_of(labels, 4) == rows_of(same_labels, 4)
    assert all(torch.equal(a, b) for a, b in zip(state, same_state, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[0], r"encoder_output must have 3 dimensions \[B, T, D\]"),
        (0, lambda t: t.double(), "encoder_output must be float32, bfloat16 or float16"),
        (0, lambda t: t.half(), "encoder_output must be float32, got float16"),
        (0, lambda t: t[:, ::2], "encoder_output must be contiguous"),
        (0, lambda t: t[..., 1:].contiguous(), r"encoder_output must have shape \[3, 6, 64\]"),
        (1, lambda t: t[:2], r"lengths must have shape \[3\], got \[2\]"),
        (1, lambda t: t.float(), "lengths must be int32 or int64"),
        (2, lambda s: s[1:], "state must hold 5 tensors for this predictor, or none, got 4"),
        (2, lambda s: [s[0].repeat(1, 2, 1), *s[1:]], r"state\[0\] must have shape \[\d, 3, 64\]"),
        (2, lambda s: [*s[:3], s[3].long(), s[4]], r"state\[3\] must be int32, got int64"),
        (3, lambda w: 0, "window must be at least 1"),
        (4, lambda n: n._replace(block=n.block[256:]), r"network must have shape \[\d+\], got"),
        (4, lambda n: n._replace(block=n.block.float()), "network must be"),
        (4, lambda n: n._replace(numbers=n.numbers[:11]), "numbers must hold at least 12 numbers"),
        (4, lambda n: changed(n, 0, 3), r"numbers\[0\] must be between 0 and 2, got 3"),
        (4, lambda n: changed(n, 7, 0), r"numbers\[7\] must be between 1 and"),
        (4, lambda n: changed(n, 6, 2**31 - 1), "the network must fit into memory|network must have shape"),
        (4, lambda n: changed(n, 10, -1), "blank_id must be between 0 and"),
        (4, lambda n: changed(n, 11, 0), "max_symbols must be at least 1"),
        (4, lambda n: changed(n, 11, 2**31), "max_symbols must be at most 357913941 for 6 frames"),
    ],
)
def test_arguments_are_named(index, change, message, device):
    decoding = Decoding(device=device)
    arguments = decoding.arguments(*ragged(decoding, 3, 6), decoding.start)
    arguments[index] = change(arguments[index])
    with pytest.raises(ArgumentError, match=f"greedy_decode: ({message})"):
        ops.greedy_decode(*arguments)


def changed(network, place, number):
    numbers = list(network.numbers)
    numbers[place] = number
    return network._replace(numbers=numbers)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t.half(), "weight must be float16, got float32|predictor_weights.* must be float16"),
        (0, lambda t: t[0], r"encoder_weight must have 2 dimensions \[J, D\]"),
        (1, lambda t: t[:3], r"encoder_bias must have shape \[64\], got \[3\]"),
        (2, lambda t: t[:3], r"weight must have at least \d+ rows"),
        (3, lambda t: t[:3], r"bias must have shape \[\d+\], got \[3\]"),
        (4, lambda a: "gelu", "activation must be one of"),
        (6, lambda d: [1], "durations must be 0 numbers of frames, got 1"),
        (8, lambda k: "rnn", "predictor_kind must be"),
        (9, lambda w: w[:4], "predictor_weights must hold 5 tensors"),
        (10, lambda t: None, "gate_table must be given for predictor_kind 'lstm'"),
        (10, lambda t: t[:3], "gate_table must have shape"),
        (11, lambda s: s[1:], "start must hold 5 tensors for predictor_kind 'lstm', got 4"),
        (11, lambda s: [s[0].repeat(1, 2, 1), *s[1:]], r"start\[0\] must have shape \[\d, 1, 64\]"),
    ],
)
def test_parts_of_a_network_are_named(index, change, message, device):
    parts = Decoding(device=device).parts
    parts[index] = change(parts[index])
    with pytest.raises(ArgumentError, match=f"pack_network: ({message})"):
        ops.pack_network(*parts)


@pytest.mark.gpu
def test_a_window_must_fit_the_resident_kernel():
    decoding = Decoding(device="cuda")
    with pytest.raises(ArgumentError, match="greedy_decode: these weights do not fit the resident kernel"):
        decoding(*ragged(decoding, 3, 6), window=1000)


@pytest.mark.gpu
def test_a_gru_has_no_resident_kernel():
    decoding = Decoding("gru", device="cuda")
    with pytest.raises(ArgumentError, match="a network with a GRU has no resident kernel on CUDA"):
        decoding(*ragged(decoding, 3, 6))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind, device):
    """Every frame gives a label: the tensor of labels is full, so that it can be compared."""
    decoding = Decoding(kind, (), device, max_symbols=1)
    decoding.parts[3][decoding.net.blank_id] = -1e4
    arguments = decoding.arguments(decoding.planted.encoder(2, 5), torch.tensor([5, 5]))
    assert ops.greedy_decode(*arguments)[0][:2, 1].tolist() == [5, 5]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    op = torch.ops.rnnt_fastdecode.greedy_decode.default
    torch.library.opcheck(op, (*arguments[:4], *decoding.network), test_utils=checks)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", (*KINDS, "gru"))
def test_opcheck_of_a_network(kind, device):
    parts = Decoding(kind, (), device).parts
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    op = torch.ops.rnnt_fastdecode.pack_network.default
    torch.library.opcheck(op, (*parts[:4], 0, *parts[8:]), test_utils=checks)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fake_kernel_has_room_for_every_label(kind):
    """Of labels that are not full opcheck would compare what nobody has written: shapes and dtypes alone."""
    decoding = Decoding(kind, (), "cpu", max_symbols=3)
    arguments = decoding.arguments(decoding.planted.encoder(2, 5), torch.tensor([5, 4]))
    with FakeTensorMode() as mode:
        copies = tree_map_only(torch.Tensor, mode.from_tensor, (*arguments[:4], *decoding.network))
        fake = torch.ops.rnnt_fastdecode.greedy_decode.default(*copies)
    real = ops.greedy_decode(*arguments)
    (labels, host, state), (fake_labels, fake_host, fake_state) = real, fake
    for own, other in zip((labels, host, *state), (fake_labels, fake_host, *fake_state), strict=True):
        assert (own.shape, own.dtype) == (other.shape, other.dtype)

"""Wrong arguments: one sentence that names the argument, before anything is written."""

import pytest
import torch
from op_cases import Loop, cache_case, joint_case, normal, random_transducer, recurrent_case

from rnnt_fastdecode import ops
from rnnt_fastdecode.errors import ArgumentError

JOINT = [
    "encoder",
    "predictor",
    "weight",
    "bias",
    "times",
    "lengths",
    "window",
    "num_durations",
    "activation",
]
CACHE = ["keys", "values", "lengths", "slots", "positions", "key_cache", "value_cache"]
GREEDY = [
    *["encoder", "lengths", "weight", "bias", "activation", "blank_id", "durations", "max_symbols", "window"],
    *["rounds", "predictor_kind", "predictor_weights", "predictor_state", "predictor_output", "times"],
    *["symbols", "tokens", "frames", "token_durations", "log_probs", "counts", "active", "workspace"],
]


LOAD = [
    *["lengths", "time_jumps", "given", "batch_dims", "frames", "row_lengths", "times", "symbols", "counts"],
    "state",
]
SAVE = ["state", "batch_dims", "times", "row_lengths", "decoded_lengths", "batch"]
PACK = [
    *["tokens", "frames", "token_durations", "log_probs", "counts", "lengths", "decoded_lengths"],
    "room",
]


def raises(message):
    return pytest.raises(ArgumentError, match=message)


def joint_arguments():
    return dict(zip(JOINT, [*joint_case(3, 5, 8, 7, 2), 4, 2, "relu"], strict=True))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("encoder", lambda t: t[0], r"encoder must have 3 dimensions \[B, T, J\], got shape \[5, 8\]"),
        ("encoder", lambda t: t.double(), "encoder must be float32, bfloat16 or float16, got float64"),
        ("encoder", lambda t: t[..., :0], "encoder must have a joint width of at least 1"),
        (
            "encoder",
            lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
            "encoder must be contiguous in",
        ),
        ("predictor", lambda t: t[:, :7], r"predictor must have shape \[3, 8\], got \[3, 7\]"),
        ("predictor", lambda t: t.half(), "predictor must be float32, got float16"),
        ("predictor", lambda t: t.T.contiguous().T, "predictor must be contiguous"),
        ("weight", lambda t: t[:, :5], r"weight must have shape \[9, 8\], got \[9, 5\]"),
        ("bias", lambda t: t[:3], r"bias must have shape \[9\], got \[3\]"),
        ("times", lambda t: t.long(), "times must be int32, got int64"),
        ("times", lambda t: t - 9, "times must not be negative"),
        ("lengths", lambda t: t[:2], r"lengths must have shape \[3\], got \[2\]"),
        ("window", lambda w: 0, "window must be at least 1, got 0"),
        ("num_durations", lambda n: 9, "number of durations must be between 0 and .*, got 9 with 9 rows"),
        ("activation", lambda a: "gelu", "activation must be 'relu', 'tanh' or 'sigmoid', got 'gelu'"),
    ],
)
def test_joint_argmax(name, change, message):
    arguments = joint_arguments()
    arguments[name] = change(arguments[name])
    with raises(f"joint_argmax: .*{message}"):
        ops.joint_argmax(**arguments)


def replaced(items, index, change):
    return [change(item) if i == index else item for i, item in enumerate(items)]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("kind", lambda k: "rnn", "kind must be 'lstm', 'gru', 'stateless' or 'stateless_relu', got 'rnn'"),
        ("weights", lambda w: w[:3], "weights must hold 5 tensors for kind 'lstm', got 3"),
        (
            "weights",
            lambda w: replaced(w, 0, torch.Tensor.half),
            r"weights\[0\] must be float32, got float16",
        ),
        (
            "weights",
            lambda w: replaced(w, 1, lambda t: t[:, :3]),
            r"weights\[1\] must have shape \[2, 24, 12\]",
        ),
        (
            "weights",
            lambda w: replaced(w, 2, torch.Tensor.half),
            r"weights\[2\] must be float32, got float16",
        ),
        (
            "weights",
            lambda w: replaced(w, 4, lambda t: t[:2]),
            r"weights\[4\] must have shape \[7\], got \[2\]",
        ),
        ("state", lambda s: s[:2], "state must hold 3 tensors for kind 'lstm', got 2"),
        ("state", lambda s: replaced(s, 1, torch.Tensor.half), r"state\[1\] must be float32, got float16"),
        ("state", lambda s: replaced(s, 0, lambda t: t[:1]), r"state\[0\] must have shape \[2, 3, 6\]"),
        ("labels", lambda t: t[:2], r"labels must have shape \[3\], got \[2\]"),
        ("labels", lambda t: t * 0 + 5, "labels must be between -1 and 4, got 5 in row 0"),
        ("labels", lambda t: t * 0 - 2, "labels must be between -1 and 4, got -2 in row 0"),
        ("output", lambda t: t[0], r"output must have 2 dimensions \[B, J\], got shape \[7\]"),
    ],
)
def test_predictor_step(name, change, message):
    check_predictor_step("lstm", name, change, message)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("kind", lambda k: "lstm", "state must hold 3 tensors for kind 'lstm', got 2"),
        ("weights", lambda w: w[:3], "weights must hold 5 tensors for kind 'gru', got 3"),
        (
            "weights",
            lambda w: replaced(w, 1, lambda t: t.flatten(1, 2)),
            r"weights\[1\] must have 4 dimensions \[L, 2, 3H, H\], got shape \[2, 36, 6\]",
        ),
        (
            "weights",
            lambda w: replaced(w, 1, lambda t: t[:, :, 6:]),
            r"weights\[1\] must have shape \[2, 2, 18, 6\], got \[2, 2, 12, 6\]",
        ),
        ("weights", lambda w: replaced(w, 1, lambda t: t[:0]), r"weights\[1\] must have at least one layer"),
        (
            "weights",
            lambda w: replaced(w, 1, torch.Tensor.half),
            r"weights\[1\] must be float32, got float16",
        ),
        (
            "weights",
            lambda w: replaced(w, 2, lambda t: t.sum(1)),
            r"weights\[2\] must have shape \[2, 2, 18\], got \[2, 18\]",
        ),
        (
            "weights",
            lambda w: replaced(w, 2, torch.Tensor.half),
            r"weights\[2\] must be float32, got float16",
        ),
        ("weights", lambda w: replaced(w, 3, lambda t: t[:2]), r"weights\[3\] must have shape \[7, 6\]"),
        ("state", lambda s: [*s, s[0]], "state must hold 2 tensors for kind 'gru', got 3"),
        ("state", lambda s: replaced(s, 0, lambda t: t[:1]), r"state\[0\] must have shape \[2, 3, 6\]"),
        ("state", lambda s: replaced(s, 1, torch.Tensor.half), r"state\[1\] must be float32, got float16"),
        ("labels", lambda t: t * 0 + 5, "labels must be between -1 and 4, got 5 in row 0"),
    ],
)
def test_predictor_step_of_a_gru(name, change, message):
    check_predictor_step("gru", name, change, message)


def check_predictor_step(kind, name, change, message):
    weights, state, labels, output = recurrent_case(kind, 3, 5, 6, 2, 7, torch.float32)
    arguments = {"kind": kind, "weights": weights, "labels": labels, "state": state, "output": output}
    arguments[name] = change(arguments[name])
    with raises(f"predictor_step_: {message}"):
        ops.predictor_step_(**arguments)
    assert output.isnan().all()


def test_context_must_hold_labels():
    loop = Loop(random_transducer("stateless"), normal(2, 4, 10, seed=0), torch.tensor([4, 4]), 9)
    loop.state[0][1] = 7
    with raises("greedy_rounds_: the context must hold labels between 0 and 6, got 7"):
        loop.rounds()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("keys", lambda t: t[0], r"keys must have 4 dimensions \[B, T, heads, dk\]"),
        ("keys", lambda t: t.transpose(1, 2), "keys must be contiguous"),
        ("values", lambda t: t.half(), "values must be float32, got float16"),
        ("lengths", lambda t: t + 99, "lengths must be between 0 and 4, got"),
        ("slots", lambda t: t * 0 + 6, "slots must be between -1 and 5, got 6 in row 0"),
        ("slots", lambda t: t * 0 + 1, "slots must not repeat, got 1 again in row 1"),
        ("positions", lambda t: t * 0 - 1, "positions must not be negative, got -1"),
        ("positions", lambda t: t[:2], r"positions must have shape \[6\], got \[2\]"),
        ("key_cache", lambda t: t[:, :, :0], "key_cache must have room for at least one frame"),
        ("value_cache", lambda t: t[:5], r"value_cache must have shape \[6, 2, 5, 8\], got \[5, 2, 5, 8\]"),
        ("value_cache", lambda t: t.transpose(0, 1).contiguous().transpose(0, 1), "must be contiguous"),
    ],
)
def test_kv_cache_update(name, change, message):
    arguments = dict(zip(CACHE, cache_case(3, 4, 2, 8, 6, 5), strict=True))
    arguments["slots"] = torch.tensor([0, 3, 2], dtype=torch.int32)
    before = arguments["key_cache"].clone()
    untouched = arguments["key_cache"]
    arguments[name] = change(arguments[name])
    with raises(f"kv_cache_update_: .*{message}"):
        ops.kv_cache_update_(**arguments)
    assert torch.equal(untouched, before)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("blank_id", lambda b: 7, "blank_id must be between 0 and 6, got 7"),
        ("blank_id", lambda b: -1, "blank_id must be between 0 and 6, got -1"),
        ("durations", lambda d: [0, -1], "must agree on the vocabulary|durations must be"),
        ("max_symbols", lambda m: 0, "max_symbols must be at least 1, got 0"),
        ("window", lambda w: 0, "window must be at least 1, got 0"),
        ("rounds", lambda r: 0, "rounds must be at least 1, or -1 for as many as it takes, got 0"),
        ("predictor_kind", lambda k: "rnn", "predictor_kind must be .*, got 'rnn'"),
        ("predictor_weights", lambda w: w[:4], "predictor_weights must hold 5 tensors"),
        ("predictor_output", lambda t: t[:, :9], "predictor_output must have shape"),
        ("times", lambda t: t - 1, "times must not be negative, got -1 in row 0"),
        ("symbols", lambda t: t - 1, "symbols must not be negative, got -1 in row 0"),
        ("counts", lambda t: t + 10, "counts must be between 0 and 9, got 10 in row 0"),
        ("tokens", lambda t: t[0], r"tokens must have 2 dimensions \[B, C\]"),
        ("frames", lambda t: t[:, :4], r"frames must have shape \[2, 9\], got \[2, 4\]"),
        ("log_probs", lambda t: t.half(), "log_probs must be float32, got float16"),
        ("active", lambda t: t.long(), "active must be int32, got int64"),
    ],
)
def test_greedy_rounds(name, change, message):
    loop = Loop(random_transducer(), normal(2, 4, 10, seed=0), torch.tensor([4, 4]), capacity=9)
    arguments = dict(zip(GREEDY, loop.arguments(), strict=True))
    before = loop.output.clone()
    arguments[name] = change(arguments[name])
    with raises(f"greedy_rounds_: .*({message})"):
        ops.greedy_rounds_(**arguments)
    assert loop.counts.eq(0).all() and torch.equal(loop.output, before)


def test_vocabularies_must_agree():
    loop = Loop(random_transducer(vocab=7), normal(2, 4, 10, seed=0), torch.tensor([4, 4]), capacity=9)
    arguments = dict(zip(GREEDY, loop.arguments(), strict=True))
    arguments["durations"] = [0, 1]
    with raises(r"must agree on the vocabulary \(with blank\), got 7 and 5"):
        ops.greedy_rounds_(**arguments)


def test_condition_is_for_cuda():
    loop = Loop(random_transducer(), normal(1, 4, 10, seed=0), torch.tensor([4]), capacity=9)
    with raises("condition must be 0 on the CPU, got 3"):
        ops.greedy_rounds_(*loop.arguments(), condition=3)


def resident_bytes(kind="lstm", count=5, device="cpu"):
    loop = Loop(random_transducer(), normal(1, 4, 10, seed=0), torch.tensor([4]), capacity=9, device=device)
    return ops.greedy_resident_bytes(loop.network.weight, kind, loop.weights[:count], 1, 0, 4)


def test_no_resident_kernel_runs_on_a_cpu():
    assert resident_bytes() == 0


def test_resident_bytes_knows_its_predictors():
    with raises("predictor_kind must be 'lstm', 'gru', 'stateless' or 'stateless_relu', got 'nope'"):
        resident_bytes("nope")
    with raises("predictor_weights must hold 5 tensors for kind 'lstm', got 3"):
        resident_bytes(count=3)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("condition", lambda _: 3, "condition must be 0 with rounds = -1, got 3"),
        ("workspace", lambda w: w[:1], "workspace must hold 2 tensors .gate_table, scratch., got 1"),
        ("workspace", lambda w: replaced(w, 0, lambda t: t[:1]), r"workspace\[0\] must have shape"),
        ("workspace", lambda w: replaced(w, 1, lambda t: t[:64]), r"workspace\[1\] must hold at least"),
        ("window", lambda _: 1000, "do not fit the resident kernel"),
    ],
)
def test_the_resident_kernel_checks_what_it_is_given(name, change, message):
    transducer = random_transducer(vocab=9, joint_width=16, hidden=16)
    loop = Loop(transducer, normal(2, 4, 16, seed=0), torch.tensor([4, 4]), capacity=9, device="cuda")
    arguments = dict(zip(GREEDY, loop.arguments(), strict=True))
    scratch = torch.zeros(1 << 22, dtype=torch.uint8, device="cuda")
    arguments |= {"condition": 0, "workspace": [torch.zeros(9, 16, 4, device="cuda"), scratch]}
    arguments[name] = change(arguments[name])
    before = loop.output.clone()
    with raises(f"greedy_rounds_: .*({message})"):
        ops.greedy_rounds_(**arguments)
    assert torch.equal(loop.output, before)


def counters(count, rows):
    return [torch.zeros(rows, dtype=torch.int32) for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("lengths", lambda t: t.float(), "lengths must be int32 or int64, got float32"),
        ("lengths", lambda t: t[None], r"lengths must have 1 dimensions \[B\], got shape \[1, 2\]"),
        ("time_jumps", lambda t: t.long(), "time_jumps must be int32, got int64"),
        ("time_jumps", lambda t: t.repeat(2), r"time_jumps must have shape \[2\], got \[4\]"),
        ("given", lambda g: g[:1], "given, state and batch_dims must be equally many, got 1, 2 and 2"),
        ("given", lambda g: replaced(g, 1, lambda t: t[:, :2]), r"given\[1\] and state\[1\] must differ in"),
        ("given", lambda g: replaced(g, 0, torch.Tensor.half), r"given\[0\] must be float32, got float16"),
        (
            "given",
            lambda g: replaced(g, 1, lambda t: t.repeat(2, 1)[:3]),
            "given must hold 2 rows, or one for",
        ),
        ("given", lambda g: replaced(g, 1, lambda t: t.T.contiguous().T), r"given\[1\] must be contiguous"),
        ("batch_dims", lambda d: [1, 2], r"given\[1\] and state\[1\] must differ in dimension 2 only"),
        ("frames", lambda f: -1, "frames must be between 0 and 2147483647, got -1"),
        ("row_lengths", lambda t: t[:1], "row_lengths must have room for 2 rows, got 1"),
        ("counts", lambda t: t[:2], r"counts must have shape \[3\], got \[2\]"),
        ("state", lambda s: replaced(s, 0, lambda t: t[:, :1]), r"state\[0\] must have room for 2 rows"),
    ],
)
def test_load_rows(name, change, message):
    jumps, lengths = counters(2, 2)
    given = [normal(1, 2, 5, seed=0), normal(2, 3, seed=1)]
    state = [torch.zeros(1, 3, 5), torch.zeros(3, 3)]
    arguments = dict(zip(LOAD, [lengths, jumps, given, [1, 0], 3, *counters(4, 3), state], strict=True))
    arguments[name] = change(arguments[name])
    with raises(f"load_rows_: {message}"):
        ops.load_rows_(**arguments)
    assert all(tensor.eq(0).all() for tensor in state)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("batch", lambda b: 4, "batch must be between 0 and 3, got 4"),
        ("batch_dims", lambda d: [3, 0], "batch_dims must name a dimension of each state, got 3"),
        ("batch_dims", lambda d: d[:1], "state and batch_dims must be equally many, got 2 and 1"),
        ("times", lambda t: t.long(), "times must be int32, got int64"),
        ("row_lengths", lambda t: t[:2], r"row_lengths must have shape \[3\], got \[2\]"),
        ("decoded_lengths", lambda t: t.int(), "decoded_lengths must be int64, got int32"),
        ("state", lambda s: replaced(s, 1, lambda t: t[:1]), r"state\[1\] must hold at least 2 rows, got 1"),
        ("state", lambda s: replaced(s, 1, lambda t: t.T.contiguous().T), r"state\[1\] must be contiguous"),
    ],
)
def test_save_rows(name, change, message):
    state = [normal(1, 3, 5, seed=0), normal(3, 3, seed=1)]
    decoded = torch.zeros(2, dtype=torch.int64)
    arguments = dict(zip(SAVE, [state, [1, 0], *counters(2, 3), decoded, 2], strict=True))
    arguments[name] = change(arguments[name])
    with raises(f"save_rows: {message}"):
        ops.save_rows(**arguments)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tokens", lambda t: t[0], r"tokens must have 2 dimensions \[R, C\]"),
        ("frames", lambda t: t[:, :3], r"frames must have shape \[3, 4\], got \[3, 3\]"),
        ("log_probs", lambda t: t.double(), "log_probs must be float32, got float64"),
        ("counts", lambda t: t + 5, "counts must be between 0 and 4, got 5 in row 0"),
        ("counts", lambda t: t - 1, "counts must be between 0 and 4, got -1 in row 0"),
        ("counts", lambda t: t + 3, "room must hold all 6 labels, got 5"),
        ("lengths", lambda t: t.repeat(2), "lengths must be of at most 3 rows, as tokens has, got 4"),
        ("decoded_lengths", lambda t: t.int(), "decoded_lengths must be int64, got int32"),
        ("room", lambda r: -1, "room must be between 0 and 2147483647 labels, got -1"),
    ],
)
def test_pack_labels(name, change, message):
    table = torch.zeros(3, 4, dtype=torch.int32)
    lengths, decoded = torch.zeros(2, 2, dtype=torch.int64).unbind()
    values = [table, table, table, table.float(), *counters(1, 3), lengths, decoded, 5]
    arguments = dict(zip(PACK, values, strict=True))
    arguments[name] = change(arguments[name])
    with raises(f"pack_labels: {message}"):
        ops.pack_labels(**arguments)


@pytest.mark.gpu
def test_tensors_of_one_call_must_share_a_device():
    arguments = joint_arguments()
    arguments["weight"] = arguments["weight"].cuda()
    with raises("weight must be on cpu, got cuda:0"):
        ops.joint_argmax(**arguments)


@pytest.mark.gpu
def test_a_gru_does_not_fit_the_resident_kernel():
    transducer = random_transducer("gru", vocab=33, joint_width=64, hidden=64)
    encoder, options = normal(2, 4, 64, seed=0), {"dtype": torch.bfloat16, "device": "cuda"}
    loop = Loop(transducer, encoder, torch.tensor([4, 2]), capacity=40, **options)
    resident_bytes = torch.ops.rnnt_fastdecode.greedy_resident_bytes.default
    assert resident_bytes(loop.network.weight, "gru", loop.weights, 2, 0, 4) == 0
    with raises("rounds must be at least 1 on CUDA for predictor_kind 'gru', got -1"):
        loop.rounds(-1)

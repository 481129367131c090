"""The CPU kernels: every instruction set, any number of threads, the functions that they bring along."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_cases import DTYPES, RECURRENT, Loop, recurrent_case

from rnnt_fastdecode import ops
from rnnt_fastdecode.reference.planted import plant

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ["avx512_bf16", "avx512", "avx2", "portable"]
#: Tests that compare the ops with the reference: all dtypes, odd sizes, whole loops.
COMPARISONS = (
    "not instruction_set and (decisions or activations or nan or the_reference or finite_half"
    " or planted_networks or half_types or does_not_depend or equal_scores or functions)"
)


@pytest.mark.parametrize("kernels", KERNELS)
def test_every_instruction_set_equals_the_reference(kernels, apart):
    available = ops.cpu_kernels()
    if kernels not in available or kernels == available[0]:
        pytest.skip("in use already" if kernels == available[0] else "not on this machine")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-k", COMPARISONS]
    environment = {
        **apart["env"],
        "RNNT_FASTDECODE_CPU_CAPABILITY": kernels,
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "ops")],
        cwd=apart["cwd"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def test_the_kernels_in_use_can_be_named(apart):
    script = "from rnnt_fastdecode import ops; print(ops.cpu_kernels()[0])"

    def run(name):
        environment = {**apart["env"], "RNNT_FASTDECODE_CPU_CAPABILITY": name}
        command = [sys.executable, "-c", script]
        return subprocess.run(command, cwd=apart["cwd"], env=environment, capture_output=True, text=True)

    assert run("portable").stdout.strip() == "portable"
    assert run("").stdout.strip() == ops.cpu_kernels()[0]
    assert "RNNT_FASTDECODE_CPU_CAPABILITY must be one of" in run("mmx").stderr


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def everything(loop):
    return [loop.tokens, loop.frames, loop.log_probs, loop.counts, loop.times, loop.output, *loop.state[:-1]]


# The weights of the first network fit a core's own cache, and threads take rows; those of the second do not,
# and threads share each pass.
@pytest.mark.parametrize(("width", "vocab"), [(48, 33), (200, 70)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", RECURRENT)
def test_results_do_not_depend_on_threads_or_batch(kind, width, vocab, dtype, threads):
    planted = plant(vocab_size=vocab, joint_width=width, durations=(0, 1, 2, 3), predictor_kind=kind, seed=1)
    encoder = planted.encoder(19, 60, chains=0.05, seed=2)
    lengths = torch.arange(19) * 3 + 6
    projected = Loop(planted.transducer, encoder, lengths, 300, dtype).projected

    def run(rows, count):
        threads(count)
        loop = Loop(planted.transducer, encoder[rows], lengths[rows], 300, dtype)
        loop.projected = projected[rows]
        return everything(loop.run())

    whole = run(slice(None), 1)
    for count in (2, 3, 8):
        assert all(torch.equal(a, b) for a, b in zip(run(slice(None), count), whole, strict=True))
    alone = run(slice(7, 8), 2)
    for part, all_rows in zip(alone, whole, strict=True):
        dim = 1 if part.ndim == 3 else 0
        assert torch.equal(part.select(dim, 0), all_rows.select(dim, 7))


@pytest.mark.parametrize("vocab", [5, 16, 37, 1025])
def test_functions_of_scores_find_the_first_maximum_and_nan_first(vocab):
    encoder, predictor = torch.zeros(1, 1, 4), torch.zeros(1, 4)
    weight, zero, one = torch.zeros(vocab, 4), torch.zeros(1, dtype=torch.int32), torch.ones(1).int()

    def best(bias):
        return int(ops.joint_argmax(encoder, predictor, weight, bias, zero, one, 1)[0])

    for place in {0, 1, vocab // 2, vocab - 2, vocab - 1}:
        bias = torch.linspace(-1, 0, vocab)
        bias[place:] = 0.5
        assert best(bias) == place
        bias[place] = 0.25
        bias[vocab // 3] = bias[place] = torch.nan
        assert best(bias) == min(place, vocab // 3)
    assert best(torch.full((vocab,), -torch.inf)) == 0


def lstm_of_gates(gates, cell):
    """The cell of a one-layer LSTM whose gates [4, H] do not depend on its input."""
    width = gates.shape[1]
    weights = [
        torch.zeros(1, width),
        torch.zeros(1, 4 * width, 2 * width),
        gates.reshape(1, -1),
        torch.zeros(1, width),
        torch.zeros(1),
    ]
    state = [torch.zeros(1, 1, width), cell.reshape(1, 1, -1).clone(), torch.zeros(1, 1, width)]
    ops.predictor_step_("lstm", weights, torch.zeros(1, dtype=torch.int32), state, torch.zeros(1, 1))
    return state[1].flatten()


def test_functions_of_the_cell_are_exact_to_a_few_units_in_the_last_place():
    x = torch.cat([torch.linspace(-20, 20, 901), torch.linspace(-0.7, 0.7, 801), torch.tensor([1e-30, 0.0])])
    far = torch.full_like(x, 80.0)
    tanh = lstm_of_gates(torch.stack([far, -far, x, far]), torch.zeros_like(x))
    torch.testing.assert_close(tanh.double(), x.double().tanh(), rtol=3e-7, atol=0)
    sigmoid = lstm_of_gates(torch.stack([-far, x, torch.zeros_like(x), far]), torch.ones_like(x))
    torch.testing.assert_close(sigmoid.double(), x.double().sigmoid(), rtol=4e-7, atol=0)


def test_functions_of_the_cell_keep_nan_and_saturate():
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 100.0, -100.0])
    far = torch.full_like(x, 80.0)
    tanh = lstm_of_gates(torch.stack([far, -far, x, far]), torch.zeros_like(x))
    sigmoid = lstm_of_gates(torch.stack([-far, x, torch.zeros_like(x), far]), torch.ones_like(x))
    assert tanh[0].isnan() and sigmoid[0].isnan()
    torch.testing.assert_close(tanh[1:], x[1:].tanh(), rtol=0, atol=0)
    torch.testing.assert_close(sigmoid[1:], x[1:].sigmoid(), rtol=0, atol=1e-37)


@pytest.mark.parametrize("kind", RECURRENT)
def test_rows_with_subnormal_bfloat16_equal_the_reference_beside_others_without(kind):
    weights, state, labels, output = recurrent_case(kind, 7, 9, 40, 2, 24, torch.bfloat16, seed=3)
    labels[:] = torch.arange(7)
    want = [s.clone() for s in state], output.clone()
    ops.predictor_step_(kind, weights, labels, *want)
    state[0][:, [1, 4]] = 1e-39
    ops.predictor_step_(kind, weights, labels, state, output)
    others = [0, 2, 3, 5, 6]
    assert torch.equal(output[others], want[1][others])
    assert output.isfinite().all()

"""The resident kernel in 16-bit types: what masked rounds on the GPU decode, up to near ties of float64."""

import pytest
import torch
from op_cases import POISON, Loop, integers, normal, random_transducer, rows_off_the_float64_path
from resident_cases import TDT, ragged, run_resident

from rnnt_fastdecode.reference.planted import plant

pytestmark = pytest.mark.gpu

PARAKEET = {"vocab_size": 1025, "joint_width": 640}
SMALL = {"vocab_size": 77, "joint_width": 200}


def compare(planted, encoder, lengths, dtype=torch.bfloat16, **options):
    """Run both; rows that part must do so at near ties, the others have close scores and states."""
    transducer = planted if not hasattr(planted, "transducer") else planted.transducer
    options.setdefault("capacity", encoder.shape[1] * options.get("max_symbols", 10))
    encoder = encoder.nan_to_num(3.0e4)
    resident, masked = (
        Loop(transducer, encoder, lengths, dtype=dtype, device="cuda", **options) for _ in range(2)
    )
    run_resident(resident)
    masked.run()
    same = [row for row in range(len(lengths)) if resident.emitted(row) == masked.emitted(row)]
    if len(same) < len(lengths):
        assert rows_off_the_float64_path(resident, transducer) <= 1 + len(lengths) // 4
    for row in same:
        count = int(resident.counts[row])
        assert resident.times[row] == masked.times[row]
        torch.testing.assert_close(
            resident.log_probs[row, :count], masked.log_probs[row, :count], rtol=0, atol=0.05
        )
        torch.testing.assert_close(resident.output[row], masked.output[row], rtol=0.05, atol=0.05)
    return resident


# How the work is laid out depends on the rows and on the frames judged at once.
WINDOWS = {
    1: (1, 8, 16, 32, 48),
    2: (8,),
    3: (5,),
    4: (8,),
    5: (12,),
    8: (1, 8),
    9: (8,),
    12: (12,),
    16: (8,),
}
WINDOWS |= {17: (6,), 24: (3,), 31: (6,), 32: (1, 6)}
# More rows than that are taken in passes, more than 128 in several launches.
WINDOWS |= {33: (6,), 64: (6,), 70: (4,), 96: (2,), 128: (1, 6), 129: (5,)}
WIDTHS = [(24, 16), (320, 64), (200, 200), (640, 640), (768, 768), (768, 640)]


@pytest.mark.parametrize("durations", [(), TDT])
@pytest.mark.parametrize(
    ("batch", "window"), [(batch, window) for batch, windows in WINDOWS.items() for window in windows]
)
def test_rows_and_windows(batch, window, durations):
    planted = plant(**PARAKEET, durations=durations, seed=batch)
    encoder, lengths = ragged(planted, batch, frames=40, seed=window)
    resident = compare(planted, encoder, lengths, window=window)
    assert batch == 1 or resident.counts.sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [1, 7, 20, 45])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("hidden", "joint_width"), WIDTHS)
def test_layers_and_widths(hidden, joint_width, layers, batch, dtype):
    planted = plant(joint_width=joint_width, hidden=hidden, num_layers=layers, seed=1)
    encoder, lengths = ragged(planted, batch, frames=20, seed=2)
    compare(planted, encoder, lengths, dtype=dtype, window=2)


@pytest.mark.parametrize("batch", [1, 8, 32, 100])
@pytest.mark.parametrize("blank_id", [0, 4999])
def test_many_columns_for_a_block(blank_id, batch):
    planted = plant(vocab_size=5000, joint_width=640, durations=TDT, blank_id=blank_id, seed=7)
    encoder, lengths = ragged(planted, batch, frames=16, seed=8)
    compare(planted, encoder, lengths, window=3)


@pytest.mark.parametrize("batch", [2, 20, 40])
@pytest.mark.parametrize("context", [1, 2, 4])
def test_stateless_predictors(context, batch):
    planted = plant(joint_width=64, predictor_kind="stateless", context=context, seed=3)
    encoder, lengths = ragged(planted, batch, frames=20, seed=4)
    compare(planted, encoder, lengths)


@pytest.mark.parametrize("batch", [1, 9])
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_activations(activation, batch):
    transducer = random_transducer(
        vocab=40, joint_width=32, hidden=24, activation=activation, durations=(0, 1, 2), seed=3
    )
    resident = compare(transducer, normal(batch, 12, 32, seed=4), integers(1, 13, (batch,), 4))
    assert int(resident.counts.sum()) > 0


@pytest.mark.parametrize("max_symbols", [1, 2, 5])
def test_max_symbols(max_symbols):
    transducer = random_transducer(
        vocab=9, joint_width=16, hidden=16, blank_bias=-5.0, durations=(0, 1), seed=5
    )
    encoder, lengths = normal(5, 8, 16, seed=6), torch.tensor([8, 3, 0, 8, 1])
    compare(transducer, encoder, lengths, max_symbols=max_symbols)


@pytest.mark.parametrize("batch", [1, 4, 33])
def test_nothing_beyond_the_emissions_is_written(batch):
    planted = plant(**SMALL, seed=12)
    encoder, lengths = ragged(planted, batch, frames=20, seed=13)
    resident = compare(planted, encoder, lengths)
    for row in range(batch):
        assert resident.tokens[row, resident.counts[row] :].eq(POISON).all()
        assert resident.log_probs[row, resident.counts[row] :].eq(POISON).all()


@pytest.mark.parametrize("batch", [1, 8, 32, 128])
def test_many_runs_give_the_same_bits(batch):
    planted = plant(**PARAKEET, seed=14)
    encoder, lengths = ragged(planted, batch, frames=24, seed=15)
    encoder = encoder.nan_to_num(3.0e4)

    def run():
        loop = Loop(
            planted.transducer, encoder, lengths, capacity=240, dtype=torch.bfloat16, device="cuda", window=6
        )
        return run_resident(loop)

    first = run()
    for _ in range(30):
        again = run()
        assert torch.equal(again.tokens, first.tokens) and torch.equal(again.counts, first.counts)
        assert torch.equal(again.output, first.output) and torch.equal(again.state[1], first.state[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "durations"), [("lstm", ()), ("lstm", TDT), ("stateless_relu", TDT)])
@pytest.mark.parametrize("batch", [2, 16, 40])
def test_they_follow_the_float64_reference_up_to_near_ties(batch, kind, durations, dtype, capsys):
    planted = plant(joint_width=64, durations=durations, predictor_kind=kind, seed=16)
    encoder = planted.encoder(batch, 40, seed=17)
    lengths = integers(0, 41, (batch,), 18)
    loop = run_resident(Loop(planted.transducer, encoder, lengths, capacity=400, dtype=dtype, device="cuda"))
    near_ties = rows_off_the_float64_path(loop, planted.transducer)
    if near_ties:
        with capsys.disabled():
            print(f"\n{dtype}, {kind}: {near_ties} of {batch} rows leave the float64 path at a near tie")
    assert near_ties <= 1 + batch // 4

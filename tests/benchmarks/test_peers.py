"""The peers' decoders hold the same weights: on the CPU, in float32, they give what we give."""

import pytest
import torch

from benchmarks.report import agreement
from rnnt_fastdecode.reference.planted import plant
from rnnt_fastdecode.transducer import Hypothesis

CPU = torch.device("cpu")


def test_rows_agree_only_if_tokens_and_frames_do():
    ours = [Hypothesis([1, 2], [0, 3], [1, 2], []) for _ in range(4)]
    theirs = [
        ([1, 2], [0, 3], [1, 2]),
        ([1, 2], [0, 3], [1, 1]),
        ([1, 2], [0, 4], [1, 2]),
        ([1], [0], [1]),
    ]
    assert agreement(ours, theirs) == {"agreeing_rows": 2, "agreeing_durations": 1}


def test_durations_count_only_where_a_peer_has_them():
    assert agreement([Hypothesis([1], [0], [0], [])], [([1], [0], None)]) == {"agreeing_rows": 1}


@pytest.fixture
def transformers_decoder():
    pytest.importorskip("transformers", minversion="5.17")
    from benchmarks.transformers_decoder import TransformersDecoder

    return TransformersDecoder


# transformers has no max_symbols for TDT, so bursts are for RNN-T only.
@pytest.mark.parametrize("model, chains, max_symbols", [("rnnt", 0.1, 3), ("tdt", 0.0, 10)])
def test_transformers_decodes_what_we_decode(transformers_decoder, decoded, model, chains, max_symbols):
    planted, _, encoder, lengths, ours = decoded(model, chains, max_symbols)
    peer = transformers_decoder(planted.transducer, CPU, torch.float32, max_symbols)
    theirs = peer.rows(peer(encoder, lengths))
    durations = {"agreeing_durations": 7} if model == "tdt" else {}
    assert agreement(ours, theirs) == {"agreeing_rows": 7, **durations}


@pytest.mark.parametrize("sizes", [{"hidden": 80}, {"durations": (0, 2, 4)}])
def test_transformers_refuses_what_it_cannot_decode(transformers_decoder, sizes):
    with pytest.raises(ValueError, match="as wide as the predictor and durations 0, 1, 2"):
        transformers_decoder(plant(**sizes).transducer, CPU, torch.float32)


@pytest.mark.parametrize("model", ["rnnt", "tdt"])
def test_nemo_decodes_what_we_decode(decoded, model):
    pytest.importorskip("nemo.collections.asr.modules.rnnt", reason="needs NeMo", exc_type=ImportError)
    from benchmarks.nemo_decoder import NemoDecoder

    planted, _, encoder, lengths, ours = decoded(model, chains=0.1)
    peer = NemoDecoder(planted.transducer, CPU, torch.float32, mode="eager")
    assert agreement(ours, peer.rows(peer(encoder, lengths)))["agreeing_rows"] == 7

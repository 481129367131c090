"""The decode part of transformers' Parakeet `generate` with the weights of a planted network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rnnt_fastdecode.reference.decode import Transducer

from .report import Row


class _NoEncoder(nn.Module):
    """Stands where the encoder was: what `generate` gets is encoder output already."""

    main_input_name = "input_features"

    @staticmethod
    def _get_subsampling_output_length(lengths: Tensor) -> Tensor:
        return lengths


@dataclass(frozen=True)
class _Output:
    sequences: Tensor
    durations: Tensor
    lengths: Tensor


class TransformersDecoder:
    """ParakeetForRNNT or ParakeetForTDT without its encoder, on `device` in `dtype`.

    Only LSTM predictors as wide as the joint, and TDT durations that equal their index: transformers knows no
    others. It has no max_symbols for TDT.
    """

    def __init__(
        self, transducer: Transducer, device: torch.device, dtype: torch.dtype, max_symbols: int = 10
    ) -> None:
        import transformers
        from transformers.models.parakeet.modeling_parakeet import ParakeetEncoderModelOutput

        embedding, weight, bias, projection, projection_bias = transducer.predictor_weights
        layers, _, width = weight.shape
        hidden = width // 2
        joint_width, encoder_width = transducer.encoder_weight.shape
        durations = list(transducer.durations)
        if joint_width != hidden or durations != list(range(len(durations))):
            raise ValueError("transformers needs a joint as wide as the predictor and durations 0, 1, 2, ..")
        settings: dict[str, Any] = {
            "vocab_size": transducer.vocab_size,
            "decoder_hidden_size": hidden,
            "num_decoder_layers": layers,
            "hidden_act": transducer.activation,
            "max_symbols_per_step": max_symbols,
            "blank_token_id": transducer.blank_id,
            "pad_token_id": 0 if transducer.blank_id else 1,
            # Only its width is used: the encoder itself is taken out below.
            "encoder_config": {
                "hidden_size": encoder_width,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "intermediate_size": 8,
                "subsampling_conv_channels": 8,
            },
        }
        if durations:
            config = transformers.ParakeetTDTConfig(durations=durations, **settings)
            model: Any = transformers.ParakeetForTDT(config)
        else:
            model = transformers.ParakeetForRNNT(transformers.ParakeetRNNTConfig(**settings))
        model.encoder = _NoEncoder()
        state = {
            "encoder_projector.weight": transducer.encoder_weight,
            "encoder_projector.bias": transducer.encoder_bias,
            "decoder.embedding.weight": embedding,
            "decoder.decoder_projector.weight": projection,
            "decoder.decoder_projector.bias": projection_bias,
            "joint.head.weight": transducer.weight,
            "joint.head.bias": transducer.bias,
        }
        for layer in range(layers):
            state[f"decoder.lstm.weight_ih_l{layer}"] = weight[layer, :, :hidden]
            state[f"decoder.lstm.weight_hh_l{layer}"] = weight[layer, :, hidden:]
            state[f"decoder.lstm.bias_ih_l{layer}"] = bias[layer]
            state[f"decoder.lstm.bias_hh_l{layer}"] = torch.zeros_like(bias[layer])
        model.load_state_dict(state)
        model.generation_config.decoder_start_token_id = transducer.blank_id
        model.generation_config.bos_token_id = transducer.blank_id
        model.generation_config.pad_token_id = settings["pad_token_id"]
        model.generation_config.eos_token_id = None
        # It looks for the best token among the durations, too, unless told not to, as converted models are.
        beyond_tokens = range(transducer.vocab_size, transducer.vocab_size + len(durations))
        model.generation_config.suppress_tokens = list(beyond_tokens) or None

        def project(input_features: Tensor, attention_mask: Tensor, **_: Any) -> Any:
            return ParakeetEncoderModelOutput(
                last_hidden_state=input_features,
                pooler_output=model.encoder_projector(input_features),
                attention_mask=attention_mask,
            )

        model.get_audio_features = project
        self._model = model.to(device, dtype).eval()
        self._blank_id, self._max_symbols = transducer.blank_id, max_symbols
        self._has_durations = bool(durations)

    @torch.inference_mode()
    def __call__(self, encoder_output: Tensor, lengths: Tensor) -> _Output:
        frames = torch.arange(encoder_output.shape[1], device=encoder_output.device)
        mask = frames < lengths.unsqueeze(1)
        # What generate derives by itself, said aloud: otherwise it warns.
        most = self._max_symbols * encoder_output.shape[1]
        output = self._model.generate(input_features=encoder_output, attention_mask=mask, max_new_tokens=most)
        return _Output(output.sequences, output.durations, lengths)

    def rows(self, output: _Output) -> list[Row]:
        """Tokens, frames and, for TDT, durations: steps without the blanks and what came after the end."""
        before, label = self._steps(output)
        sequences, durations = output.sequences.cpu(), output.durations.cpu()
        label &= before < output.lengths.cpu().unsqueeze(1)
        return [
            (
                sequences[row, kept].tolist(),
                before[row, kept].tolist(),
                durations[row, kept].tolist() if self._has_durations else None,
            )
            for row, kept in enumerate(label)
        ]

    def rows_cut(self, output: _Output) -> int:
        """How many rows have labels after their end, which `rows` leaves out: `generate` goes on for them."""
        before, label = self._steps(output)
        return int((label & (before >= output.lengths.cpu().unsqueeze(1))).any(1).sum())

    def _steps(self, output: _Output) -> tuple[Tensor, Tensor]:
        """The frame of every step, and which steps have a label, on the CPU."""
        durations = output.durations.cpu()
        label = output.sequences.cpu() != self._blank_id
        # The first step is the start of sequence.
        label[:, 0] = False
        return durations.cumsum(dim=1) - durations, label

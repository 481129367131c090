"""Write averaged weights, configuration and vocabulary as a checkpoint folder in this package's own format.

python -m training.export WORK/average.pt TOKENIZER rnnt_fastdecode/models/bundled
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file

from .model import Shape, TrainingModel, bundle_config

NAME = "bundled"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("average", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(args.tokenizer)).get_piece_size()
    weights = torch.load(args.average, map_location="cpu")
    TrainingModel(Shape(pieces)).load_state_dict(weights)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: value.half().contiguous() for key, value in weights.items()}, args.out / "model.safetensors"
    )
    (args.out / "config.json").write_text(json.dumps(bundle_config(Shape(pieces), NAME), indent=2) + "\n")
    shutil.copyfile(args.tokenizer, args.out / "tokenizer.model")
    for path in sorted(args.out.iterdir()):
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

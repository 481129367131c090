"""Train the bundled model.

    torchrun --nproc-per-node 4 -m training.train STORES TOKENIZER WORK --seconds 410
    python -m training.train STORES TOKENIZER WORK --seconds 1200        # one GPU

STORES holds an4_train, speechocean_train, kathleen (training.corpora), spelled and read (training.voices).
The schedules of learning rate, data and difficulty follow the clock: `--seconds` is the length of the whole
training. It can be done in parts (`--stop-after`): a later call on the same WORK resumes. WORK gets last.pt
(what is needed to resume), average.pt (the averaged weights, half precision) and train.log.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.distributed as dist
from torch import nn

from rnnt_fastdecode.audio.mel import LogMel

from .augment import assemble, augment_samples, mask_features, warp_features
from .corpora import DEV_SPEAKERS, SAMPLE_RATE, Store
from .data import Group, Plan, Sampler, make_group
from .evaluate import recognise, word_error_rate
from .model import FEATURES, LEFT_CONTEXT, LOOKAHEADS, LOSS_WEIGHTS, Shape, TrainingModel

# Share of the rows that each corpus gives, first and last in training: synthetic speech first, then real.
FIRST = {"an4_train": 0.15, "speechocean_train": 0.15, "kathleen": 0.05, "spelled": 0.45, "read": 0.20}
LAST = {"an4_train": 0.42, "speechocean_train": 0.18, "kathleen": 0.04, "spelled": 0.28, "read": 0.08}
JOINED = {"an4_train": (0.6, 0.25, 0.15), "spelled": (0.65, 0.25, 0.1), "speechocean_train": (0.75, 0.25)}
LOOKAHEAD_SHARES = (0.4, 0.2, 0.2, 0.2)


def mixture(progress: float) -> dict[str, float]:
    share = min(progress, 1.0)
    return {name: FIRST[name] + (LAST[name] - FIRST[name]) * share for name in FIRST}


def learning_rate(progress: float, peak: float, warmup: float) -> float:
    """Linear warm-up, then a cosine down to 1 % of the peak."""
    if progress < warmup:
        return peak * max(progress, 1e-3) / warmup
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (min(progress, 1.0) - warmup) / (1 - warmup))))


def load_data(
    folder: Path, tokenizer: sentencepiece.SentencePieceProcessor, device: torch.device
) -> tuple[torch.Tensor, list[Group], list[np.ndarray], list[str]]:
    """(all samples [N] int16 on the device, groups, dev clips, dev texts)."""
    buffers, groups, base = [], [], 0
    dev_clips: list[np.ndarray] = []
    dev_texts: list[str] = []
    for name in FIRST:
        store = Store.read(folder / name)
        clips = np.arange(store.sizes.size)
        if name == "an4_train":
            clips = store.clips_of(DEV_SPEAKERS, inside=False)
            for i in store.clips_of(DEV_SPEAKERS, inside=True):
                dev_clips.append(store.pcm[store.starts[i] : store.starts[i] + store.sizes[i]])
                dev_texts.append(store.texts[i])
        groups.append(make_group(name, store, clips, base, tokenizer.encode, JOINED.get(name, (1.0,))))
        buffers.append(torch.from_numpy(store.pcm).to(device))
        base += store.pcm.size
    return torch.cat(buffers), groups, dev_clips, dev_texts


class Average:
    """Exponential moving average of the weights, over a horizon that grows to `horizon` steps."""

    def __init__(self, model: nn.Module, horizon: int) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        for module in self.model.modules():
            if isinstance(module, nn.LSTM):
                module.flatten_parameters()
        self.horizon = horizon

    def update(self, model: nn.Module, step: int) -> None:
        share = max(1 / self.horizon, 1 / (1 + step / 10))
        torch._foreach_lerp_(list(self.model.parameters()), [p.detach() for p in model.parameters()], share)


class Trainer:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = (
            torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            if args.device == "cuda"
            else torch.device("cpu")
        )
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.set_float32_matmul_precision("high")
        if self.world > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        args.work.mkdir(parents=True, exist_ok=True)
        self.tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(args.tokenizer))
        torch.manual_seed(args.seed)
        shape = Shape(self.tokenizer.get_piece_size(), **{key: int(value) for key, value in args.shape})
        self.model = TrainingModel(shape, args.dropout).to(self.device)
        self.average = Average(self.model, args.average)
        self.mel = LogMel(FEATURES).to(self.device)
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": args.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)
        self.step, self.elapsed = 0, 0.0
        self.resume()
        self.parallel: nn.Module = self.model
        if self.world > 1:
            self.parallel = nn.parallel.DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        # Every rank and every resumed part draws batches and augmentation of its own.
        seed = args.seed + 1000 * self.rank + 7919 * self.step
        torch.manual_seed(seed)
        self.pcm, groups_of_clips, self.dev_clips, self.dev_texts = load_data(
            args.stores, self.tokenizer, self.device
        )
        self.sampler = Sampler(groups_of_clips, mixture, args.batch_seconds, seed)
        self.sampler.progress, self.sampler.difficulty = self.elapsed / args.seconds, self.difficulty
        self.rng = np.random.default_rng(seed)
        for group in groups_of_clips:
            self.log(
                f"{group.name}: {group.sizes.size} clips, {group.sizes.sum() / SAMPLE_RATE / 3600:.2f} h"
            )
        size = sum(p.numel() for p in self.model.parameters()) / 1e6
        options = {key: value for key, value in vars(args).items() if not isinstance(value, Path)}
        self.log(
            f"{size:.2f} M parameters, {self.world} {self.device.type}, torch {torch.__version__}, {options}"
        )

    def log(self, line: str) -> None:
        if self.rank == 0:
            stamped = f"{self.elapsed:6.1f} s  {line}"
            print(stamped, flush=True)
            with (self.args.work / "train.log").open("a") as file:
                file.write(stamped + "\n")

    def resume(self) -> None:
        path = self.args.work / "last.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.log(f"resumed at step {self.step}")

    def save(self) -> None:
        if self.rank == 0:
            state = {
                "model": self.model.state_dict(),
                "average": self.average.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "elapsed": self.elapsed,
            }
            temporary = self.args.work / "last.tmp"
            torch.save(state, temporary)
            temporary.rename(self.args.work / "last.pt")
            torch.save(
                {key: value.half() for key, value in state["average"].items()}, self.args.work / "average.pt"
            )

    @property
    def difficulty(self) -> float:
        """0 to 1 over the first `--ramp` of the training: short and clean speech first."""
        return min(1.0, self.elapsed / self.args.seconds / self.args.ramp) if self.args.ramp else 1.0

    def losses(self, plan: Plan) -> torch.Tensor:
        """Losses of one batch for "rnnt", "tdt", "ctc"."""
        plan = plan.to(self.device)
        with torch.no_grad():
            samples = augment_samples(assemble(self.pcm, plan), plan.lengths, self.difficulty)
            features = warp_features(self.mel(samples, plan.lengths)[0], plan)
            features = mask_features(features, plan.frames, self.difficulty)
        context = (LEFT_CONTEXT, int(self.rng.choice(LOOKAHEADS, p=LOOKAHEAD_SHARES)))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bf16):
            return self.parallel(features, plan, context)

    def evaluate(self) -> None:
        """Log the dev word error rate of every head with the averaged weights."""
        results = []
        for lookahead in (LOOKAHEADS[0], LOOKAHEADS[-1]):
            for name, rows in recognise(self.average.model, self.mel, self.dev_clips, lookahead).items():
                errors, words = word_error_rate(self.dev_texts, self.tokenizer.decode(rows))
                results.append(f"{name}@{lookahead} {100 * errors / words:.2f}")
        self.log(f"dev WER % at step {self.step}: {', '.join(results)}")

    def run(self) -> None:
        args = self.args
        weights = torch.tensor(list(LOSS_WEIGHTS.values()), device=self.device)
        began, before = time.monotonic(), self.elapsed
        stop = min(args.seconds, before + args.stop_after)
        next_evaluation = before + args.evaluate_every
        recent: list[torch.Tensor] = []
        self.model.train()
        for plan in self.sampler:
            progress = self.elapsed / args.seconds
            self.sampler.progress, self.sampler.difficulty = progress, self.difficulty
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(progress, args.lr, args.warmup)
            losses = self.losses(plan)
            (losses * weights).sum().backward()
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), args.clip)
            # The fused optimiser changes nothing where this is 1: one bad batch must not end the training.
            self.optimiser.found_inf = (~norm.isfinite()).float()
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            self.step += 1
            self.average.update(self.model, self.step)
            recent.append(torch.cat((losses.detach(), norm.view(1))))
            if self.step % 20 == 0:
                self.elapsed = self.agree(before + time.monotonic() - began)
                if self.step % 200 == 0:
                    rnnt, tdt, ctc, norm_ = torch.stack(recent).mean(0).tolist()
                    self.log(f"step {self.step} rnnt {rnnt:.3f} tdt {tdt:.3f} ctc {ctc:.3f} norm {norm_:.2f}")
                    recent = []
                if self.elapsed >= stop:
                    break
                if self.elapsed >= next_evaluation:
                    next_evaluation = self.elapsed + args.evaluate_every
                    if self.rank == 0:
                        self.evaluate()
                        self.save()
        if self.rank == 0:
            self.evaluate()
            self.save()
        self.log(f"stopped at step {self.step}")
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()

    def agree(self, elapsed: float) -> float:
        """The clock of rank 0, so that all ranks stop at the same step."""
        if self.world == 1:
            return elapsed
        shared = torch.tensor(elapsed, device=self.device, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stores", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seconds", type=float, required=True, help="length of the whole training")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="seconds until this part stops")
    parser.add_argument("--evaluate-every", type=float, default=60.0)
    parser.add_argument(
        "--batch-seconds", type=float, default=320.0, help="padded audio of a batch, on each GPU"
    )
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--warmup", type=float, default=0.08, help="share of the training in which the rate rises"
    )
    parser.add_argument(
        "--ramp", type=float, default=0.3, help="share of the training in which difficulty rises"
    )
    parser.add_argument(
        "--bf16", action="store_true", help="autocast; on an H200 no faster than TF32 at this size"
    )
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--clip", type=float, default=2.0)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--average", type=int, default=600, help="steps that the averaged weights look back")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--shape",
        nargs="*",
        default=[],
        type=lambda text: text.split("="),
        help="sizes to change, as num_layers=2",
    )
    Trainer(parser.parse_args()).run()


if __name__ == "__main__":
    main()

"""Draws the record of a decode benchmark: milliseconds against batch size, or against adversarial rows.

    python benchmarks/plots.py benchmarks/results/decode.json benchmarks/results

matplotlib is needed for nothing else: pip install matplotlib
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

# Key of a series, its name, colour, marker and line.
SERIES = [
    ("ours", "ours", "#0072B2", "o", "-"),
    ("nemo", "NeMo, full graph", "#D55E00", "s", "-"),
    ("nemo-partial", "NeMo, partial graphs", "#E69F00", "^", "-"),
    ("nemo-eager", "NeMo, eager", "#CC79A7", "v", "-"),
    ("transformers", "transformers", "#009E73", "D", "-"),
    ("floor", "floor", "#777777", "", "--"),
]
MODELS = {"rnnt": "RNN-T", "tdt": "TDT"}

Row = dict[str, Any]


def draw(record: dict[str, Any], folder: Path) -> list[Path]:
    """Write SVG files for a record, as `benchmarks/decode.py` makes it, into `folder`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = record["rows"]
    where = f"{record['where']['device']}, commit {record['where']['commit']}"
    if record["settings"]["kind"] == "adversarial":
        path = folder / "adversarial.svg"
        title = f"Decoding against the share of rows that emit max_symbols on every frame\n{where}"
        _figure(rows, path, title, "share of such rows", _share_axis, lambda row: row["adversarial_share"])
        return [path]
    paths = []
    for frames, lengths in sorted({(row["frames"], row["lengths"]) for row in rows}):
        chosen = [row for row in rows if (row["frames"], row["lengths"]) == (frames, lengths)]
        path = folder / f"decode_T{frames}_{lengths}.svg"
        title = f"Decoding against batch size: {frames} frames, {lengths} lengths\n{where}"
        _figure(chosen, path, title, "batch size", _batch_axis, lambda row: row["batch"])
        paths.append(path)
    return paths


def series(rows: list[Row], key: str, x: Callable[[Row], float]) -> list[tuple[float, float]]:
    """The points (x, ms) of one series, where it was measured, in the order of x."""
    points = []
    for row in rows:
        own = key in ("ours", "floor")
        ms = row[f"{key}_ms"] if own else row["peers"].get(key, {}).get("ms")
        if ms is not None:
            points.append((x(row), ms))
    return sorted(points)


def _figure(
    rows: list[Row],
    path: Path,
    title: str,
    x_name: str,
    style_x: Callable[[Any, list[Row]], None],
    x: Callable[[Row], float],
) -> None:
    plt = _pyplot()
    models = [model for model in MODELS if any(row["model"] == model for row in rows)]
    dtypes = sorted({row["dtype"] for row in rows})
    grid = {"squeeze": False, "sharex": True, "sharey": True, "layout": "constrained"}
    # Text stays text, and the same figures give the same file.
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name, "font.size": 9}):
        size = (1.0 + 3.2 * len(dtypes), 1.3 + 2.4 * len(models))
        figure, axes = plt.subplots(len(models), len(dtypes), figsize=size, **grid)
        handles: dict[str, Any] = {}
        for line, model in zip(axes, models, strict=True):
            for panel, dtype in zip(line, dtypes, strict=True):
                here = [row for row in rows if (row["model"], row["dtype"]) == (model, dtype)]
                for key, name, colour, marker, dash in SERIES:
                    if points := series(here, key, x):
                        (handles[name],) = panel.plot(
                            *zip(*points, strict=True),
                            color=colour, marker=marker, linestyle=dash, markersize=4, linewidth=1.6,
                        )  # fmt: skip
                panel.set_title(f"{MODELS[model]}, {dtype}", fontsize=9)
                panel.set_yscale("log")
                panel.yaxis.set_major_formatter("{x:g}")
                panel.grid(color="#dddddd", linewidth=0.6)
                panel.spines[["top", "right"]].set_visible(False)
                style_x(panel, rows)
                panel.minorticks_off()
            line[0].set_ylabel("ms a batch")
        for panel in axes[-1]:
            panel.set_xlabel(x_name)
        figure.suptitle(title, fontsize=9)
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
        )
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def _batch_axis(panel: Any, rows: list[Row]) -> None:
    batches = sorted({row["batch"] for row in rows})
    panel.set_xscale("log", base=2)
    panel.set_xticks(batches, labels=[str(batch) for batch in batches])


def _share_axis(panel: Any, rows: list[Row]) -> None:
    shares = sorted({row["adversarial_share"] for row in rows})
    # Logarithmic, and yet with a place for 0.
    panel.set_xscale("symlog", base=2, linthresh=min((s for s in shares if s > 0), default=1.0))
    panel.set_xticks(shares, labels=[str(Fraction(share).limit_denominator(1024)) for share in shares])


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise SystemExit(
            "plots need matplotlib; expected it to be installed: pip install matplotlib"
        ) from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(f"usage: {sys.argv[0]} RECORD.json FOLDER")
    for drawn in draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])):
        print(drawn)

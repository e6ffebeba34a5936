"""The command that draws the figures of the documentation from what a run wrote: ``python -m benchmarks.figures FILE ...``

The files come from ``--json`` of ``benchmarks.dense.sweeps`` and ``benchmarks.factored.sweeps``. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from benchmarks.core.case import NUMPY, OURS, TORCH
from benchmarks.core.machine import TORCH_ALONE
from benchmarks.core.table import bytes_text, duration
from benchmarks.dense.sweeps import DIRECT, FIRST, INDEXED, KEPT, POLICIES
from benchmarks.factored.sweeps import DENSE, FACTORED, FACTORED_FIRST

Axes: TypeAlias = Any
Figure: TypeAlias = Any
FOLDER = Path(__file__).resolve().parent.parent / "docs" / "figures"
LIMIT, EMPTY = "limit: bytes / read bandwidth", "limit: an empty call"
DOTS_PER_INCH = 150
COLOURS = 64  # enough for smooth edges, and a third of the bytes
TITLE_INCHES, LEGEND_INCHES = 0.62, 0.55
LABELS_IN_A_ROW = 4


class Style(NamedTuple):
    """Colour, marker and dashes of a label."""

    colour: str
    marker: str
    dashes: Any = "-"


# Okabe and Ito's colours, which colour-blind readers can tell apart; markers and dashes differ as well.
BLUE, GREEN, RED, ORANGE, PINK = "#0072B2", "#009E73", "#D55E00", "#E69F00", "#CC79A7"
STYLES = {
    DIRECT: Style(BLUE, "o"),
    INDEXED: Style(GREEN, "s"),
    NUMPY: Style(ORANGE, "^"),
    KEPT: Style(ORANGE, "v", "--"),
    TORCH: Style(PINK, "D"),
    LIMIT: Style("#000000", "", ":"),
    EMPTY: Style("#777777", "", (0, (6, 2, 1, 2))),
    POLICIES["off"]: Style(BLUE, "o"),
    POLICIES["auto"]: Style(RED, "X"),
    POLICIES["eager"]: Style(GREEN, "s"),
    FIRST: Style(ORANGE, "v", "--"),
    DENSE: Style(ORANGE, "^"),
    FACTORED_FIRST: Style(BLUE, "o"),
    FACTORED: Style(GREEN, "s"),
    OURS: Style(BLUE, "o"),
    "limit": Style("#000000", "|"),
}


Point: TypeAlias = tuple[Any, float, float, float]  # x, median and quartiles
Panels: TypeAlias = dict[str, dict[str, list[Point]]]  # points by label, by title
Results: TypeAlias = Sequence[Mapping[str, Any]]


def panels_of(results: Results, limits: Mapping[str, Any]) -> Panels:
    """The points of one figure, with the limits of the run; facts are a panel of their own, the last."""
    panels: Panels = {}
    for labels, result in ((result["labels"], result) for result in results):
        points = panels.setdefault(labels["panel"], {})
        for label, timing in timings_of(result).items():
            points.setdefault(label, []).append((labels["x"], timing["median"], timing["lower"], timing["upper"]))
        for label, value in limits_of(result, limits):
            points.setdefault(label, []).append((labels["x"], value, value, value))
    for labels, result in ((result["labels"], result) for result in results):
        for label, value in result["facts"].items():
            point = (labels["x"], value, value, value)
            panels.setdefault(labels["facts"], {}).setdefault(label, []).append(point)
    return panels


def timings_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The timings, torch's with all threads and with one as the faster of both."""
    timings = dict(result["timings"])
    if TORCH in timings:
        alone = timings.pop(TORCH_ALONE, timings[TORCH])
        timings[TORCH] = min(alone, timings[TORCH], key=lambda timing: float(timing["median"]))
    return timings


def limits_of(result: Mapping[str, Any], limits: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The limits of a point, by label: of reading, of an empty call, or of each number of threads."""
    if result["limit"] not in limits["rates"]:
        return
    seconds = {count: result["work"] / limit["rate"] for count, limit in limits["rates"][result["limit"]].items()}
    if result["labels"]["figure"] == "threads":
        yield from ((f"limit, {count} thread{'s' if count != '1' else ''}", taken) for count, taken in seconds.items())
        return
    yield LIMIT, seconds[max(seconds, key=int)]
    if INDEXED in result["timings"]:
        yield EMPTY, next(iter(limits["calls"].values()))["median"]


def about_text(content: Mapping[str, Any]) -> str:
    """Machine, versions and threads in two lines."""
    about, reads = content["about"], content["limits"]["rates"]["read"]
    rates = " and ".join(f"{limit['rate'] / 1e9:.3g} GB/s with {count} thread(s)" for count, limit in reads.items())
    versions = ", ".join(f"{library} {about[library.lower()]}" for library in ("attncache", "NumPy", "torch"))
    return f"{about['machine']}, reads {rates}\n{versions}"


def draw(name: str, results: Results, content: Mapping[str, Any], folder: Path) -> Path:
    """Draw one figure, and return its file."""
    mpl, pictures = importlib.import_module("matplotlib"), importlib.import_module("matplotlib.figure")
    panels = panels_of(results, content["limits"])
    settings = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9.5}
    with mpl.rc_context(settings):
        kind = {"threads": bars, "top-k-hard-rows": kinds}.get(name, lines)
        figure, axes = kind(pictures.Figure, panels, results[0]["labels"]["x_label"])
        height = figure.get_figheight()
        bottom, top = LEGEND_INCHES / height, 1 - TITLE_INCHES / height
        figure.get_layout_engine().set(rect=(0, bottom, 1, top - bottom), w_pad=0.08, h_pad=0.06)
        figure.text(0.01, 1 - 0.09 / height, results[0]["labels"]["title"], weight="bold", size=11, va="top")
        figure.text(0.01, 1 - 0.34 / height, about_text(content), size=7.5, color="#555555", va="top")
        shown = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        columns = min(len(shown), LABELS_IN_A_ROW)
        figure.legend(shown.values(), shown.keys(), loc="lower center", ncols=columns, frameon=False, fontsize=8.5)
        folder.mkdir(parents=True, exist_ok=True)
        file, pixels = folder / f"{name}.png", BytesIO()
        figure.savefig(pixels, dpi=DOTS_PER_INCH)
        images = importlib.import_module("PIL.Image")  # comes with matplotlib
        images.open(pixels).convert("RGB").quantize(COLOURS).save(file, optimize=True)
    return file


def lines(new_figure: Any, panels: Panels, x_label: str) -> tuple[Figure, list[Axes]]:
    """Curves over two log axes, two panels in a row; the band is from quartile to quartile."""
    rows = -(-len(panels) // 2)
    figure = new_figure(figsize=(9.6, 3.1 * rows + TITLE_INCHES + LEGEND_INCHES), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).ravel().tolist()
    for ax, (title, curves) in zip(axes, panels.items(), strict=False):
        for label, points in curves.items():
            colour, marker, dashes = STYLES[label]
            xs, medians, lowers, uppers = zip(*points, strict=True)
            ax.plot(xs, medians, color=colour, marker=marker, ls=dashes, lw=1.6, ms=4.5, label=label)
            if marker:
                ax.fill_between(xs, lowers, uppers, color=colour, alpha=0.18, lw=0)
        ax.set_xscale("log", base=2)
        ticks = [x for x, *_ in max(curves.values(), key=len)]
        in_thousands = max(ticks) > 1 << 14
        ax.set_xticks(ticks, [f"{x // 1024}k" if in_thousands and x % 1024 == 0 else f"{x}" for x in ticks])
        ax.minorticks_off()
        ax.set_xlabel(x_label)
        log_axis(ax, "y", bytes_text if title.startswith("memory") else duration)
        ax.set_title(title, loc="left")
    return figure, axes[: len(panels)]


def kinds(new_figure: Any, panels: Panels, _x_label: str) -> tuple[Figure, list[Axes]]:
    """One dot for each contender above each name, side by side."""
    figure = new_figure(figsize=(9.6, 2.5 * len(panels) + TITLE_INCHES + LEGEND_INCHES), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False).ravel().tolist()
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        names = [x for x, *_ in next(iter(curves.values()))]
        dots = [label for label in curves if label != LIMIT]
        for label, points in curves.items():
            colour, marker, dashes = STYLES[label]
            xs, medians, lowers, uppers = zip(*points, strict=True)
            if label == LIMIT:
                ax.axhline(max(medians), color=colour, ls=dashes, lw=1.6, label=label)
                continue
            shift = 0.13 * (dots.index(label) - (len(dots) - 1) / 2)
            at = [names.index(name) + shift for name in xs]
            ax.vlines(at, lowers, uppers, color=colour, lw=2.5, alpha=0.4)
            ax.plot(at, medians, color=colour, marker=marker, ls="", ms=6, label=label)
        ax.set_xticks(range(len(names)), names)
        ax.tick_params(axis="x", length=0)
        log_axis(ax, "y", duration)
        ax.set_title(title, loc="left")
    return figure, axes


def bars(new_figure: Any, panels: Panels, x_label: str) -> tuple[Figure, list[Axes]]:
    """A row for each operation with a dot for each contender: hollow for one thread, filled for more."""
    (curves,) = panels.values()
    names = [x for x, *_ in next(iter(curves.values()))]
    figure = new_figure(figsize=(9.6, 0.62 * len(names) + 0.7 + TITLE_INCHES + LEGEND_INCHES), layout="constrained")
    ax = figure.subplots()
    for label, points in curves.items():
        contender, _, how = label.partition(", ")
        style, is_limit, alone = STYLES[contender], contender == "limit", how in {"", "1 thread"}
        shift = -0.13 if contender in {OURS, "limit"} else 0.1
        ax.plot(
            [median for _, median, *_ in points],
            [names.index(name) + shift for name, *_ in points],
            ls="",
            marker=style.marker,
            ms=15 if is_limit else 6.5,
            mec=style.colour,
            mfc="white" if alone else style.colour,
            mew=(1.2 if alone else 2.6) if is_limit else 1.4,
            label=label,
        )
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    log_axis(ax, "x", duration)
    ax.set_xlabel(x_label)
    for row in range(1, len(names)):
        ax.axhline(row - 0.5, color="#dddddd", lw=0.8)
    return figure, [ax]


def log_axis(ax: Axes, which: str, text: Any) -> None:
    """A log axis in readable units, with a faint grid."""
    ticker = importlib.import_module("matplotlib.ticker")
    axis = ax.yaxis if which == "y" else ax.xaxis
    (ax.set_yscale if which == "y" else ax.set_xscale)("log")
    axis.set_major_locator(ticker.LogLocator(base=10, numticks=20))
    axis.set_minor_locator(ticker.LogLocator(base=10, subs=(2, 5), numticks=20))
    readable = ticker.FuncFormatter(lambda value, _: text(value))
    axis.set_major_formatter(readable)
    low, high = axis.get_view_interval()
    short = high / low < 100  # fewer than two decades: their ends alone would say too little
    axis.set_minor_formatter(readable if short else ticker.NullFormatter())
    ax.grid(axis=which, which="major", color="#dddddd", lw=0.8)
    ax.set_axisbelow(True)
    if which == "y":
        times = "time of all" if ax.get_xlabel() == "questions" else "time of a call"
        ax.set_ylabel(times if text is duration else "bytes of a layer")


def pays_from(results: Results) -> Iterator[str]:
    """From how many rows on it is cheaper to compute a pattern first, by length, where the pattern fits."""
    row, _, first, *_ = panels_of(results, {"rates": {}}).values()
    for (seq, dense, *_), (_, factored, *_), (_, made, *_) in zip(
        row[DENSE], row[FACTORED_FIRST], first[DENSE], strict=False
    ):
        rows = made / max(factored - dense, 1e-12)
        yield f"{seq} positions: computing the pattern first pays from {rows:.0f} rows on"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw every figure that the files hold, and print where it is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="what --json wrote")
    parser.add_argument("--only", action="append", metavar="NAME", help="one figure; may be repeated")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures go; docs/figures by default")
    options = parser.parse_args(arguments)
    for file in options.files:
        content = json.loads(file.read_text(encoding="utf-8"))
        if "--quick" in content["about"]["command"] and options.folder == FOLDER:
            parser.error(
                f"{file} is of a --quick run: its numbers do not belong into the documentation; name a --folder"
            )
        found = [result for result in content["results"] if "figure" in result["labels"]]
        for name in dict.fromkeys(result["labels"]["figure"] for result in found):
            if options.only is None or name in options.only:
                results = [result for result in found if result["labels"]["figure"] == name]
                print(draw(name, results, content, options.folder))
                if name == "factored-by-seq":
                    print("\n".join(pays_from(results)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

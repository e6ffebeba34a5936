"""How the figures look. Needs matplotlib, which is imported only when something is drawn."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from benchmarks.case import NUMPY, OURS, TORCH
from benchmarks.curves import DIRECT, EMPTY, INDEXED, KEPT, LIMIT, Picture, threads_label
from benchmarks.factored_pictures import DENSE, FACTORED, FACTORED_FIRST
from benchmarks.pictures import FIRST, POLICIES
from benchmarks.table import duration

Axes: TypeAlias = Any
Figure: TypeAlias = Any


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
}
DOTS_PER_INCH = 150
COLOURS = 64  # enough for smooth edges, and a third of the bytes
TITLE_INCHES, LEGEND_INCHES = 0.62, 0.55
LABELS_IN_A_ROW = 4


def draw(picture: Picture, about: str, folder: Path) -> Path:
    """Draw one figure, and return its file. about: machine, versions and threads, below the title."""
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure as NewFigure  # noqa: PLC0415

    settings = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9.5}
    with mpl.rc_context(settings):
        figure, axes = {"lines": lines, "kinds": kinds, "bars": bars}[picture.kind](NewFigure, picture)
        height = figure.get_figheight()
        bottom, top = LEGEND_INCHES / height, 1 - TITLE_INCHES / height
        figure.get_layout_engine().set(rect=(0, bottom, 1, top - bottom), w_pad=0.08, h_pad=0.06)
        figure.text(0.01, 1 - 0.09 / height, picture.title, weight="bold", size=11, va="top")
        figure.text(0.01, 1 - 0.34 / height, about, size=7.5, color="#555555", va="top")
        shown = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        columns = min(len(shown), LABELS_IN_A_ROW)
        figure.legend(shown.values(), shown.keys(), loc="lower center", ncols=columns, frameon=False, fontsize=8.5)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{picture.name}.png"
        pixels = BytesIO()
        figure.savefig(pixels, dpi=DOTS_PER_INCH)
        images = importlib.import_module("PIL.Image")  # comes with matplotlib
        images.open(pixels).convert("RGB").quantize(COLOURS).save(file, optimize=True)
    return file


def lines(new_figure: Any, picture: Picture) -> tuple[Figure, list[Axes]]:
    """Curves over two log axes, two panels in a row; the band is from quartile to quartile."""
    rows = (len(picture.panels) + 1) // 2
    figure = new_figure(figsize=(9.6, 3.1 * rows + TITLE_INCHES + LEGEND_INCHES), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).ravel().tolist()
    for ax, panel in zip(axes, picture.panels, strict=False):
        for label, curve in panel.curves.items():
            colour, marker, dashes = STYLES[label]
            ax.plot(curve.xs, curve.medians, color=colour, marker=marker, ls=dashes, lw=1.6, ms=4.5, label=label)
            if marker:
                ax.fill_between(curve.xs, curve.lowers, curve.uppers, color=colour, alpha=0.18, lw=0)
        ax.set_xscale("log", base=2)
        ticks = max((curve.xs for curve in panel.curves.values()), key=len)
        ax.set_xticks(ticks, [count_text(x, ticks) for x in ticks])
        ax.minorticks_off()
        ax.set_xlabel(panel.x_label)
        (bytes_axis if panel.unit == "bytes" else partial(seconds_axis, which="y"))(ax)
        ax.set_title(panel.title, loc="left")
    return figure, axes


def count_text(count: float | str, ticks: Sequence[float | str]) -> str:
    """A tick; in thousands of 1024 where the largest would not fit."""
    largest = max(float(tick) for tick in ticks)
    return f"{int(count) // 1024}k" if largest > 1 << 14 and int(count) % 1024 == 0 else f"{count}"


def kinds(new_figure: Any, picture: Picture) -> tuple[Figure, list[Axes]]:
    """One dot for each contender above each name, side by side."""
    rows = len(picture.panels)
    figure = new_figure(figsize=(9.6, 2.5 * rows + TITLE_INCHES + LEGEND_INCHES), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False).ravel().tolist()
    for ax, panel in zip(axes, picture.panels, strict=True):
        names = list(next(iter(panel.curves.values())).xs)
        dots = [label for label in panel.curves if label != LIMIT]
        for label, curve in panel.curves.items():
            colour, marker, dashes = STYLES[label]
            if label == LIMIT:
                ax.axhline(max(curve.medians), color=colour, ls=dashes, lw=1.6, label=label)
                continue
            shift = 0.13 * (dots.index(label) - (len(dots) - 1) / 2)
            at = [names.index(name) + shift for name in curve.xs]
            ax.vlines(at, curve.lowers, curve.uppers, color=colour, lw=2.5, alpha=0.4)
            ax.plot(at, curve.medians, color=colour, marker=marker, ls="", ms=6, label=label)
        ax.set_xticks(range(len(names)), names)
        ax.tick_params(axis="x", length=0)
        seconds_axis(ax, "y")
        ax.set_title(panel.title, loc="left")
    return figure, axes


def bars(new_figure: Any, picture: Picture) -> tuple[Figure, list[Axes]]:
    """A row for each operation with a dot for each contender: hollow for one thread, filled for more."""
    (panel,) = picture.panels
    names = list(next(iter(panel.curves.values())).xs)
    figure = new_figure(figsize=(9.6, 0.62 * len(names) + 0.7 + TITLE_INCHES + LEGEND_INCHES), layout="constrained")
    ax = figure.subplots()
    colours = {
        OURS: Style(BLUE, "o"),
        TORCH: Style(PINK, "D"),
        NUMPY: Style(ORANGE, "^"),
        "limit": Style("#000000", "|"),
    }
    shifts = {OURS: -0.13, "limit": -0.13, TORCH: 0.1, NUMPY: 0.1}
    for label, curve in panel.curves.items():
        contender = label.partition(",")[0]
        style = colours[contender]
        alone = label in {NUMPY, threads_label(contender, 1)}
        at = [names.index(name) + shifts[contender] for name in curve.xs]
        size = 15 if contender == "limit" else 6.5
        fill = "white" if alone else style.colour
        width = (1.2 if alone else 2.6) if contender == "limit" else 1.4
        ax.plot(
            curve.medians, at, ls="", marker=style.marker, ms=size, mec=style.colour, mfc=fill, mew=width, label=label
        )
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    seconds_axis(ax, "x")
    ax.set_xlabel(panel.x_label)
    for row in range(1, len(names)):
        ax.axhline(row - 0.5, color="#dddddd", lw=0.8)
    return figure, [ax]


def bytes_axis(ax: Axes) -> None:
    """A log axis in readable units of memory, with a faint grid."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: PLC0415

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(base=10, numticks=20))
    ax.yaxis.set_minor_locator(LogLocator(base=10, subs=(2, 5), numticks=20))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda n_bytes, _: bytes_text(n_bytes)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y", which="major", color="#dddddd", lw=0.8)
    ax.set_axisbelow(True)
    ax.set_ylabel("bytes of a layer")


def bytes_text(n_bytes: float) -> str:
    """Bytes to three digits in a readable unit of 1000."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= 0.9995 * scale:
            return f"{n_bytes / scale:.3g} {unit}"
    return f"{n_bytes:.0f} B"


def seconds_axis(ax: Axes, which: str) -> None:
    """A log axis in readable units of time, with a faint grid."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: PLC0415

    axis = ax.yaxis if which == "y" else ax.xaxis
    (ax.set_yscale if which == "y" else ax.set_xscale)("log")
    axis.set_major_locator(LogLocator(base=10, numticks=20))
    axis.set_minor_locator(LogLocator(base=10, subs=(2, 5), numticks=20))
    readable = FuncFormatter(lambda seconds, _: duration(seconds))
    axis.set_major_formatter(readable)
    low, high = axis.get_view_interval()
    short = high / low < 100  # fewer than two decades: their ends alone would say too little
    axis.set_minor_formatter(readable if short else NullFormatter())
    ax.grid(axis=which, which="major", color="#dddddd", lw=0.8)
    ax.set_axisbelow(True)
    if which == "y":
        ax.set_ylabel("time of all" if ax.get_xlabel() == "questions" else "time of a call")

"""Draw a run: which block trains when, at which learning rate, and the validation accuracy.

    python train.py fit --config configs/quickstart.yaml --trainer.default_root_dir /tmp/quickstart
    python -m benchmarks.run_picture /tmp/quickstart/lightning_logs/version_0

It reads the `metrics.csv` that the run wrote, and writes `run-light.svg` and `run-dark.svg`.
"""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs/assets"
COLORS = {
    "light": {"text": "#1f2328", "soft": "#59636e", "frozen": "#eaeef2", "trains": "#4f46e5"},
    "dark": {"text": "#f0f6fc", "soft": "#9198a1", "frozen": "#262c36", "trains": "#8b93ff"},
}
WIDTH, LEFT, RIGHT = 720, 96, 16
LANE, GAP, TOP, CURVE = 28, 8, 46, 92


@dataclass(frozen=True, kw_only=True)
class Run:
    """The logged figures of a run."""

    rates: dict[str, list[tuple[float, float]]]
    """Of each block, from the head down: the epoch (in parts of one) and the learning rate."""
    accuracy: list[float]
    """After each epoch, on the validation pictures."""

    @property
    def epochs(self) -> int:
        """How many epochs the run took."""
        return len(self.accuracy)


def main() -> None:
    """Write both pictures."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("run", type=Path, help="the folder that holds the run's metrics.csv")
    arguments.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures go")
    given = arguments.parse_args()
    run = read_run(given.run / "metrics.csv")
    for name, colors in COLORS.items():
        path = given.folder / f"run-{name}.svg"
        path.write_text(draw(run, colors), encoding="utf-8")
        print(f"Written: {path}")


def read_run(path: Path) -> Run:
    """The figures in a `metrics.csv` of Lightning's CSVLogger and LearningRateMonitor."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    accuracy = [float(row["val/acc"]) for row in rows if row["val/acc"]]
    steps = 1 + max(int(row["step"]) for row in rows)
    steps_per_epoch = steps / len(accuracy)
    rates: dict[str, list[tuple[float, float]]] = {}
    for column in (name for name in rows[0] if name.startswith("lr-")):
        points = [(int(row["step"]) / steps_per_epoch, float(row[column] or 0)) for row in rows]
        rates.setdefault(column.split("/")[1], [point for point in points if point[1]])
    order = sorted(rates, key=lambda block: (rates[block][0][0], block != "head", _from_end(block)))
    return Run(rates={block: rates[block] for block in order}, accuracy=accuracy)


def draw(run: Run, colors: dict[str, str]) -> str:
    """An SVG image: a lane for each block, and the accuracy below on the same epochs."""
    lanes = TOP + len(run.rates) * (LANE + GAP)
    height = lanes + CURVE + 52
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        ' font-family="ui-sans-serif, system-ui, sans-serif" font-size="15">',
        f"<title>{_title(run)}</title>",
        _text(LEFT, 20, "Blocks that train, shaded by learning rate", colors["text"]),
    ]
    highest = max(rate for points in run.rates.values() for _, rate in points)
    for number, (block, points) in enumerate(run.rates.items()):
        parts += _lane(run, block, points, TOP + number * (LANE + GAP), highest, colors)
    parts += _curve(run, lanes + 30, colors)
    return "\n".join([*parts, "</svg>", ""])


def _title(run: Run) -> str:
    begins = ", ".join(
        f"{block} from epoch {int(points[0][0])}" for block, points in run.rates.items()
    )
    return f"{begins}. Validation accuracy at the end: {run.accuracy[-1]:.4f}."


def _lane(
    run: Run,
    block: str,
    points: Sequence[tuple[float, float]],
    top: int,
    highest: float,
    colors: dict[str, str],
) -> list[str]:
    """The block's name, a frozen bar, and over it a bar for each epoch in which it trains."""
    begin = int(points[0][0])
    box = f'y="{top}" height="{LANE}"'
    parts = [
        _text(LEFT - 12, top + 18, block, colors["text"], "end"),
        f'<rect x="{LEFT}" {box} width="{_x(run.epochs, run) - LEFT:.1f}" rx="4"'
        f' fill="{colors["frozen"]}"/>',
    ]
    for epoch in range(begin, run.epochs):
        mean = [rate for at, rate in points if int(at) == epoch]
        shade = 0.35 + 0.65 * sum(mean) / len(mean) / highest
        left, right = _x(epoch, run), _x(epoch + 1, run)
        parts.append(
            f'<rect x="{left:.1f}" {box} width="{right - left:.1f}"'
            f' fill="{colors["trains"]}" fill-opacity="{shade:.2f}"/>'
        )
    if begin:
        middle = (LEFT + _x(begin, run)) / 2
        parts.append(_text(middle, top + 18, "frozen", colors["soft"], "middle"))
    return parts


def _curve(run: Run, top: int, colors: dict[str, str]) -> list[str]:
    """The accuracy after each epoch, from 0 to 1."""
    bottom = top + CURVE - 20
    points = [
        (_x(epoch + 1, run), bottom - value * (bottom - top))
        for epoch, value in enumerate(run.accuracy)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    axis = f'stroke="{colors["soft"]}" stroke-opacity="0.4"'
    parts = [
        f'<line x1="{LEFT}" x2="{_x(run.epochs, run):.1f}" y1="{y}" y2="{y}" {axis}/>'
        for y in (top, bottom)
    ]
    parts += [
        _text(LEFT - 12, top + 4, "val/acc 1", colors["soft"], "end"),
        _text(LEFT - 12, bottom + 4, "0", colors["soft"], "end"),
        f'<polyline points="{line}" fill="none" stroke="{colors["trains"]}" stroke-width="2.5"/>',
        _text(points[0][0], points[0][1] + 20, f"{run.accuracy[0]:.2f}", colors["text"], "middle"),
        _text(points[-1][0], points[-1][1] + 20, f"{run.accuracy[-1]:.2f}", colors["text"], "end"),
    ]
    parts += [
        _text(
            (_x(epoch, run) + _x(epoch + 1, run)) / 2,
            bottom + 20,
            str(epoch),
            colors["soft"],
            "middle",
        )
        for epoch in range(run.epochs)
    ]
    return [*parts, _text(LEFT - 12, bottom + 20, "epoch", colors["soft"], "end")]


def _x(epoch: float, run: Run) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * epoch / run.epochs


def _text(x: float, y: float, text: str, color: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}">{text}</text>'


def _from_end(block: str) -> int:
    """Deeper blocks first: by the number at the end of the name, the largest first."""
    return -int("".join(filter(str.isdigit, block)) or 0)


if __name__ == "__main__":
    main()

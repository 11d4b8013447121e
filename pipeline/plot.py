"""Draw the results as figures, in SVG: accuracy against size and speed, what bits cost, what to ship."""

from pathlib import Path

from pipeline.core import files, stage
from pipeline.results import tables


def main() -> None:
    """Read reports/results.csv and, where there is one, sensitivity.csv; write reports/figures/."""
    draw(tables.RESULTS.parent)


def draw(folder: Path) -> None:
    """Draw what the tables of a folder say, into its folder of figures."""
    import vl_convert

    from pipeline.results import charts

    results, layers = (folder / table.name for table in (tables.RESULTS, tables.SENSITIVITY))
    drawn = charts.drawn(tables.read(results), tables.read(layers) if layers.exists() else None)
    for name, chart in drawn.items():
        svg = vl_convert.vegalite_to_svg(chart.to_dict(), vl_version=charts.VEGA_LITE)
        files.write_text(folder / tables.FIGURES.name / f"{name}.svg", svg)


if __name__ == "__main__":
    stage.run(main)

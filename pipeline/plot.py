"""Draw the results as figures, in SVG: accuracy against size and speed, what bits cost, what to ship.

With --templates, write instead the templates by which `dvc plots` draws results.csv.
"""

import argparse
from pathlib import Path

from pipeline.core import files, stage
from pipeline.results import tables

TEMPLATES = Path(".dvc/plots")


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


def write_templates() -> None:
    """Write .dvc/plots/, which is committed: dvc.yaml's plots of results.csv name its files."""
    from pipeline.results import plots

    for name, text in plots.templates().items():
        files.write_text(TEMPLATES / f"{name}.json", text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pipeline.plot", description=__doc__)
    parser.add_argument("--templates", action="store_true", help="only write the templates of `dvc plots`")
    arguments = parser.parse_args()
    with stage.guarded("plot"):
        (write_templates if arguments.templates else main)()

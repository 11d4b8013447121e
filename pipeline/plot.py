"""Draw the results as figures, in SVG: accuracy against size and speed, what bits cost, what to ship."""

from pipeline.core import files, stage
from pipeline.results import tables


def main() -> None:
    """Read reports/results.csv and, where there is one, sensitivity.csv; write reports/figures/."""
    import vl_convert

    from pipeline.results import charts

    results = tables.read(tables.RESULTS)
    layers = tables.read(tables.SENSITIVITY) if tables.SENSITIVITY.exists() else None
    for name, chart in charts.drawn(results, layers).items():
        svg = vl_convert.vegalite_to_svg(chart.to_dict(), vl_version=charts.VEGA_LITE)
        files.write_text(tables.FIGURES / f"{name}.svg", svg)


if __name__ == "__main__":
    stage.run(main)

"""Draw the results as figures: word error rate against size, and each variant's difference to fp32."""

from pipeline.core import files, stage
from pipeline.results import figures, tables


def main() -> None:
    """Read reports/results.csv alone; write reports/figures/wer_vs_size.png and wer.png."""
    from matplotlib import style

    results = tables.read(tables.RESULTS)
    with style.context(["default", figures.STYLE]):
        for name, draw in (("wer_vs_size.png", figures.wer_vs_size), ("wer.png", figures.differences)):
            with files.aside(figures.FIGURES / name) as partial:
                # Without the version of matplotlib the same table gives the same bytes.
                draw(results).savefig(partial, format="png", metadata={"Software": None})


if __name__ == "__main__":
    stage.run(main)

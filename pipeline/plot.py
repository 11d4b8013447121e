"""Draw the results as figures: word error rate against size, differences to fp32, what to ship, each layer's weight."""

from pipeline.core import files, stage
from pipeline.results import decision, figures, tables


def main() -> None:
    """Read reports/results.csv and sensitivity.csv alone; write reports/figures/.

    Earlier studies have no sensitivity.csv, and little speech shows nothing to ship: then those figures are left out.
    """
    from matplotlib import style

    results = tables.read(tables.RESULTS)
    with style.context(["default", figures.STYLE]):
        drawn = {"wer_vs_size.png": figures.wer_vs_size(results), "wer.png": figures.differences(results)}
        if len(shown := decision.shortlist(results)) > 1:
            drawn["answer.png"] = figures.differences(results[results.variant.isin(shown)])
        if tables.SENSITIVITY.exists():
            drawn["sensitivity.png"] = figures.sensitivity(tables.read(tables.SENSITIVITY))
        for name, figure in drawn.items():
            with files.aside(figures.FIGURES / name) as partial:
                # Without the version of matplotlib the same table gives the same bytes.
                figure.savefig(partial, format="png", metadata={"Software": None})


if __name__ == "__main__":
    stage.run(main)

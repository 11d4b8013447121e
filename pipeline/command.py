"""Choose, look into and export quantized variants of Whisper.

Reads what 'dvc repro' has found (reports/) or, with --study, a study that was kept. Exit status: 0 done; 1 refused, or
nothing fits; 2 a command that cannot be read.
"""

from enum import StrEnum
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.core import params, stage
from pipeline.core.errors import UserError, suggestion

if TYPE_CHECKING:
    from pandas import DataFrame

    from pipeline.results.tables import Row

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)

Study = Annotated[str | None, typer.Option(metavar="NAME", help="Read studies/NAME/ in place of the last run.")]
Variant = Annotated[str, typer.Argument(help="A key of `variants` in params.yaml, or `candidate`.")]


class Device(StrEnum):
    """What a variant runs on."""

    CPU = "cpu"
    CUDA = "cuda"


class Target(StrEnum):
    """What `export` writes for."""

    HF = "hf"
    CT2 = "ct2"
    GGML = "ggml"
    GGUF = "gguf"


@app.command("list")
def list_variants(study: Study = None) -> None:
    """List all variants: size, the loss that they are shown to stay below on every split, KL, time."""
    with stage.guarded("list"):
        from rich.console import Console
        from rich.table import Table

        from pipeline.results import decision
        from pipeline.results.text import known

        lines = read(study)
        least = decision.margins(lines)
        table = Table(box=None, pad_edge=False)
        for head in ("variant", "MB", "loses less than", "KL", "of fp32's time"):
            table.add_column(head, justify="left" if head == "variant" else "right")
        for row in lines.drop_duplicates("variant").itertuples():
            margin = least[row.variant]
            kl, time = decision.kl(lines, row.variant), decision.time(lines, row)
            table.add_row(
                row.variant, f"{row.size_mb:.1f}", known(margin, "g") if margin else "", known(kl, ".4f"), known(time)
            )
        Console().print(table)


@app.command()
def recommend(
    max_mb: Annotated[float, typer.Option(min=0, help="At most so many MB of weights.")] = inf,
    max_loss: Annotated[
        float, typer.Option(min=0, help="Shown to lose less than so much; 0.3, 0.5 and 1.0 are tested.")
    ] = inf,
    fastest: Annotated[bool, typer.Option("--fastest", help="The fastest of them.")] = False,
    device: Annotated[Device | None, typer.Option(help="Only what runs on it.")] = None,
    study: Study = None,
) -> None:
    """Say which variant to ship: the smallest of --max-loss, else the nearest to fp32 of --max-mb, or the fastest."""
    with stage.guarded("recommend"):
        from pipeline.results import decision

        lines = on_device(read(study), device)
        if fastest and device and (ran := next(iter(lines.device))) != device:
            raise UserError(
                f"times were measured on {ran}, and say nothing of {device}: leave out --fastest or --device"
            )
        goal: decision.Goal = "fastest" if fastest else "smallest" if max_loss < inf else "nearest"
        found = decision.recommend(lines, goal, max_mb, max_loss)
        if found is None:
            bounds = [f"{max_mb:g} MB"] * (max_mb < inf) + [f"a loss below {max_loss:g}"] * (max_loss < inf)
            others = [
                decision.recommend(lines, "smallest", max_loss=max_loss),
                decision.recommend(lines, "nearest", max_mb=max_mb),
            ]
            near = dict.fromkeys(reason(lines, row) for row in others if row is not None)
            raise UserError(f"nothing fits {' and '.join(bounds)}; other choices: {', or '.join(near) or 'none'}")
        print(reason(lines, found))


def reason(lines: "DataFrame", row: "Row") -> str:
    """Return a variant with its size, and the verdicts that speak for it."""
    from pipeline.results import decision
    from pipeline.results.text import verdict

    own = lines[lines.variant == row.variant].itertuples()
    told = "; ".join(f"{each.split}: {verdict(each)}" for each in own)
    kl = decision.kl(lines, row.variant)
    return f"{row.variant}, {row.size_mb:.1f} MB ({told}{f'; KL {kl:.4f} nats a token' if kl < inf else ''})"


@app.command()
def compare(
    before: Variant,
    after: Variant,
    most: Annotated[int, typer.Option(min=1, help="At most so many utterances.")] = 20,
) -> None:
    """Show the utterances that two variants of the last run write otherwise, the second's greatest losses first."""
    with stage.guarded("compare"):
        from rich.console import Console
        from rich.text import Text

        from pipeline.compare import SCORES
        from pipeline.compare import read as scored
        from pipeline.results import changes

        settings = params.read()
        for name in (before, after):
            settings.variant(name)
        found = changes.changed(*(scored(SCORES / f"{name}.json", "score") for name in (before, after)))
        console = Console(highlight=False, soft_wrap=True)
        for change in found[:most]:
            errors = f"{change.errors_before} -> {change.errors} errors"
            console.print(Text(f"{change.split} {change.id}: {errors}", style="bold"))
            line = Text("  ")
            for part in change.parts:
                line.append(f"{part.same} " if part.same else "")
                line.append(f"[-{part.removed}-] " if part.removed else "", style="red strike")
                line.append(f"{{+{part.added}+}} " if part.added else "", style="green")
            console.print(line)
            console.print(Text(f"  said: {change.reference}", style="dim"))
        verdicts = [change.verdict for change in found]
        regressed, improved = verdicts.count("regressed"), verdicts.count("improved")
        print(f"{len(found)} utterances read otherwise: {regressed} regressed, {improved} improved")


@app.command()
def export(
    variant: Variant,
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    to: Annotated[Target, typer.Option(help="Its runtime: Transformers, CTranslate2, whisper.cpp, readers of GGUF.")],
) -> None:
    """Write a variant as a folder that its runtime opens without this project, with a model card."""
    with stage.guarded("export"):
        from pipeline import export as exporting

        exporting.main(variant, to.value, folder)


@app.command()
def review(base: Annotated[str, typer.Argument(metavar="BASE", help="A commit.")] = "main") -> None:
    """Say in Markdown what a change did to accuracy and size, and whether it may land (1: it may not)."""
    with stage.guarded("review"):
        from pipeline import review as reviewing

        raise typer.Exit(reviewing.main(base))


def read(study: str | None) -> "DataFrame":
    """Return results.csv of the last run, or of a study; raise UserError where there is none."""
    from pipeline.results import tables
    from pipeline.study import STUDIES

    if study is None:
        return tables.read(tables.RESULTS)
    folder = STUDIES / study
    if not folder.is_dir():
        known = [path.parent.name for path in STUDIES.glob("*/results.csv")]
        raise UserError(f"there is no study {study!r}{suggestion(study, known)}")
    return tables.read(folder / tables.RESULTS.name)


def on_device(lines: "DataFrame", device: Device | None) -> "DataFrame":
    """Return the lines of variants whose library runs on a kind of device."""
    from pipeline import backends

    able = {name for name in {*lines.backend} if device is None or device in backends.get(name).DEVICES}
    return lines[lines.backend.isin(able)]


if __name__ == "__main__":
    app()

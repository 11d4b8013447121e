"""Choose, look into, use and export quantized variants of Whisper.

Reads what 'dvc repro' has found (reports/) or, with --study, a study that was kept. Exit status: 0 done; 1 refused, or
nothing fits; 2 a command that cannot be read.
"""

import sys
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import Annotated

import typer

import whisper_ptq
from pipeline.core import stage
from pipeline.core.errors import UserError

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)

Study = Annotated[str | None, typer.Option(metavar="NAME", help="Read studies/NAME/ in place of the last run.")]
Variant = Annotated[str, typer.Argument(help="A key of `variants` in params.yaml, or `candidate`.")]


class Device(StrEnum):
    """What a variant runs on."""

    CPU = "cpu"
    CUDA = "cuda"


class Form(StrEnum):
    """What `transcribe` writes."""

    TEXT = "text"
    JSON = "json"
    SRT = "srt"
    VTT = "vtt"


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

        lines = whisper_ptq.results(study)
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

        found = whisper_ptq.recommend(max_mb, max_loss, fastest, device.value if device else None, study)
        print(decision.reason(whisper_ptq.results(study), found))


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

        found = whisper_ptq.compare(before, after)
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
def transcribe(
    recordings: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Any format, rate and length; of a film, its first track.")
    ],
    variant: Annotated[
        str | None,
        typer.Option(
            help="A key of `variants` in params.yaml, or `candidate`.", show_default="what dvc.yaml recommends"
        ),
    ] = None,
    language: Annotated[str, typer.Option(help="Its code, such as de; auto: the model detects it.")] = "auto",
    form: Annotated[Form, typer.Option("--format", help="Subtitles are srt and vtt.")] = Form.TEXT,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a file each there, in place of the terminal.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write anew what is there already.")] = False,
) -> None:
    """Write down what is said in recordings, with its times. A rerun goes on where one ended."""
    with stage.guarded("transcribe"):
        from pipeline import recordings as own
        from pipeline.core import files

        variant = variant or own.shipped()
        targets = own.outputs(recordings, output, form.value) if output else {}
        if not output and form in (Form.SRT, Form.VTT) and len(recordings) > 1:
            raise UserError(f"subtitles of {len(recordings)} recordings need files of their own: add --output FOLDER")
        for path in [path for path, target in targets.items() if target.exists() and not force]:
            print(f"{targets[path]} is there already; --force writes it anew")
            recordings.remove(path)
        if not recordings:
            return
        failed = 0
        for path, heard in zip(recordings, own.transcribe(recordings, variant, language), strict=True):
            if isinstance(heard, UserError):
                print(f"transcribe: {heard}", file=sys.stderr)
                failed += 1
            elif output:
                files.write_text(targets[path], own.FORMATS[form](heard))
                print(f"{targets[path]}: {len(heard.segments)} segments of {heard.duration:.0f} s")
            else:
                title = f"{path}\n" if form == Form.TEXT and len(recordings) > 1 else ""
                print(title + own.FORMATS[form](heard), end="", flush=True)
        if failed:
            raise UserError(f"{failed} of {len(recordings)} recordings could not be read")


@app.command()
def export(
    variant: Variant,
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    to: Annotated[Target, typer.Option(help="Its runtime: Transformers, CTranslate2, whisper.cpp, readers of GGUF.")],
) -> None:
    """Write a variant as a folder that its runtime opens without this project, with a model card."""
    with stage.guarded("export"):
        whisper_ptq.export(variant, folder, to.value)


@app.command()
def review(base: Annotated[str, typer.Argument(metavar="BASE", help="A commit.")] = "main") -> None:
    """Say in Markdown what a change did to accuracy and size, and whether it may land (1: it may not)."""
    with stage.guarded("review"):
        from pipeline import review as reviewing

        raise typer.Exit(reviewing.main(base))


if __name__ == "__main__":
    app()

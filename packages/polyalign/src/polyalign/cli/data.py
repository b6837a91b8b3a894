"""``polyalign data``: validate, count, convert and look at preference data."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from polyalign.records.census import SplitCensus
    from polyalign.records.validation import Findings

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Validate, count, convert and look at preference data.",
)

Data = Annotated[str, typer.Argument(metavar="PATH", help="a .jsonl or .parquet file, a folder of splits, or dataset:NAME")]
Split = Annotated[str | None, typer.Option(help="only this split; default: all")]
Outside = Annotated[bool, typer.Option("--allow-outside", help="media may lie outside the data set's folder")]
Urls = Annotated[bool, typer.Option("--allow-urls", help="media may be fetched over http(s)")]


class Format(StrEnum):
    jsonl = "jsonl"
    parquet = "parquet"


class Layout(StrEnum):
    pairs = "pairs"
    unpaired = "unpaired"
    sft = "sft"


def _resolved(path: str) -> Path:
    from polyalign.assets import resolve_dataset

    return resolve_dataset(path)


def _check_split(path: Path, split: str | None) -> None:
    if split is not None:
        from polyalign.records.files import split_files

        split_files(path, split)


@app.command()
def validate(path: Data, split: Split = None, allow_outside: Outside = False, allow_urls: Urls = False) -> None:
    """Check every line, reference and medium; print file:line:field: reason for each problem, and exit with code 1 if any."""
    from polyalign.records.validation import validate as check

    folder = _resolved(path)
    _check_split(folder, split)
    findings = check(
        folder,
        split=split,
        allow_outside=allow_outside,
        allow_urls=allow_urls,
        report=lambda problem: typer.echo(str(problem)),
    )
    if findings.problems:
        typer.echo()
    for line in _summary(findings):
        typer.echo(line)
    if findings.problems:
        raise typer.Exit(1)


def _summary(findings: Findings) -> list[str]:
    from polyalign.cli.tables import table

    names = list(findings.splits)
    rows = [[label, *(str(count(findings.splits[name])) for name in names)] for label, count in _COUNTS.items()]
    lines = [table(rows, ["", *names]), ""]
    lines += [f"note: {note}" for note in findings.notes]
    for (training, held_out), count in findings.shared_prompts.items():
        total = len(findings.splits[held_out].prompts)
        lines.append(f"warning: {count} of the {total} prompts of {held_out!r} are in {training!r} too")
    if not findings.shared_prompts and len(names) > 1:
        lines.append("no prompt is in both a training and a held-out split")
    if findings.decoded:
        lines.append("media decoded: " + ", ".join(f"{count} {name}" for name, count in sorted(findings.decoded.items())))
    if findings.problems:
        kinds = ", ".join(f"{kind} {count}" for kind, count in findings.kinds.most_common())
        lines.append(f"{len(findings.problems)} problem(s): {kinds}")
    else:
        lines.append("no problems")
    return lines


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _signed(number: float | None) -> str:
    return "-" if number is None else f"{number:+.1f}"


_COUNTS: dict[str, Any] = {
    "records": lambda census: census.records,
    "prompts": lambda census: len(census.prompts),
    "strict pairs": lambda census: census.strict_pairs,
    "ties": lambda census: census.ties,
    "incomparable": lambda census: census.incomparable,
    "duplicate pairs": lambda census: census.duplicate_pairs,
    "contradicting pairs": lambda census: census.contradicting_pairs,
    "pairs of equal responses": lambda census: census.identical_pairs,
    "chosen longer": lambda census: _percent(census.bias.share_longer),
    "  mean difference, characters": lambda census: _signed(census.bias.mean_length_difference),
    "chosen listed first": lambda census: _percent(census.bias.share_first),
}


@app.command()
def stats(path: Data, split: Split = None) -> None:
    """Print what a data set holds: records, feedback, groups, media, and how many examples each view makes of it."""
    from collections import Counter

    from polyalign.errors import RecordError
    from polyalign.records.census import SplitCensus
    from polyalign.records.files import open_file, records_of, splits
    from polyalign.records.views import VIEWS

    folder = _resolved(path)
    _check_split(folder, split)
    for name, files in splits(folder).items():
        if split not in (None, name):
            continue
        census, views = SplitCensus(), Counter(dict.fromkeys(VIEWS, 0))
        try:
            for file in files:
                for record in records_of(open_file(file)):
                    census.add(record)
                    views.update({view: len(make(record, None)) for view, make in VIEWS.items()})
        except RecordError as error:
            raise RecordError(f"{error}\n`polyalign data validate {path}` lists all problems") from error
        _print_census(name, census, views)


def _print_census(name: str, census: SplitCensus, views: Any) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(name, style="bold"), title_justify="left", show_header=False, box=box.SIMPLE)
    table.add_column(style="dim")
    table.add_column()
    for label, count in _COUNTS.items():
        table.add_row(label, Text(str(count(census))))
    table.add_row("candidates per record", Text(_tally(census.candidates, by_name=True)))
    for label in ("feedback", "aspects", "annotators", "groups", "tags", "licences"):
        table.add_row(label, Text(_tally(getattr(census, label))))
    table.add_row("media", Text(f"{_tally(census.media)}, {census.media_bytes / 1e6:.1f} MB" if census.media else "-"))
    table.add_row("examples per view", Text(_tally(views)))
    Console().print(table)


def _tally(counter: Any, by_name: bool = False, most: int = 8) -> str:
    ordered = sorted(counter.items()) if by_name else counter.most_common()
    shown = ", ".join(f"{name}: {count}" for name, count in ordered[:most])
    return (shown + (f" and {len(ordered) - most} more" if len(ordered) > most else "")) or "-"


@app.command()
def convert(
    source: Data,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="a new .jsonl or .parquet file, or a folder")],
    to: Annotated[Format, typer.Option(help="format of the files in a target folder")] = Format.parquet,
    trl: Annotated[Layout | None, typer.Option(help="write TRL columns of this layout instead of records (text only)")] = None,
    split: Split = None,
) -> None:
    """Write a data set as JSON Lines with a media folder, as Parquet with media inside, or in TRL's columns."""
    from polyalign.records.convert import convert as write

    written = write(_resolved(source), target, suffix=f".{to.value}", trl=trl.value if trl else None, split=split)
    for file, rows in written.items():
        typer.echo(f"{file}: {rows} rows")


@app.command("import")
def import_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="the layout (`polyalign list importers`)")],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="a .jsonl, .json or .parquet file, or a folder of splits")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="a new folder, or a .jsonl file for one split")],
    split: Split = None,
    media: Annotated[Path | None, typer.Option(help="folder that paths in rows start from; default: the source's")] = None,
    max_skipped: Annotated[float, typer.Option(min=0, max=1, help="share of bad rows above which the import fails")] = 0.01,
) -> None:
    """Read a foreign data set into records with a media folder; bad rows are named, counted and left out."""
    from polyalign.plugins.registry import registry
    from polyalign.records.importing.run import import_data

    spec = registry().get("importers", name)
    done = import_data(
        spec.load()(), name, source, target, split=split, media=media, max_skipped=max_skipped,
        report=lambda problem: typer.echo(str(problem), err=True),
    )  # fmt: skip
    for file, records in done.written.items():
        typer.echo(f"{file}: {records} records")
    typer.echo(f"{done.rows} rows read, {len(done.problems)} problem(s)")


@app.command()
def export(
    name: Annotated[str, typer.Argument(metavar="NAME", help="the layout; `polyalign list importers` says which can be written")],
    source: Data,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="a new folder")],
) -> None:
    """Write a data set in the layout of another library, for those layouts that can be written."""
    from polyalign.errors import RecordError
    from polyalign.plugins.registry import registry
    from polyalign.plugins.specs import ImporterSpec, load_attribute

    known = [entry.spec for entry in registry().entries("importers") if isinstance(entry.spec, ImporterSpec)]
    spec = registry().get("importers", name)
    assert isinstance(spec, ImporterSpec)
    if spec.exporter is None:
        raise RecordError(f"{name!r} is read only; can be written: {', '.join(one.name for one in known if one.exporter)}")
    for file, rows in load_attribute(spec.exporter, name)(_resolved(source), target).items():
        typer.echo(f"{file}: {rows} rows")


@app.command()
def preview(
    path: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="the HTML page to write")] = Path("preview.html"),
    split: Annotated[str | None, typer.Option(help="split to show; default: train")] = None,
    limit: Annotated[int, typer.Option(min=1, help="show so many records")] = 50,
) -> None:
    """Write one self-contained HTML page that shows records with their media and feedback."""
    from polyalign.records.atomic import atomic_write
    from polyalign.records.preview import preview as render

    page = render(_resolved(path), split=split, limit=limit)
    with atomic_write(out) as file:
        file.write(page.encode())
    typer.echo(f"{out}: {len(page.encode()) / 1e6:.1f} MB")


@app.command()
def levels(
    path: Data,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="the new .jsonl file; media go into a folder beside it")],
    split: Annotated[str, typer.Option(help="the split to rank")] = "train",
    number: Annotated[int, typer.Option("--levels", min=2, help="how many levels; the last is the best fit")] = 8,
    encoder: Annotated[str, typer.Option(help="an encoder of media and text (`polyalign list encoders`)")] = "clip",
    model: Annotated[str | None, typer.Option(help="the encoder's model; default: its own")] = None,
) -> None:
    """Rank candidates by how well text and medium fit, and write the rank's bucket as condition "level" (AlignGPT)."""
    from polyalign.cache import cache_folder
    from polyalign.encoders import CachedEncoder, build_encoder
    from polyalign.errors import RecordError
    from polyalign.evaluation.levels import add_levels
    from polyalign.training.config import Slot

    if target.suffix != ".jsonl":
        raise RecordError(f"{target} does not end in .jsonl; name a JSON Lines file")
    chosen = build_encoder(Slot.model_validate({"name": encoder} | ({"model": model} if model else {})))
    counts = add_levels(_resolved(path), split, target, CachedEncoder(chosen, cache_folder() / "embeddings"), number)
    typer.echo(f"{target}: " + ", ".join(f"level {level}: {count}" for level, count in counts.items()))

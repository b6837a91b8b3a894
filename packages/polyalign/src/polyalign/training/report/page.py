"""report.html: one self-contained page with curves, judges, and outputs before and after."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from polyalign.plugins.registry import registry
from polyalign.training.report.judging import Judgement
from polyalign.training.report.samples import Response
from polyalign.training.tracking import read_metrics
from polyalign.training.trainer import Trained

if TYPE_CHECKING:
    from polyalign.config import Resolved

CURVES = (  # title, metrics drawn together
    ("Loss", ("loss",)),
    ("Margin", ("margin",)),
    ("Implicit accuracy", ("accuracy",)),
    ("Each side's score relative to the reference", ("chosen_log_ratio", "rejected_log_ratio")),
    ("Each side's score", ("chosen_score", "rejected_score")),
    ("Desirable and undesirable, relative to the reference", ("desirable_log_ratio", "undesirable_log_ratio")),
    ("Drift from the reference", ("drift",)),
    ("Reward", ("reward",)),
    ("Divergence from the reference, per decision", ("kl", "rollout/kl")),
    ("Decisions per response", ("rollout/length",)),
    ("Entropy, nats per decision", ("entropy",)),
    ("Gradient norm", ("grad_norm",)),
)


def as_json(judgement: Judgement) -> dict[str, Any]:
    return asdict(judgement)


def render(
    out: Path,
    resolved: Resolved,
    trained: Trained,
    judgements: Sequence[Judgement],
    before: Sequence[Response],
    after: Sequence[Response],
    trusted: Sequence[str] = (),
) -> str:
    """Return the page as a string; nothing in it refers to another file. ``trusted``: how far a reward model is, line by line."""
    recipe = resolved.recipe
    template = jinja2.Environment(autoescape=True).from_string(
        files("polyalign.training.report").joinpath("report.html.j2").read_text()
    )
    rows = read_metrics(out / "metrics.jsonl")
    stride = max(1, len(before) // max(1, recipe.report.show))  # spread over the prompts, which often come sorted by topic
    return template.render(
        recipe=recipe,
        resolved=resolved,
        trained=trained,
        config=resolved.to_yaml(),
        curves=[image for title, names in CURVES if (image := _curve(title, names, rows))],
        judgements=judgements,
        trusted=trusted,
        pairs=[
            (old.prompt_text, _prompt_media(old), _show(old), _show(new))
            for old, new in list(zip(before, after, strict=True))[::stride][: recipe.report.show]
        ],
    )


def _show(response: Response) -> str:
    """Return HTML of one response, escaped: of all that it is made of, in order."""
    return "".join(
        f"<pre>{escape(thing.text or '')}</pre>"
        if thing.data is None or thing.mime is None
        else _medium(thing.modality, thing.data, thing.mime)
        for thing in response.things
    )


def _prompt_media(response: Response) -> str:
    return "".join(_medium(*medium) for medium in response.prompt_media())


def _medium(modality: str, data: bytes, mime: str) -> str:
    return str(registry().get("modalities", modality).load()().preview_html(data, mime))


def _curve(title: str, names: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, str] | None:
    """Return a line plot (PNG data URI): training values thin, held-out values with markers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4.6, 2.9), dpi=110)
    drawn = False
    for number, name in enumerate(names):
        for prefix, style in (("", {"linewidth": 1.0}), ("eval/", {"linewidth": 1.6, "marker": "o", "markersize": 3.5})):
            points = [(row["step"], row[prefix + name]) for row in rows if prefix + name in row]
            if points:
                label = f"{'held-out ' if prefix else 'training '}{name}"
                axes.plot(*zip(*points, strict=True), label=label, color=f"C{number * 2 + bool(prefix)}", **style)
                drawn = True
    if drawn:
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, frameon=False)
        figure.tight_layout()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    pyplot.close(figure)
    return {"title": title, "uri": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"} if drawn else None

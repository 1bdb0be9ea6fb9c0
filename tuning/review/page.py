"""The review as one HTML file: what its template shows."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from cluster.io.page import render
from cluster.io.statistics import CONFIDENCE, wilson
from cluster.io.uris import name_of
from trainers import metrics
from trainers.config import PRETRAINED
from trainers.networks.freezing import name_stages
from trainers.networks.weights.pretrained import describe_weights
from tuning.advice.score import score_advice
from tuning.axes.axis import BACKBONE
from tuning.combine.combinations import (
    Combinations,
    export_command,
    read_combinations,
    tabulate_combinations,
)
from tuning.point import training_of
from tuning.record.record import SweepRecord
from tuning.record.verdict import SweepVerdict, judge, show_p
from tuning.review.charts import draw_cost, draw_depths, draw_importance
from tuning.review.curves import draw_clipping, draw_curves
from tuning.review.figure import NUM_BLENDS, NUM_SHADES, Chart
from tuning.review.parallel import draw_parallel
from tuning.review.pictures import show_predictions
from tuning.review.tables import (
    format_seconds,
    list_choices,
    list_columns,
    list_trials,
    list_work,
    map_heat,
    show_point,
)
from tuning.space import models
from tuning.winner import list_next, reproduce

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A key number."""

    name: str
    value: str
    note: str


def render_page(
    record: SweepRecord, *, pictures: bool = True, refresh_s: int | None = None
) -> bytes:
    """Return the page.

    Args:
        pictures: whether to show images and heat maps, which need the data set and the winner's
            checkpoint.
        refresh_s: the page reloads itself after this many seconds.
    """
    verdict = judge(record)
    predictions = show_predictions(record, pictures=pictures)
    combined = read_combinations(record.out) if record.status == "ended" else None
    charts = {
        "depths": draw_depths(record),
        "parallel": draw_parallel(record),
        "curves": draw_curves(record),
        "clipping": draw_clipping(record),
        "cost": draw_cost(record),
        "importance": draw_importance(record),
        "confusion": predictions and predictions.confusion,
        "makes": predictions and predictions.makes,
    }
    return render(
        HERE / "review.html.j2",
        style=(HERE / "review.css").read_text() + write_scales(),
        scripts=[get_plotlyjs(), (HERE / "review.js").read_text()],
        sweep=record,
        name=name_of(record.out),
        verdict=verdict,
        networks=name_networks(record),
        advice=score_advice(record),
        frozen=verdict.best and record.frozen_of(verdict.best),
        point=show_point(verdict.best) if verdict.best else [],
        tiles=list_tiles(record, verdict),
        lines=list_trials(record),
        columns=list_columns(record),
        choices=list_choices(record),
        heat_maps=map_heat(record),
        work=list_work(record),
        combined=combined and tabulate_combinations(record.out, combined),
        predictions=predictions,
        charts=charts,
        figures=collect_figures(charts.values()),
        facts=list_facts(record),
        commands=list_commands(record, combined),
        refresh_s=refresh_s,
    )


def name_networks(record: SweepRecord) -> str:
    """Write which networks the sweep compares."""
    swept = map(str, record.config.space.values_of(BACKBONE))
    return " or ".join(swept) or record.base.model.backbone


def collect_figures(charts: Sequence[Chart | None] | Any) -> dict[str, Any]:
    """Return the figures of each chart as JSON values, by the reader's choice."""
    return {
        chart.name: {choice: figure.to_plotly_json() for choice, figure in chart.figures.items()}
        for chart in charts
        if chart is not None
    }


def write_scales() -> str:
    """Write the colour scales of the charts as CSS: Plotly's Python takes variables only."""
    blends = {
        f"--blend-{step}": f"color-mix(in oklch, var(--frost) {step / NUM_BLENDS:.0%}, var(--thaw))"
        for step in range(NUM_BLENDS + 1)
    }
    shades = {
        f"--shade-{step}": "color-mix(in oklch, var(--deep) "
        f"{0.15 + 0.85 * step / (NUM_SHADES - 1):.0%}, var(--pale))"
        for step in range(NUM_SHADES)
    }
    return f":root {{{''.join(f'{name}:{css};' for name, css in (blends | shades).items())}}}"


def list_tiles(record: SweepRecord, verdict: SweepVerdict) -> list[Tile]:
    """Return the key numbers."""
    tiles = []
    if verdict.best is not None:
        note = "on validation images"
        if verdict.top1 is not None:
            note = (
                f"{_range(verdict.top1.low, verdict.top1.high)} on {record.num_val_images} images"
            )
        tiles.append(Tile(name="val/top1", value=f"{verdict.best.val_top1:.3f}", note=note))
    if (found := verdict.comparison) is not None:
        note = f"over {record.frozen_of(found.rival).name}"
        if found.wins is not None:
            note += (
                f"; only this trial is right on {found.wins} images, the other on {found.losses}"
            )
            test = "McNemar's exact test"
        else:
            test = "Fisher's exact test, unpaired"
        if found.p_value is not None:
            note += f". {test}: {show_p(found.p_value)}"
        tiles.append(Tile(name="Lead", value=f"{found.lead:+.3f}", note=note))
    if record.test is not None:
        top1, num_images = record.test[metrics.TEST_TOP1], record.test["num_images"]
        bounds = wilson(top1, num_images)
        note = f"{_range(bounds.low, bounds.high)} on {num_images} images, evaluated once"
        if (after := record.test.get(metrics.TEST_CALIBRATED_ECE)) is not None:
            note += f"; ECE {after:.3f} calibrated, {record.test[metrics.TEST_ECE]:.3f} before"
        tiles.append(Tile(name="test/top1", value=f"{top1:.3f}", note=note))
    if (promoted := record.promoted) is not None:
        top1 = promoted[metrics.TEST_TOP1]
        note = (
            f"test/top1 after {promoted['epochs']} epochs on {promoted['train_on']}; "
            f"{_range(top1['low'], top1['high'])}, {promoted['interval']}"
        )
        tiles.append(Tile(name="Promoted", value=f"{top1['mean']:.3f}", note=note))
    states = [row.state for row in record.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    seconds = sum(row.seconds for row in record.trials if row.copied_from is None)
    of_all = f" of {record.num_trials}" if record.num_trials > len(states) else ""
    note = f"{counts or 'none'}; {format_seconds(seconds)} of training"
    tiles.append(Tile(name="Trials", value=f"{len(states)}{of_all}", note=note))
    return tiles


def list_facts(record: SweepRecord) -> list[tuple[str, str]]:
    """Return the network, the data and the code of the results."""
    facts = [
        *(("Network", _describe_network(name)) for name in record.backbones),
        ("Weights", _list_weights(record)),
        ("Data set", record.base.data),
        ("Data fingerprint", record.fingerprint),
        ("Sweep", record.out),
        ("Search", f"{record.config.search}, seed {record.config.seed}"),
    ]
    if (started := record.started) is None:
        return [*facts, ("Commit", "unknown: an older Thaw did not record it")]
    versions = ", ".join(f"{name} {of}" for name, of in started["versions"].items())
    return [
        *facts,
        ("Commit", started["commit"] or "unknown: the code was in no Git repository"),
        ("Versions", versions),
        ("Started", started["started_at"]),
    ]


def _describe_network(name: str) -> str:
    return f"{name}, stages {', '.join(name_stages(name))}"


def _list_weights(record: SweepRecord) -> str:
    """Name the pretrained weights of the space, and their licenses."""
    origins = dict[str, None]()
    for point in models(record.config.space):
        model = training_of(record.base, point).model
        if model.init in PRETRAINED:
            origin, license = describe_weights(model)
            origins[f"{origin} (license: {license or 'none is stated'})"] = None
    return "; ".join(origins) or "none: all are drawn from the seed"


def list_commands(
    record: SweepRecord, combined: Combinations | None = None
) -> list[tuple[str, str]]:
    """Return titles and commands: to reproduce the results, and the next steps."""
    commands: list[tuple[str, str]] = []
    if record.started is not None:
        commands.append(("Run it again", "\n".join(reproduce(record))))
    commands += list_next(record)
    commands += [
        (f"Export the {each.kind}", export_command(record.out, each.kind))
        for each in (combined.kept if combined else ())
    ]
    commands += [("Upload the runs to W&B", command) for command in record.sync]
    again = ["python", "-m", "tuning", "review", "--out", record.out]
    return [*commands, ("Update this page", shlex.join(again))]


def _range(low: float, high: float) -> str:
    return f"{CONFIDENCE:.0%} interval {low:.3f} to {high:.3f}"

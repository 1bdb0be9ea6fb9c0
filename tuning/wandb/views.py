"""Save a sweep's workspaces and reports in W&B; saved again, they change in their place.

SWEEP/wandb_views.json    what W&B calls them, by entity, project and title
"""

import importlib.util
import json
from typing import Any

import wandb

from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.records import read_object
from trainers.tracking import wandb_internals
from tuning.record import SweepRecord
from tuning.wandb.card import read_card

KNOWN = "wandb_views.json"
Saved = dict[str, str]
"""What W&B calls a view: its id, and the name of a workspace."""


def save_views(sweep: str, *, project: str, entity: str | None) -> list[str]:
    """Save the workspaces of a sweep, and the reports where it has ended.

    Args:
        sweep: URI of the sweep's folder.
        entity: user or team; default: that of the key.

    Returns:
        Their URLs.

    Raises:
        UserError: where no sweep is there, wandb-workspaces is missing, or W&B refuses: there is
            no key, it is a wrong one, it may not write there, or the server is out of reach.
    """
    require_workspaces()
    record = SweepRecord.read(sweep)
    uri = storage.join(record.out, KNOWN)
    known: dict[str, Saved] = read_object(uri) if storage.exists(uri) else {}
    deleted = f"; where they were deleted in W&B, delete {uri}" if known else ""
    wandb.setup()  # resets the terminal's settings, so it comes first
    wandb.termsetup(wandb.Settings(silent=True), None)  # the URLs are the caller's to print
    try:
        entity = entity or wandb.Api().default_entity
        if entity is None:
            raise UserError("entity is None: this key has no user; name the team it writes to")
        urls = []
        for view in build_views(entity, project, record):
            urls.append(save_view(view, known))
            storage.write_bytes(uri, json.dumps(known, indent=1).encode())
    except wandb_internals.VIEW_ERRORS as error:
        raise UserError(
            f"project is {project!r}: W&B did not take the views of {record.out} "
            f"({str(error).strip().rstrip('.')}); set WANDB_API_KEY, and WANDB_BASE_URL for a "
            f"server of your own, or leave out --wandb{deleted}"
        ) from error
    return urls


def require_workspaces() -> None:
    """Refuse in one sentence where the optional package is missing.

    Raises:
        UserError: with the command that installs it.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError(
            "wandb needs the package wandb-workspaces to save workspaces and reports: "
            "pip install -e '.[workspaces]', or leave out --wandb"
        )


def build_views(entity: str, project: str, record: SweepRecord) -> list[Any]:
    """Build workspaces, and reports where there is something to report."""
    # An optional package, which takes a second to import.
    from tuning.wandb.reports import build_decision_report, build_model_card
    from tuning.wandb.workspaces import build_run_review, build_sweep_review

    views: list[Any] = [
        build_run_review(entity, project, record.config.group),
        build_sweep_review(entity, project, record.config.group, rungs=record.config.rungs),
    ]
    if record.status == "ended":
        views.append(build_decision_report(entity, project, record))
    if (card := read_card(record)) is not None:
        views.append(build_model_card(entity, project, record, card))
    return views


def save_view(view: Any, known: dict[str, Saved]) -> str:
    """Save a workspace or report, in the place of the one known by its title.

    Args:
        known: what was saved before; the view joins it.

    Returns:
        Its URL.
    """
    is_report = hasattr(view, "title")
    title = f"{view.entity}/{view.project}: {view.title if is_report else view.name}"
    saved = known.get(title, {})
    if is_report:
        view.id = saved.get("id", "")
        view.save()
        known[title] = {"id": view.id}
    else:
        wandb_internals.set_view_id(view, saved)
        view.save()
        known[title] = wandb_internals.get_view_id(view)
    return view.url

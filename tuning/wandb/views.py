"""Save a sweep's workspaces and report in W&B, and the sweep itself; saving again updates them.

SWEEP/wandb_views.json    their ids in W&B, by entity, project and title
"""

import importlib.util
import json
import os
from typing import Any

import wandb

from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.records import read_object
from cluster.wandb_env import (
    drop_empty_variables,
    find_base_url,
    find_login,
    find_setting,
)
from trainers.tracking import wandb_internals
from tuning.record.record import SweepRecord
from tuning.wandb.native_sweep import create_sweep, list_runs, url_of

KNOWN = "wandb_views.json"
Saved = dict[str, str]
"""A view's id in W&B, and the name of a workspace, or the runs of a sweep."""


def save_views(sweep: str, *, project: str, entity: str | None) -> list[str]:
    """Save the workspaces of a sweep; if it has ended, the report and the sweep itself.

    Args:
        sweep: URI of the sweep's folder.
        entity: user or team; default: WANDB_ENTITY, else that of the key.

    Returns:
        Their URLs.

    Raises:
        UserError: if there is no sweep, wandb-workspaces is missing, or W&B refuses: no key, a
            wrong key, no write access, or an unreachable server.
    """
    require_workspaces()
    record = SweepRecord.read(sweep)
    uri = storage.join(record.out, KNOWN)
    known: dict[str, Saved] = read_object(uri) if storage.exists(uri) else {}
    deleted = f"; if they were deleted in W&B, delete {uri}" if known else ""
    # Silent, as the caller prints the URLs. wandb-workspaces takes the key of the session.
    login = wandb.Settings(api_key=find_login(), base_url=find_base_url(), silent=True)
    drop_empty_variables(os.environ)
    wandb.setup(login)
    wandb.termsetup(
        login, None
    )  # in a process that has used W&B, setup leaves the terminal as it is
    try:
        found = find_setting("entity")  # as `wandb.init` of the trials
        entity = entity or (found.value if found else wandb.Api().default_entity)
        if entity is None:
            raise UserError("entity is None, and the API key has no user; give --entity TEAM")
        urls = []
        for view in build_views(entity, project, record):
            urls.append(save_view(view, known))
            storage.write_bytes(uri, json.dumps(known, indent=1).encode())
        if record.status == "ended" and (runs := ",".join(list_runs(record))):
            title = f"{entity}/{project}: sweep"
            if known.get(title, {}).get("runs") != runs:
                known[title] = {"id": create_sweep(entity, project, record), "runs": runs}
                storage.write_bytes(uri, json.dumps(known, indent=1).encode())
            urls.append(url_of(entity, project, known[title]["id"]))
    except wandb_internals.API_ERRORS as error:
        raise UserError(
            f"project is {project!r}: W&B refused the views of {record.out} "
            f"({str(error).strip().rstrip('.')}); set WANDB_API_KEY or log in, and "
            f"WANDB_BASE_URL for a self-hosted server, or leave out --wandb{deleted}"
        ) from error
    return urls


def require_workspaces() -> None:
    """Refuse a missing optional package with the command that installs it."""
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError(
            "wandb needs the package wandb-workspaces to save workspaces and a report: "
            "pip install -e '.[workspaces]', or leave out --wandb"
        )


def build_views(entity: str, project: str, record: SweepRecord) -> list[Any]:
    """Build two workspaces, and a report if the sweep has ended."""
    # An optional package, which takes a second to import.
    from tuning.wandb.report import build_report
    from tuning.wandb.workspaces import build_run_review, build_sweep_review

    group, fields = record.config.group, record.fields
    views: list[Any] = [
        build_run_review(entity, project, group, fields=fields),
        build_sweep_review(entity, project, group, fields=fields, rungs=record.config.rungs),
    ]
    if record.status == "ended":
        views.append(build_report(entity, project, record))
    return views


def save_view(view: Any, known: dict[str, Saved]) -> str:
    """Save a workspace or report, replacing the known one of the same title, and return its URL.

    Args:
        known: the views saved before; this one is added.
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

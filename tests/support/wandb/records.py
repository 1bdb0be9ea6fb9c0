"""What a W&B server keeps of runs and artifacts, and its answers to wandb's GraphQL operations.

The operations are those wandb 0.31 was seen to send; each answer holds the fields it asks for.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

Json = dict[str, Any]
ENTITY, ORGANIZATION = "thaw-tests", "thaw-organization"
HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"
EVENTS, CONSOLE = "wandb-events.jsonl", "output.log"


@dataclass
class Run:
    """What arrived of one run."""

    id: str
    project: str
    display_name: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    stored_config: Json = field(default_factory=dict)
    """As W&B stores it: each value below the key `value`, and its own notes below `_wandb`."""
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    """Of each streamed file, by line number: a line that is sent again replaces the first."""
    is_stopped: bool = False
    """Whether Stop was pressed: the client reads it in the answers to what it streams."""
    exit_code: int | None = None
    """None until the run says that it ended."""
    files: dict[str, bytes] = field(default_factory=dict)
    alerts: list[Json] = field(default_factory=list)
    inputs: list["Artifact"] = field(default_factory=list)
    outputs: list["Artifact"] = field(default_factory=list)

    @property
    def config(self) -> Json:
        return {k: v["value"] for k, v in self.stored_config.items() if k != "_wandb"}

    @property
    def history(self) -> list[Json]:
        """All rows, in the order of their lines."""
        return self._read(HISTORY)

    @property
    def rows(self) -> list[Json]:
        """The rows by global_step; of two rows with one, later values count."""
        rows: dict[int, Json] = {}
        for row in self.history:
            rows[row["global_step"]] = rows.get(row["global_step"], {}) | row
        return list(rows.values())

    @property
    def summary(self) -> Json:
        rows = self._read(SUMMARY)
        return rows[-1] if rows else {}

    def count(self, name: str) -> int:
        """Lines of a streamed file: where a resumed run continues."""
        return 1 + max(self.lines.get(name, {}), default=-1)

    def _read(self, name: str) -> list[Json]:
        return [json.loads(line) for _, line in sorted(self.lines.get(name, {}).items())]


@dataclass
class Artifact:
    """What arrived of one version of an artifact."""

    id: str
    type: str
    name: str
    version: int
    digest: str
    client_id: str
    metadata: Json
    aliases: list[str]
    committed: bool = False
    manifest: Json = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


class Records:
    """Runs and artifacts; `url` is where uploads are sent."""

    def __init__(self) -> None:
        self.url = ""
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.collections: dict[str, dict[str, Artifact]] = {}
        """Of the registry: versions by alias, by ENTITY/PROJECT/NAME."""

    def versions(self, name: str) -> list[Artifact]:
        """Versions of an artifact, oldest first."""
        return [artifact for artifact in self.artifacts.values() if artifact.name == name]

    def find(self, name: str) -> Artifact | None:
        """Find the version that NAME:ALIAS names."""
        collection, _, alias = name.partition(":")
        return next((a for a in self.versions(collection) if alias in a.aliases), None)


def upsert_run(records: Records, sent: Json) -> Json:
    inserted = sent["name"] not in records.runs
    run = records.runs.setdefault(sent["name"], Run(sent["name"], sent["project"]))
    run.display_name = sent["displayName"] or run.display_name
    run.group = sent["groupName"] or run.group
    run.job_type = sent["jobType"] or run.job_type
    run.tags = run.tags if sent["tags"] is None else sent["tags"]
    if sent["config"] is not None:
        run.stored_config = json.loads(sent["config"])
    bucket = {
        "id": run.id,
        "name": run.id,
        "displayName": run.display_name,
        "config": json.dumps(run.stored_config),
        "project": {"id": run.project, "name": run.project, "entity": _ENTITY},
        "historyLineCount": run.count(HISTORY),
    }
    return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}


def resume_status(records: Records, sent: Json) -> Json:
    run = records.runs.get(sent["name"])
    if run is None:
        return {"model": None}
    lines = {name: [line for _, line in sorted(run.lines.get(name, {}).items())[-1:]]
             for name in (HISTORY, EVENTS)}  # fmt: skip
    bucket = {
        "id": run.id,
        "name": run.id,
        "displayName": run.display_name,
        "summaryMetrics": json.dumps(run.summary),
        "config": json.dumps(run.stored_config),
        "wandbConfig": json.dumps({"t": 1}),  # the run has begun
        "tags": run.tags,
        "historyTail": json.dumps(lines[HISTORY]),
        "eventsTail": json.dumps(lines[EVENTS]),
        "historyLineCount": run.count(HISTORY),
        "eventsLineCount": run.count(EVENTS),
        "logLineCount": run.count(CONSOLE),
    }
    return {"model": {"id": run.project, "name": run.project, "entity": _ENTITY, "bucket": bucket}}


def create_run_files(records: Records, sent: Json) -> Json:
    files = [{"name": name, "uploadUrl": _upload_url(records, "runs", sent["run"], name)}
             for name in sent["files"]]  # fmt: skip
    return {"createRunFiles": {"runID": sent["run"], "uploadHeaders": [], "files": files}}


def create_artifact(records: Records, sent: Json) -> Json:
    """A new version, or the last one where its content is the same."""
    wanted = sent["input"]
    name, aliases = wanted["artifactCollectionName"], [a["alias"] for a in wanted["aliases"] or []]
    before = records.versions(name)
    artifact = next((a for a in before if a.committed and a.digest == wanted["digest"]), None)
    if artifact is None:
        number = len(records.artifacts)
        artifact = Artifact(
            id=base64.b64encode(f"Artifact:{number}".encode()).decode(),
            type=wanted["artifactTypeName"],
            name=name,
            version=len(before),
            digest=wanted["digest"],
            client_id=wanted["clientID"],
            metadata=json.loads(wanted["metadata"] or "{}"),
            aliases=[],
        )
        records.artifacts[artifact.id] = artifact
    for other in before:  # an alias names one version
        other.aliases = [alias for alias in other.aliases if alias not in aliases]
    artifact.aliases += aliases
    if wanted["runName"] and artifact not in (outputs := records.runs[wanted["runName"]].outputs):
        outputs.append(artifact)
    latest = {"id": before[-1].id} if before else None
    created = {"id": artifact.id, "state": _state(artifact),
               "artifactSequence": {"latestArtifact": latest}}  # fmt: skip
    return {"createArtifact": {"artifact": created}}


def create_manifest(records: Records, sent: Json) -> Json:
    """Asked for twice: before the files are sent, and when the manifest itself is."""
    url = _upload_url(records, "manifests", sent["artifactID"])
    file = {"id": "file", "uploadUrl": url, "uploadHeaders": []}
    return {"createArtifactManifest": {"artifactManifest": {"id": "manifest", "file": file}}}


def create_artifact_files(records: Records, sent: Json) -> Json:
    nodes = [
        {
            "storagePath": file["name"],
            "uploadUrl": _upload_url(records, "artifacts", file["artifactID"], file["name"]),
            "uploadHeaders": [],
            "artifact": {"id": file["artifactID"]},
        }
        for file in sent["input"]["artifactFiles"]
    ]
    return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}


def commit_artifact(records: Records, sent: Json) -> Json:
    artifact = records.artifacts[sent["artifactID"]]
    artifact.committed = True
    return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}


def use_artifact(records: Records, sent: Json) -> Json:
    artifact = records.artifacts[sent["input"]["artifactID"]]
    if artifact not in (inputs := records.runs[sent["input"]["runName"]].inputs):
        inputs.append(artifact)
    return {"useArtifact": {"artifact": {"id": artifact.id}}}


def link_artifact(records: Records, sent: Json) -> Json:
    wanted = sent["input"]
    entity, project, name = (
        wanted[key] for key in ("entityName", "projectName", "artifactPortfolioName")
    )
    artifact = records.artifacts[wanted["artifactID"]]
    aliases = [each["alias"] for each in wanted["aliases"]]
    collection = records.collections.setdefault(f"{entity}/{project}/{name}", {})
    collection |= dict.fromkeys(aliases, artifact)
    membership = {
        "__typename": "ArtifactCollectionMembership",
        "id": "membership",
        "versionIndex": 0,
        "createdAt": "2026-01-01T00:00:00Z",
        "aliases": [{"__typename": "ArtifactAlias", "id": a, "alias": a} for a in aliases],
        "artifactCollection": {
            "__typename": "ArtifactPortfolio",
            "name": name,
            "project": {"id": "r", "internalId": "r", "name": project, "entity": {"name": entity}},
        },
        "artifact": _describe(artifact),
    }
    return {"result": {"versionIndex": 0, "artifactMembership": membership}}


def describe_artifact(records: Records, sent: Json) -> Json:
    return {"artifact": _describe(records.artifacts[sent["id"]])}


def _describe(artifact: Artifact) -> Json:
    project = {"id": "p", "internalId": "p", "name": "p", "entity": _ENTITY}
    return {
        "__typename": "Artifact",
        "id": artifact.id,
        "artifactSequence": {
            "__typename": "ArtifactSequence",
            "name": artifact.name,
            "project": project,
        },
        "versionIndex": artifact.version,
        "artifactType": {"name": artifact.type},
        "metadata": json.dumps(artifact.metadata),
        "state": _state(artifact),
        "digest": artifact.digest,
        "createdAt": "2026-01-01T00:00:00Z",
        "size": sum(len(content) for content in artifact.files.values()),
        "fileCount": len(artifact.files),
        "tags": [],
        "aliases": [],
        "description": None,
        "historyStep": None,
        "commitHash": None,
        "ttlDurationSeconds": 0,
        "ttlIsInherited": False,
        "updatedAt": None,
    }


def type_of_artifact(records: Records, sent: Json) -> Json:
    artifact = records.find(sent["name"])
    return {
        "project": {"artifact": {"artifactType": {"name": artifact.type}} if artifact else None}
    }


def map_client_id(records: Records, sent: Json) -> Json:
    ids = {artifact.client_id: artifact.id for artifact in records.artifacts.values()}
    return {"clientIDMapping": {"serverID": ids[sent["clientID"]]}}


def alert(records: Records, sent: Json) -> Json:
    records.runs[sent["runName"]].alerts.append(sent)
    return {"notifyScriptableRunAlert": {"success": True}}


def _upload_url(records: Records, *places: str) -> str:
    return "/".join([records.url, *(quote(place, safe="") for place in places)])


def _state(artifact: Artifact) -> str:
    return "COMMITTED" if artifact.committed else "PENDING"


_ENTITY = {"id": ENTITY, "name": ENTITY}
_FEATURES = [{"name": "ARTIFACT_MEMBERSHIP_IN_LINK_ARTIFACT_RESPONSE", "isEnabled": True}]
_ORGANIZATION = {"name": "Thaw", "orgEntity": {"name": ORGANIZATION}}
_VIEWER = {"id": "user", "entity": ENTITY, "username": ENTITY, "email": "tests@example.com",
           "flags": "{}", "teams": {"edges": []}}  # fmt: skip
ANSWERS: dict[str, Callable[[Records, Json], Json]] = {
    "Viewer": lambda records, sent: {"viewer": _VIEWER},
    "ServerFeaturesQuery": lambda records, sent: {"serverInfo": {"features": _FEATURES}},
    "FetchOrgInfoFromEntity": lambda records, sent: {
        "entity": {"organization": _ORGANIZATION, "user": None}
    },
    "OrganizationCoreWeaveOrganizationID": lambda records, sent: {"entity": None},
    "RunResumeStatus": resume_status,
    "UpsertBucket": upsert_run,
    "CreateRunFiles": create_run_files,
    "ArtifactType": type_of_artifact,
    "CreateArtifact": create_artifact,
    "CreateArtifactManifest": create_manifest,
    "CreateArtifactFiles": create_artifact_files,
    "CommitArtifact": commit_artifact,
    "UseArtifact": use_artifact,
    "ArtifactByID": describe_artifact,
    "LinkArtifact": link_artifact,
    "ClientIDMapping": map_client_id,
    "NotifyScriptableRunAlert": alert,
}
"""Operation -> what answers it, from what is kept and the variables sent."""

"""Combines the best networks of a sweep, and keeps what wins on the validation images.

    SWEEP/combined/soup/            a run folder: mean of the weights of trials with one start
    SWEEP/combined/interpolation/   a run folder: between the start and the winner (WiSE-FT)
    SWEEP/combined/ensemble/        a run folder: mean of the probabilities of the best trials
    SWEEP/combined/combined.json    what was tried, written last

A combination is kept where the 95 percent interval of its gain in val/top1 over the winner is above
zero (bootstrap over the images). Test images choose nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial

from cluster.io import storage
from cluster.runtime import Resources
from cluster.scaling import compute_once
from datasets.blocks import FEW_IMAGES
from datasets.manifest import Manifest
from trainers.networks.weights.pretrained import describe_weights
from trainers.networks.weights.tensors import to_safetensors
from trainers.run import checkpoint
from trainers.run.combination import CombinedRun, CombinedTrial, write_combination
from trainers.run.ensemble import join_tensors, write_ensemble
from trainers.run.folder import write_config, write_result
from tuning.combine.combinations import Combinations, combined_uri, read_combinations
from tuning.combine.members import Member, find_members
from tuning.combine.search import Attempt, search
from tuning.record.results import TrialResult


def combine(
    out: str,
    trials: Sequence[TrialResult],
    manifest: Manifest,
    resources: Resources,
    *,
    left_s: float = float("inf"),
) -> Combinations | None:
    """Combine the best trials of a sweep, unless that is done.

    Args:
        trials: by rank.
        left_s: seconds that it may take.

    Returns:
        What was tried; None where there is nothing to combine.
    """
    members = find_members(trials)
    if not members or (len(members) == 1 and not members[0].can_interpolate):
        return None
    weights = tuple(member.sha256 for member in members)
    known = read_combinations(out)
    if known is not None and known.weights == weights and not (known.is_cut and left_s > 0):
        return known
    storage.delete_folder(combined_uri(out))
    attempts, is_cut = compute_once(
        partial(search, members, manifest, left_s),
        resources,
        members[0].config.cluster,
        here=manifest.split("val").num_images <= FEW_IMAGES,
    )
    for attempt in attempts:
        if attempt.combination.is_kept:
            write_run(combined_uri(out, attempt.combination.kind), attempt, members)
    tried = tuple(attempt.combination for attempt in attempts)
    found = Combinations(weights=weights, tried=tried, is_cut=is_cut)
    text = json.dumps(asdict(found), indent=1).encode()
    storage.write_bytes(combined_uri(out, "combined.json"), text)
    return found


def write_run(run: str, attempt: Attempt, members: Sequence[Member]) -> None:
    """Write a run folder, for `python -m trainers evaluate`, `predict`, `export` and `serve`."""
    winner, combination, tensors = members[0], attempt.combination, attempt.networks[0]
    of_trial = {member.trial_id: member for member in members}
    combined = [of_trial[trial] for trial in combination.trials]
    if len(attempt.networks) > 1:
        tensors = join_tensors(attempt.networks)
        write_ensemble(run, [member.config.model.backbone for member in combined])
    write_combination(
        run,
        CombinedRun(
            kind=combination.kind,
            name=combination.name,
            trials=tuple(map(_describe, combined)),
            share=combination.share,
        ),
    )
    write_config(replace(winner.config, out=run))
    progress = replace(
        winner.progress, val_top1=combination.top1, best_val_top1=combination.top1, prefix=None
    )
    checkpoint.save(run, {checkpoint.MODEL: to_safetensors(tensors)}, progress)
    write_result(run, progress)


def _describe(member: Member) -> CombinedTrial:
    origin, license = describe_weights(member.config.model)
    return CombinedTrial(
        trial=member.trial_id,
        backbone=member.config.model.backbone,
        weights=origin,
        license=license,
        best_epoch=member.progress.epoch,
        total_s=member.progress.total_s,
        val_top1=member.progress.val_top1,
    )

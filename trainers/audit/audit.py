"""Audit a prepared data set with the features of a pretrained network."""

import numpy as np

from cluster.io import storage
from cluster.io.lease import hold_lease
from cluster.io.terminal import report
from cluster.runtime import connect
from datasets.audit.audit import write_audit
from datasets.audit.checks import run_checks
from datasets.audit.findings import Check
from datasets.audit.images import AuditedImages, measure_images
from datasets.manifest_file import read_manifest
from datasets.passes.features import FeatureArrays
from datasets.plan import IGNORE_INDEX
from trainers.audit.config import FeatureAuditConfig
from trainers.audit.labels import check_labels
from trainers.audit.outliers import check_outliers
from trainers.audit.splits import check_splits
from trainers.checks import check_network
from trainers.inference.passes import build_training, cache_uri, compute_features


def run_audit(config: FeatureAuditConfig) -> None:
    """Run all checks; write and print what they find.

    Raises:
        UserError: for a configuration that a training would refuse, or features that overflow half
            precision.
    """
    training = build_training(config, storage.absolute(config.out, "out"))
    manifest = read_manifest(training.data, config.fold)
    check_network(training, manifest.classes)
    resources = connect(config.address)
    with hold_lease(training.out):
        images = measure_images(training.data, config.fold)
        (computed,) = compute_features(
            [training],
            manifest,
            resources,
            cache_uri(training.out, config.cache),
            depths=lambda backbone: (len(backbone.stages),),
            splits=tuple(manifest.splits),
        )
        (features,) = computed.load()
        report("Running the checks")
        checks = [*check_features(images, features), *run_checks(images)]
        write_audit(training.out, images, checks, max_shown=config.max_shown)


def check_features(images: AuditedImages, features: dict[str, FeatureArrays]) -> list[Check]:
    """Run the checks that need features.

    Args:
        features: of each split, in the order of the shards, as `images` are.
    """
    splits_N, labels_N = images.splits_N, images.labels_N
    rows = [np.flatnonzero(splits_N == split) for split in features]
    is_known = [of_split.labels_N != IGNORE_INDEX for of_split in features.values()]
    rows_N = np.concatenate([of[known] for of, known in zip(rows, is_known, strict=True)])
    features_ND = np.concatenate(
        [of.features[known] for of, known in zip(features.values(), is_known, strict=True)]
    )
    return [
        check_labels(features_ND, labels_N[rows_N], rows_N, images.manifest.classes),
        check_outliers(features_ND, rows_N),
        check_splits(features_ND, splits_N[rows_N], rows_N),
    ]

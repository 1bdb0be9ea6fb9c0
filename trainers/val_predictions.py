"""What a run's best weights say to each validation image."""

import pyarrow as pa

from datasets import storage


def read_predictions(run: str) -> pa.Table | None:
    """Read RUN/val_predictions.parquet; None where there is none.

    Returns:
        A row per image: row (of the split), label, predicted, confidence.
    """
    try:
        return storage.read_parquet(storage.join(run, "val_predictions.parquet"))
    except FileNotFoundError:
        return None

"""Prints what an evaluation measured."""

from typing import Any

from trainers.evaluation.levels import show_levels

NUM_SHOWN = 5
"""Classes, and pairs, that the terminal shows."""


def show(result: dict[str, Any], split: str, folder: str) -> None:
    """Print the means, the worst classes, the most confused pairs, and the files written."""
    unreadable = result["lost"]
    noted = f", {len(unreadable)} unreadable: {unreadable[0]}" if unreadable else ""
    mirrored = " and their mirror images" if result["tta"] else ""
    means = {
        name: result[f"{split}/{name}"] for name in ("top1", "top5", "macro_f1", "ece", "loss")
    }
    print(f"{result['num_images']} {split} images of {result['data']}{mirrored}{noted}")
    if not_scored := result["not_scored"]:
        names = ", ".join(
            f"{name} ({count})" for name, count in list(not_scored.items())[:NUM_SHOWN]
        )
        print(
            f"{sum(not_scored.values())} images of {len(not_scored)} classes that the network does "
            f"not have are not scored: {names}{' ...' * (len(not_scored) > NUM_SHOWN)}"
        )
    print(
        "top-1 {top1:.3f}  top-5 {top5:.3f}  macro F1 {macro_f1:.3f}  ECE {ece:.3f}  "
        "loss {loss:.3f}".format_map(means)
    )
    if result["trained"]:
        print("These images trained the network; on other images it may be worse (--split test)")
    show_calibration(result, split)
    if result["hierarchy"]:
        show_levels(result["hierarchy"])
    print("\nWorst classes\n    F1  precision  recall  images  class")
    seen = [row for row in result["per_class"] if row["images"]]
    for row in sorted(seen, key=lambda row: row["f1"])[:NUM_SHOWN]:
        precision = "-" if row["precision"] is None else f"{row['precision']:.3f}"
        print(
            f" {row['f1']:.3f}  {precision:>9}  {row['recall']:6.3f}  {row['images']:6}  "
            f"{row['class']}"
        )
    if result["most_confused"]:
        print("\nMost confused")
    for pair in result["most_confused"][:NUM_SHOWN]:
        print(f"{pair['count']:4} ({pair['share']:.0%})  {pair['true']} -> {pair['predicted']}")
    print(f"\nPictures: {folder}/confusion.png, confused_pairs.png, reliability.png")
    print(f"Tables:   {folder}/confusion.csv, per_class.csv, predictions.parquet; {folder}.json")


def show_calibration(result: dict[str, Any], split: str) -> None:
    """Print what calibration changes, and how often the model would say `unknown`."""
    found = result["calibration"]
    if found is None:
        print(f"Not calibrated: {result['not_calibrated']}")
        return
    ece, loss = (result[f"{split}/calibrated_{name}"] for name in ("ece", "loss"))
    temperature = f"{found['temperature']:.3f}"
    if found["origin"] is not None:
        temperature += f" of {found['origin']}"
    print(f"Calibrated (temperature {temperature}): ECE {ece:.3f}  loss {loss:.3f}")
    low, high = found["expected_coverage"]
    print(
        f"Unknown: {found['measured_refused']:.1%} of the images, {found['refused']:.1%} wanted.  "
        f"Sets of {found['coverage']:.0%}: {found['measured_coverage']:.1%} have the true class "
        f"({low:.1%} to {high:.1%} expected, by {found['num_images']} validation images), "
        f"mean size {found['set_size']:.2f}"
    )

"""The decoded images of a split, kept as uint8 in Ray's object store.

The first epoch decodes its images and keeps them in pieces, one object per chunk; an actor indexes
the pieces, and lives as long as the process that opened the memory. Later epochs read them. Where
other trainings do too, an actor on each node owns the pieces, since an object is lost with its
owner, and readers end with their training. Missing images (the incomplete last batch of an epoch, a
piece lost with its node) are decoded when they are needed.

Dimensions: N images, H height, W width, C the channels red, green, blue.
"""

from dataclasses import dataclass

import numpy as np
import ray
from ray.actor import ActorProxy
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.io.errors import UserError
from datasets.config import IngestConfig
from datasets.manifest import SPLITS, TRAIN_AND_VAL, Manifest

Decoded = tuple[int, int, np.ndarray]
"""Label, image id and uint8 pixels `[H, W, C]` of an image."""


@dataclass(frozen=True)
class Piece:
    """Decoded images, concatenated."""

    labels_N: np.ndarray
    image_ids_N: np.ndarray
    shapes_N3: np.ndarray
    starts_N: np.ndarray
    pixels: np.ndarray

    def __getitem__(self, slot: int) -> Decoded:
        shape = self.shapes_N3[slot]
        start = self.starts_N[slot]
        pixels_HWC = self.pixels[start : start + shape.prod()].reshape(shape)
        return int(self.labels_N[slot]), int(self.image_ids_N[slot]), pixels_HWC


@ray.remote(num_cpus=0, max_restarts=-1)
class PieceOwner:
    """Actor that owns the pieces made on its node."""

    def put(self, piece: Piece) -> list[ray.ObjectRef]:
        return [ray.put(piece)]


@ray.remote(num_cpus=0, max_restarts=-1)
class PieceIndex:
    """Actor that maps images to pieces, and keeps the pieces alive; shared ones of its node are its
    own."""

    def __init__(self, num_images: int) -> None:
        self._owners: dict[str, ActorProxy] = {}
        self._piece_of_image = np.full(num_images, -1, np.int32)
        self._slot_of_image = np.zeros(num_images, np.int32)
        self._pieces: list[ray.ObjectRef | None] = []
        self._num_images: list[int] = []

    def find(self, images_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[int, ray.ObjectRef]]:
        """Return the number of the piece (-1: none) and the slot of each image, and the pieces."""
        piece_N = self._piece_of_image[images_N]
        refs = {int(number): self._pieces[number] for number in np.unique(piece_N) if number >= 0}
        return piece_N, self._slot_of_image[images_N], refs

    def find_owner(self, node_id: str) -> ActorProxy | None:
        """Return the actor that owns the pieces made on a node; None: this one."""
        # An actor that holds a handle of its own would never end.
        if node_id == ray.get_runtime_context().get_node_id():
            return None
        if node_id not in self._owners:
            there = NodeAffinitySchedulingStrategy(node_id, soft=False)
            self._owners[node_id] = PieceOwner.options(scheduling_strategy=there).remote()
        return self._owners[node_id]

    def put(self, piece: Piece) -> list[ray.ObjectRef]:
        return [ray.put(piece)]

    def add(self, images_N: np.ndarray, piece: list[ray.ObjectRef]) -> None:
        """Add a piece with these images; a reference in a list is not fetched to this node."""
        # Images may be kept twice, after a loss or by two tasks at once: the last piece counts.
        before_N = self._piece_of_image[images_N]
        for number, count in zip(
            *np.unique(before_N[before_N >= 0], return_counts=True), strict=True
        ):
            self._num_images[number] -= count
            if not self._num_images[number]:
                self._pieces[number] = None
        self._piece_of_image[images_N] = len(self._pieces)
        self._slot_of_image[images_N] = np.arange(len(images_N))
        self._pieces += piece
        self._num_images.append(len(images_N))


@dataclass(frozen=True)
class Memory:
    """The decoded images of a split."""

    index: ActorProxy
    first_image: int
    """Number of the split's first image in the index, which all splits share."""
    shared: bool
    """By trainings that follow: pieces outlive the readers that made them."""

    def find(self, rows_N: np.ndarray) -> dict[int, Decoded]:
        """Return position in `rows_N` -> image, where kept; pixels are read-only views."""
        # ray.get would release this task's CPU, and Ray would start another process for it.
        reply = self.index.find.remote(self.first_image + rows_N).future()
        try:
            piece_N, slot_N, refs = reply.result()
        except RayError:  # it died with its node; the restarted one is empty
            return {}
        found: dict[int, Decoded] = {}
        for number, ref in refs.items():
            try:
                piece: Piece = ray.get(ref)
            except RayError:  # the piece was lost with a node
                continue
            for index in np.flatnonzero(piece_N == number):
                found[int(index)] = piece[slot_N[index]]
        return found

    def keep(self, rows_N: np.ndarray, images: list[Decoded]) -> None:
        """Keep decoded images as one piece, in the object store of this node."""
        labels, image_ids, pixels = zip(*images, strict=True)
        sizes = [image_HWC.size for image_HWC in pixels]
        piece = Piece(
            labels_N=np.array(labels),
            image_ids_N=np.array(image_ids),
            shapes_N3=np.array([image_HWC.shape for image_HWC in pixels]),
            starts_N=np.cumsum([0, *sizes[:-1]]),
            pixels=np.concatenate([image_HWC.ravel() for image_HWC in pixels]),
        )
        try:
            refs = self._put_for_others(piece) if self.shared else [ray.put(piece)]
        except RayError:  # as in `find`
            return
        self.index.add.remote(self.first_image + rows_N, refs)

    def _put_for_others(self, piece: Piece) -> list[ray.ObjectRef]:
        node_id = ray.get_runtime_context().get_node_id()
        owner = self.index.find_owner.remote(node_id).future().result()
        return (owner or self.index).put.remote(piece).future().result()


def open_memory(manifest: Manifest, *, shared: bool) -> dict[str, Memory]:
    """Return an empty memory for each split, with one index for all.

    The index has the splits in the order of SPLITS, so TRAIN_AND_VAL is a range of it too.

    Args:
        shared: by trainings that follow each other.
    """
    names = [name for name in SPLITS if name in manifest.splits]
    sizes = [manifest.splits[name].num_images for name in names]
    index = PieceIndex.remote(sum(sizes))
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    memories = {
        name: Memory(index, start, shared) for name, start in zip(names, starts, strict=True)
    }
    return memories | {TRAIN_AND_VAL: memories["train"]}


def choose_ingest(
    ingest: IngestConfig, manifest: Manifest, *, num_epochs: int, budget_bytes: float
) -> tuple[bool, str]:
    """Decide whether trainings keep decoded images in memory; return the decision and why.

    Args:
        num_epochs: of all trainings that share them.
        budget_bytes: of the object store, for their one copy.

    Raises:
        UserError: where ingest is `memory` and the images don't fit.
    """
    needed = 3 * manifest.split(TRAIN_AND_VAL).num_pixels
    sizes = f"{needed / 2**30:.2f} GiB decoded, {budget_bytes / 2**30:.2f} GiB to keep them in"
    if ingest.ingest == "stream":
        return False, "stream, as asked"
    if ingest.ingest == "memory":
        if needed > budget_bytes:
            raise UserError(
                f"ingest is 'memory': {sizes}; use --ingest stream, a larger --memory-share or "
                "object store, or prepare with a smaller --short-side-px"
            )
        return True, f"memory, as asked: {sizes}"
    if num_epochs == 1:
        return False, "stream: one epoch reads each image once"
    if needed > budget_bytes:
        return False, f"stream: {sizes}"
    if manifest.options["short_side_px"] >= 2 * ingest.size_px:
        # The stream then decodes at reduced scale, and memory would give other pixels.
        return False, f"stream: images of twice {ingest.size_px} px decode at reduced scale"
    return True, f"memory: {sizes}"

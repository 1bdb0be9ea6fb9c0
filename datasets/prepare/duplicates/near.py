"""Near duplicates: images that were compressed again, scaled, mirrored or cropped a little.

A perceptual hash is the signs of the 64 lowest frequencies (DCT) of an image in grey, as in pHash,
here of 15 windows of the image: the whole, and crops by 5 and 10 percent. Mirroring flips the signs
of odd horizontal frequencies, so a mirrored image needs no hash of its own. Pairs whose hashes
differ in few bits are candidates; the correlation of small aligned copies decides.

N images, W windows, C crops, P partners of an image, S side of a grey copy in pixels.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise, product

import cv2
import numpy as np
from scipy.fft import dct

MAX_BITS = 7
"""Of 63, that differ between the hashes of a candidate pair."""
MIN_CORRELATION = 0.93
"""Of the pixels of a pair; measured on photographs of cars, where distinct ones reach 0.91."""
GREY_PX, THUMBNAIL_PX, NUM_FREQUENCIES = 64, 32, 8
MAX_EXACT = 200_000
"""Images up to which all pairs of MAX_BITS are found; beyond, those with equal 16 bits."""
_INTERVALS = ((0, 1), (0.05, 0.95), (0, 0.95), (0.05, 1), (0, 0.9), (0.1, 1), (0.1, 0.9))
_WINDOWS = (
    *((0, 0), (1, 1), (6, 6)),  # whole, and around the centre
    *((2, 2), (2, 3), (3, 2), (3, 3), (4, 4), (4, 5), (5, 4), (5, 5)),  # towards the corners
    *((0, 2), (0, 3), (2, 0), (3, 0)),  # towards the sides
)
"""Interval of the height and of the width."""
NUM_WINDOWS = len(_WINDOWS)
MAX_BUCKET, MAX_COMPARED = 64, 20_000
"""Bounds for many images of one scene, such as a video's: hashes that one is compared with in each
part, and pairs whose pixels are compared (0.2 ms each)."""
_CHUNK = 2**22
logger = logging.getLogger(__name__)


def _frequencies(start: float, end: float) -> np.ndarray:
    """Return the matrix that resizes an interval of S cells to 32 and takes its frequencies."""
    edges = np.linspace(start * GREY_PX, end * GREY_PX, 33)
    cells = np.arange(GREY_PX)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    resize = overlap.clip(0) / np.diff(edges)[:, None]
    cosines = np.asarray(dct(np.eye(32), axis=0, norm="ortho"))
    return (cosines[:NUM_FREQUENCIES] @ resize).astype(np.float32)


_TRANSFORM = np.concatenate([_frequencies(*interval) for interval in _INTERVALS])
_BITS = np.uint64(1) << np.arange(64, dtype=np.uint64)
_MIRROR = np.bitwise_or.reduce(_BITS.reshape(8, 8)[:, 1::2].ravel())
_ROWS, _COLUMNS = (np.array(side) for side in zip(*_WINDOWS, strict=True))


def hash_image(image_HWC: np.ndarray) -> tuple[bytes, bytes]:
    """Return the hashes of all windows as uint64_W, and a grey copy of 32 x 32 uint8, as bytes."""
    grey_HW = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY)
    while min(grey_HW.shape) >= 2 * GREY_PX:  # to half the size takes a tenth of other ratios' time
        height, width = (side // 2 for side in grey_HW.shape)
        even_HW = grey_HW[: 2 * height, : 2 * width]
        grey_HW = cv2.resize(even_HW, (width, height), interpolation=cv2.INTER_AREA)
    size = (GREY_PX, GREY_PX)
    grey_SS = cv2.resize(grey_HW, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    signs = (_TRANSFORM @ grey_SS @ _TRANSFORM.T > 0).reshape(7, 8, 7, 8)
    signs_W = signs[_ROWS, :, _COLUMNS, :].reshape(NUM_WINDOWS, 64)
    signs_W[:, 0] = False  # the mean
    thumbnail = cv2.resize(grey_SS, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    hashes_W = np.packbits(signs_W, axis=1, bitorder="little")
    return hashes_W.tobytes(), thumbnail.round().astype(np.uint8).tobytes()


def find_candidates(hashes_NW: np.ndarray) -> np.ndarray:
    """Return pairs, `[M, 2]` with the lower index first, of images whose hashes are close.

    Hashes that differ in at most 7 of 64 bits have one of four 16-bit parts that differs in at most
    one bit, so only those are compared.
    """
    num_images = len(hashes_NW)
    windows = hashes_NW.ravel()
    found = np.zeros(0, np.int64)
    for whole_N, queries, others in _list_compared(hashes_NW):
        bits = np.bitwise_count(whole_N[queries] ^ windows[others])
        images = others // NUM_WINDOWS
        near = (bits <= MAX_BITS) & (images != queries)
        if near.any():
            ends = np.sort([queries[near], images[near]], axis=0)
            found = np.union1d(found, ends[0] * num_images + ends[1])
    return np.stack(np.divmod(found, max(1, num_images)), 1)


def _list_compared(
    hashes_NW: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield hashes of whole images, mirrored or not, with the indices of those to compare and of
    the windows to compare them with: they have a 16-bit part that differs in at most one bit."""
    windows = hashes_NW.ravel()
    flips = [0] if len(hashes_NW) > MAX_EXACT else [0, *(1 << bit for bit in range(16))]
    for part in range(4):
        keys = (windows >> np.uint64(16 * part)).astype(np.uint16)
        order = np.argsort(keys, kind="stable")
        starts = np.searchsorted(keys[order], np.arange(2**16 + 1))
        sizes = np.minimum(np.diff(starts), max(MAX_BUCKET, 4 * len(keys) // 2**16))
        for mirror, flip in product((np.uint64(0), _MIRROR), flips):
            whole_N = hashes_NW[:, 0] ^ mirror
            probes_N = (whole_N >> np.uint64(16 * part)).astype(np.uint16) ^ np.uint16(flip)
            for queries, others in _expand(starts, sizes, order, probes_N):
                yield whole_N, queries, others


def count_bits(hashes_NW: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return how many bits of each pair differ, at the closest window, mirrored or not."""
    best = np.full(len(pairs), 64)
    for one, other in (pairs.T, pairs.T[::-1]):
        for window in range(NUM_WINDOWS):
            for mirror in (np.uint64(0), _MIRROR):
                bits = np.bitwise_count(hashes_NW[one, 0] ^ mirror ^ hashes_NW[other, window])
                best = np.minimum(best, bits)
    return best


def _expand(
    starts: np.ndarray, sizes: np.ndarray, order: np.ndarray, probes_N: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each query with each entry of its bucket, in chunks."""
    first_N, counts_N = starts[probes_N], sizes[probes_N]
    ends = np.cumsum(counts_N)
    begin = 0
    while begin < len(probes_N):
        done = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + _CHUNK, side="right")))
        counts = counts_N[begin:end]
        queries = np.repeat(np.arange(begin, end), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        yield queries, order[np.repeat(first_N[begin:end], counts) + within]
        begin = end


def _list_crops() -> tuple[np.ndarray, np.ndarray]:
    """Return crops by up to 12 percent, enlarged to S pixels: matrices of rows and of columns, each
    `[C, S, S]`. Every crop has its mirror image among them."""
    crops = [(1.0, 1.0, 0.0, 0.0)]
    for scale in (0.97, 0.94, 0.91, 0.88):
        offsets = np.linspace(0, 1 - scale, 3)
        crops += [(scale, scale, x, y) for x in offsets for y in offsets]
    for scale in (0.96, 0.92):
        crops += [(scale, 1.0, x, 0.0) for x in (0, 1 - scale)]
        crops += [(1.0, scale, 0.0, y) for y in (0, 1 - scale)]
    rows = [_interpolate(height, y) for _, height, _, y in crops]
    columns = [_interpolate(width, x).T for width, _, x, _ in crops]
    return np.array(rows), np.array(columns)


def _interpolate(scale: float, offset: float) -> np.ndarray:
    """Return the matrix that enlarges a part of S pixels to all of them, linearly."""
    size = THUMBNAIL_PX
    at = (np.arange(size) + 0.5) * scale + offset * size - 0.5
    distance = abs(at.clip(0, size - 1)[:, None] - np.arange(size))
    return (1 - distance).clip(0).astype(np.float32)


_ROWS_CSS, _COLUMNS_CSS = _list_crops()


def correlate(pairs: np.ndarray, thumbnails: Mapping[int, bytes]) -> np.ndarray:
    """Return the largest correlation of each pair, one image mirrored or cropped a little.

    The crops of an image are made once, and compared with all images that it is paired with.
    """
    best = np.zeros(len(pairs))
    images, owners = np.unique(pairs.T, return_inverse=True)  # all first, then all second images
    owners = owners.ravel()
    partners, order = np.roll(owners, len(pairs)), np.argsort(owners, kind="stable")
    grey_NSS = np.array([np.frombuffer(thumbnails[int(i)], np.uint8) for i in images])
    grey_NSS = grey_NSS.reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)
    starts = np.searchsorted(owners[order], np.arange(len(images) + 1))
    for image, (start, end) in enumerate(pairwise(starts)):
        rows = order[start:end]
        crops_CSS = np.rint(_ROWS_CSS @ grey_NSS[image].astype(np.float32) @ _COLUMNS_CSS)
        others_PSS = grey_NSS[partners[rows]]
        fixed = _unit(np.concatenate([others_PSS, others_PSS[..., ::-1]]))
        scores = (_unit(crops_CSS) @ fixed.T).max(0).reshape(2, -1).max(0)
        np.maximum.at(best, rows % len(pairs), scores)
    return best


def _unit(views: np.ndarray) -> np.ndarray:
    flat = views.reshape(len(views), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    return flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-3)


def find_pairs(
    hashes: Sequence[bytes],
    pixel_ids: Sequence[int],
    read_thumbnails: Callable[[np.ndarray], dict[int, bytes]],
) -> list[tuple[int, int, float]]:
    """Return pairs of near duplicates, by falling correlation; none of the same pixels.

    Args:
        read_thumbnails: of images by index.
    """
    # One of each kind of pixels: any number of copies would be as many squared pairs.
    _, firsts = np.unique(np.asarray(pixel_ids, np.int64), return_index=True)
    hashes_NW = np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, NUM_WINDOWS)
    candidates = firsts[find_candidates(hashes_NW[firsts])]
    if len(candidates) > MAX_COMPARED:
        logger.warning(
            "%d pairs of images are alike: only the closest %d are compared; give --group-by or "
            "another group to photographs of one scene",
            len(candidates),
            MAX_COMPARED,
        )
        bits = count_bits(hashes_NW, candidates)
        candidates = candidates[np.argsort(bits, kind="stable")[:MAX_COMPARED]]
    scores = correlate(candidates, read_thumbnails(np.unique(candidates)))
    near = [
        (int(min(pair)), int(max(pair)), float(score))
        for pair, score in zip(candidates, scores, strict=True)
        if score >= MIN_CORRELATION
    ]
    return sorted(near, key=lambda pair: (-pair[2], pair[0], pair[1]))

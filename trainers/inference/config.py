"""Options of `predict` and `features`, and of what looks at a frozen network's features."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cluster.config import Device
from cluster.io.errors import require, require_at_least, require_between, require_share
from cluster.io.markers import OR_NAMES, URI
from datasets.config import MAX_FOLDS, SIZES_PX, IngestConfig
from trainers.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class FrozenConfig:
    """A prepared data set, and a pretrained network that stays as it is."""

    data: Annotated[str, URI]
    """URI of a prepared data set (`python -m datasets prepare`)."""
    backbone: str = ModelConfig.backbone
    """Network: a name of `python -m trainers zoo`, or any timm classifier."""
    init: Literal["imagenet", "imagenet_v1", "imagenet_v2", "file"] = "imagenet"
    """Pretrained weights."""
    weights: Annotated[str | None, URI] = None
    """URI of a state dict, for `file`. With `imagenet`, it replaces the download."""
    normalization: Literal["auto", "imagenet", "half"] = ModelConfig.normalization
    """Pixel mean and standard deviation that the weights were trained with. half: 0.5 and 0.5."""
    size_px: int = IngestConfig.size_px
    """Height and width of the network's input images."""
    fold: int = 0
    """Validation fold of a data set with folds; the other folds train."""
    cache: Annotated[str | None, URI] = None
    """URI of the feature cache. Default: `cache` beside OUT."""
    device: Device = "auto"
    """`auto` uses GPUs if the cluster has any."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""

    def __post_init__(self) -> None:
        require_between("size_px", self.size_px, *SIZES_PX)
        require_between("fold", self.fold, 0, MAX_FOLDS)


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Which images, which network, how many workers."""

    images: Annotated[str, URI]
    """URI of the images: a folder of any depth, a file, Parquet, or a prepared data set."""
    out: Annotated[str, URI]
    """URI of the folder to write; results of an earlier call there are replaced."""
    run: Annotated[str | None, URI] = None
    """Run folder of a training; its best network is used. Without a run, give --backbone."""
    backbone: str | None = None
    """A pretrained network instead of a run: a name of `python -m trainers zoo`, or any timm
    classifier."""
    init: Literal["imagenet", "imagenet_v1", "imagenet_v2", "file"] | None = None
    """Weights of --backbone. Default: imagenet, or file with --weights."""
    weights: Annotated[str | None, URI] = None
    """URI of a .pth or .safetensors state dict for --backbone."""
    normalization: Literal["imagenet", "half"] | None = None
    """Pixel mean and deviation that the weights of --backbone were trained with. Default: those of
    its published weights."""
    size_px: int | None = None
    """Height and width of the images. Default: those of the run, or of the published weights."""
    split: Literal["train", "val", "test"] | None = None
    """Split of a prepared data set. Default: all images."""
    image_column: str = "image"
    """Column of Parquet files with bytes, or with Hugging Face's struct."""
    batch_size: int = 32
    """Most images that the network computes at once; on CPUs at most 16."""
    num_workers: int | None = None
    """Actors that hold the network. Default: one per GPU that a CPU is left for, or one
    per CPU without GPUs."""
    device: Device = "auto"
    """`auto` uses GPUs if the cluster has any."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""

    def __post_init__(self) -> None:
        require(
            (self.run is None) != (self.backbone is None),
            "run",
            self.run,
            "give either --run RUN or --backbone NAME",
        )
        for name in ("init", "weights", "normalization"):
            require(
                self.run is None or getattr(self, name) is None,
                name,
                getattr(self, name),
                "the run has its own: leave it out, or give --backbone instead of --run",
            )
        require_between("size_px", self.size_px, 1, max(SIZES_PX))  # the network may need more
        require_at_least("batch_size", self.batch_size, 1)
        require_at_least("num_workers", self.num_workers, 1)


RankBy = Literal["uncertainty", "diversity"]


@dataclass(frozen=True, kw_only=True)
class PredictConfig(InferenceConfig):
    """Classify photographs of any folder, Parquet or prepared data set; write Parquet to OUT.

    A run predicts its own classes, a pretrained backbone the 1000 classes of ImageNet:

      python -m trainers predict --images photos --run runs/staged --out runs/predicted
      python -m trainers predict --images photos --backbone resnet50 --out runs/predicted
      python -m trainers predict --images s3://bucket/photos --backbone mobilenet_v2
          --weights mobilenet_v2_imagenet.pth --normalization half --out s3://bucket/predicted
      python -m trainers predict --images photos --run runs/staged --coverage 0.95
          --out runs/predicted
      python -m trainers predict --images unlabelled --run runs/staged --rank-by diversity
          --num-picks 100 --out runs/next

    OUT/predictions has path, class, probability, top_classes and top_probabilities. If the run is
    calibrated (by its training, or by `evaluate`), it also has unknown_score, and unknown: whether
    the image is of none of the classes. OUT/predictions_bad_images.parquet has path and reason of
    each unreadable image. OUT/predictions_summary.json is written last.
    """

    top_k: int = 5
    """Number of the likeliest classes to keep."""
    refused: float = 0.05
    """Share of images of known classes that may be called unknown. The validation images of the run
    set the threshold."""
    coverage: float | None = None
    """Add the column class_set: a set of classes that has the true class for this share of images.
    Needs a calibrated run."""
    hierarchy: Annotated[str | None, URI, OR_NAMES] = None
    """Levels of classes, as for `evaluate`: `names`, or the URI of a CSV file. Adds the likeliest
    group of each level, and answer, answer_level and answer_probability."""
    least_probability: float = 0.9
    """With a hierarchy: answer at the finest level that has this probability."""
    rank_by: RankBy | None = None
    """Also write OUT/picks.csv and picks.html: images to label next. uncertainty: images with the
    smallest margin between the two likeliest classes. diversity: images whose labels tell most
    about all images that the network is unsure of; it adds the columns impurity and features."""
    num_picks: int = 100
    """Number of images to label next. Of nearly the same images, diversity takes one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("top_k", self.top_k, 1)
        require_at_least("num_picks", self.num_picks, 1)
        require(
            self.rank_by is None or self.top_k > 1,
            "top_k",
            self.top_k,
            "a margin needs the two likeliest classes: use 2 or more with --rank-by",
        )
        require_share("refused", self.refused)
        require_share("coverage", self.coverage)
        require_share("least_probability", self.least_probability)


Pooling = Literal["avg", "max", "none"]


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(InferenceConfig):
    """Extract features of any stage of a network from photographs; write Parquet to OUT.

      python -m trainers features --images photos --backbone vgg16 --out runs/features
      python -m trainers features --images photos --backbone vgg19 --stage block4
          --pooling none --out runs/features
      python -m trainers features --images runs/cars --split test --run runs/tuned --stage 2
          --out runs/features

    The last stage of VGG and AlexNet is their hidden dense layers. Keras' include_top=False is
    --stage block5 --pooling none for VGG, and --stage conv3 for AlexNet.

    OUT/features has path and features, a list of fixed size. OUT/features_bad_images.parquet has
    path and reason of each unreadable image. OUT/features_summary.json is written last.
    """

    stage: str | None = None
    """Name of the stage, or its number counted from 1 at the input. Default: the last stage before
    the head (of VGG and AlexNet: the hidden dense layers, 4096 features)."""
    pooling: Pooling = "avg"
    """Pooling of a feature map, as Keras' `pooling`: avg or max over positions. none keeps the
    whole map, in the order channel, row, column."""
    half: bool = False
    """Write 16-bit floats: half the bytes, three significant digits."""

"""A folder as Hugging Face's Hub has it, which timm loads by itself.

OUT/hf/config.json, model.safetensors, README.md: `timm.create_model("local-dir:OUT/hf",
pretrained=True)`, and on the Hub `hf-hub:ORGANIZATION/NAME`.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub
from torch import nn

from cluster.io import filesystems
from cluster.io.errors import UserError, require
from trainers.export.formats import Classifier, Run, Subject
from trainers.networks.backbones import find

FILES = ("model.safetensors", "config.json")
SAME_IN_TIMM = {
    **{f"resnet{depth}": f"resnet{depth}" for depth in (50, 101, 152)},
    **{f"densenet{depth}": f"densenet{depth}" for depth in (121, 169, 201)},
    **{f"efficientnet_b{size}": f"efficientnet_b{size}" for size in range(5)},
    **{f"convnext_{size}": f"convnext_{size}" for size in ("tiny", "small", "base", "large")},
    "inception_v3": "inception_v3",
    "mobilenet_v2": "mobilenetv2_100",
    "vgg16": "vgg16",
    "vgg19": "vgg19",
}
"""timm's names of torchvision's networks that compute the same there."""


def write_folder(subject: Subject) -> list[bytes]:
    """Return the content of FILES for a network that `require_in_timm` accepts."""
    from timm.models import save_for_hf

    size_px, settings = subject.config.ingest.size_px, subject.settings
    data: dict[str, Any] = {
        "input_size": (3, size_px, size_px),
        "mean": settings.mean,
        "std": settings.std,
        "crop_pct": 1.0,
        "crop_mode": "center",
        "interpolation": "bilinear",
    }
    model = to_timm(subject)
    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(
            model,
            folder,
            model_config={"pretrained_cfg": {"tag": "thaw"}, "label_names": list(subject.classes)},
            data_config=data,
            safe_serialization=True,
        )
        file = Path(folder, "config.json")
        values = json.loads(file.read_text()) | {"calibration": subject.calibration}
        file.write_text(json.dumps(values, indent=2))
        return [Path(folder, file).read_bytes() for file in FILES]


def load_folder(contents: list[bytes]) -> Run:
    """Load it as anyone would: by timm, with the pixels' mean and deviation of its config."""
    import timm

    with tempfile.TemporaryDirectory() as folder:
        for file, content in zip(FILES, contents, strict=True):
            Path(folder, file).write_bytes(content)
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return Classifier(model, model.pretrained_cfg["mean"], model.pretrained_cfg["std"]).eval()


def require_in_timm(subject: Subject) -> None:
    """Check, before any work, that timm has the network.

    Raises:
        UserError: where it has none with the same tensors.
    """
    backbone = subject.config.model.backbone
    require(
        hasattr(subject.model, "pretrained_cfg") or backbone in SAME_IN_TIMM,
        "formats",
        "hf",
        f"timm has no network with the tensors of {backbone}: leave hf out of --formats, or train "
        "a network of timm by its name",
    )


def to_timm(subject: Subject) -> Any:
    """Return a network that `require_in_timm` accepts, as timm builds it."""
    import timm

    model, backbone = subject.model, subject.config.model.backbone
    if hasattr(model, "pretrained_cfg"):
        return model
    theirs = timm.create_model(SAME_IN_TIMM[backbone], num_classes=len(subject.classes))
    copy_tensors(model, theirs, without=find(backbone).aux)
    return theirs.eval()


def copy_tensors(ours: nn.Module, theirs: nn.Module, *, without: str | None) -> None:
    """Copy the tensors of a network into one with the same layers in the same order.

    Args:
        without: name of the auxiliary head, which timm leaves out.
    """
    given = [
        tensor
        for name, tensor in ours.state_dict().items()
        if without is None or not name.startswith(f"{without}.")
    ]
    wanted = theirs.state_dict()
    assert len(given) == len(wanted), "the same layers"
    theirs.load_state_dict(
        {
            name: tensor.reshape(wanted[name].shape)
            for name, tensor in zip(wanted, given, strict=True)
        }
    )


def require_token() -> None:
    """Check, before any work, that there is a token to upload with.

    Raises:
        UserError: where there is none.
    """
    if huggingface_hub.get_token() is None:
        raise UserError(
            "push needs a token of Hugging Face that may write: set HF_TOKEN, or run "
            "`hf auth login`"
        )


def push_folder(repository: str, folder: str) -> str:
    """Upload a local folder to a repository of models, made private where it is new; return its
    URL.

    Raises:
        UserError: where the Hub refuses, or is out of reach.
    """
    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Thaw export")
    except (ValueError, OSError, RuntimeError, *filesystems.http_errors()) as error:
        # A RuntimeError is that of an upload which broke off.
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(
            f"push is {repository!r}: it could not be uploaded ({reason}); the export itself is "
            "complete; check the name, the token and the network, and run the same command again"
        ) from error
    return str(url)

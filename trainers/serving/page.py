"""The page to drop photographs on; it needs nothing but the service."""

from pathlib import Path

from cluster.io.page import render
from trainers.serving.config import ServiceConfig
from trainers.serving.model import Exported

HERE = Path(__file__).parent


def render_page(exported: Exported, config: ServiceConfig) -> str:
    return render(
        HERE / "page.html.j2",
        style=(HERE / "page.css").read_text(),
        scripts=[(HERE / "page.js").read_text()],
        sends=True,
        name=exported.name,
        classes=exported.classes,
        calibration=exported.calibration,
        config=config,
    ).decode()

"""HTML pages as one file each, with style and scripts, which needs no network.

Jinja2 escapes all text of the user (class names, paths, errors). A page's policy also allows only
its own scripts, by their hashes, and no downloads. `page.css` is the look of all pages.
"""

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

STYLE = Path(__file__).with_name("page.css")


def render(
    template: Path,
    *,
    style: str,
    scripts: Sequence[str] = (),
    sends: bool = False,
    **values: Any,
) -> bytes:
    """Return a page.

    Args:
        template: sees `made_at`, `policy`, `style` and `scripts` besides `values`.
        style: CSS of this page, over `page.css`.
        sends: whether its scripts may send requests to the page's own server, and show files.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    text = environment.get_template(template.name).render(
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=Markup(STYLE.read_text() + style),
        scripts=[Markup(script) for script in scripts],
        policy=write_policy(scripts, sends=sends),
        **values,
    )
    return text.encode()


def write_policy(scripts: Sequence[str], *, sends: bool = False) -> str:
    """Write a Content-Security-Policy under which only these scripts run, and nothing is loaded
    but what `sends` allows."""
    hashes = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    ]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes) or "'none'"
    images = "data: blob:; connect-src 'self'" if sends else "data:"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src {images}; "
        "base-uri 'none'; form-action 'none'"
    )

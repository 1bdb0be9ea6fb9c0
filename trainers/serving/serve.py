"""Serve a run until Ctrl-C."""

import importlib.util
import time
from dataclasses import fields

from cluster.io.errors import UserError
from cluster.runtime import connect
from trainers.run.folder import read_config
from trainers.serving.config import ServeConfig, ServiceConfig

PACKAGES = {"fastapi": "fastapi", "starlette": "starlette", "uvicorn": "uvicorn",
            "python_multipart": "python-multipart",
            "grpc_reflection": "grpcio-reflection", "onnx": "onnx", "onnxscript": "onnxscript",
            "onnxruntime": "onnxruntime"}  # fmt: skip
"""Modules of the extra `serve`, and their packages."""


def require_packages() -> None:
    """Check, before any work, that the optional packages are installed.

    Raises:
        UserError: with the command that installs them.
    """
    missing = [PACKAGES[name] for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"serve needs {', '.join(missing)}: pip install -e '.[serve]'")


def run_serve(config: ServeConfig) -> None:
    """Serve until Ctrl-C."""
    require_packages()
    read_config(config.run)
    connect(config.address)
    start(config)
    print(
        f"Serving {config.run} at http://{config.host}:{config.port} (Ctrl-C ends it)", flush=True
    )
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        pass
    finally:
        stop()


def start(config: ServeConfig) -> None:
    """Start the service on the connected cluster; return when it answers.

    Raises:
        UserError: where there is no such run.
    """
    from ray import serve

    from trainers.serving.app import build

    arguments = {field.name: getattr(config, field.name) for field in fields(ServiceConfig)}
    serve.start(http_options={"host": config.host, "port": config.port})
    application = build(arguments)
    serve.run(application, name="thaw", route_prefix="/")


def stop() -> None:
    from ray import serve

    serve.shutdown()

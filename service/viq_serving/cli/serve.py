"""`viq serve`: the service. Its flags are the fields of the settings, so neither can miss one of the other."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from viq_serving.cli.failures import DONE, UsageError, require

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

HELP = "answer over HTTP until told to stop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag for each setting; raises `Unusable` if the service is not installed."""
    require("pydantic_settings")
    from viq_serving.settings import PREFIX, Settings

    parser.epilog = f"Every flag is also an environment variable, --http-port being {PREFIX}HTTP_PORT; flags win."
    parser.add_argument("--print-config", action="store_true", help="print the settings that result, and end")
    for name, field in Settings.model_fields.items():
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, **_flag(name, field))


def run(args: argparse.Namespace) -> int:
    """Serve; returns the exit code."""
    from viq_serving.errors import SettingsError
    from viq_serving.settings import Settings

    flags = {name: getattr(args, name) for name in Settings.model_fields}
    try:
        settings = Settings.load({name: tuple(v) if isinstance(v, list) else v for name, v in flags.items()})
    except SettingsError as error:
        raise UsageError(str(error)) from None
    if args.print_config:
        print(json.dumps(settings.masked(), indent=2))
        return DONE
    require("torch", "safetensors", "fastapi", "uvicorn", "httptools", "prometheus_client")
    from viq_serving.heap import keep_freed_memory
    from viq_serving.openmp import spin_briefly

    spin_briefly()
    keep_freed_memory()
    # Its own lines are no JSON, and to it a port that closes is an error. Read when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from viq_serving.app import run as serve

    return serve(settings)


def _flag(name: str, field: FieldInfo) -> dict[str, Any]:
    """How argparse is told of a setting. Values stay strings: the settings check them, as they do the environment's."""
    default = "" if field.default is None or field.default == () else f"; default: {field.default}"
    told: dict[str, Any] = {"help": f"{field.description}{default}".replace("%", "%%"), "default": None}
    if field.annotation is bool:
        return {**told, "action": argparse.BooleanOptionalAction}
    if get_origin(field.annotation) is Literal:
        return {**told, "choices": get_args(field.annotation)}
    metavar = name.rpartition("_")[2].upper()
    if get_origin(field.annotation) is tuple:
        return {**told, "action": "append", "metavar": metavar}
    return {**told, "metavar": metavar}

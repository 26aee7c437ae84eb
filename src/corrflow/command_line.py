"""Commands whose options are the fields of one dataclass; `--config FILE.yaml` sets options by their names.

    @dataclass(frozen=True, kw_only=True)
    class TrainOptions:
        data: Annotated[str, typer.Option(help="Folder of videos.")]
        steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None

    @app.command(help="Train an encoder.")
    @with_options
    def train(options: TrainOptions) -> None: ...

`with_options` adds `--config` and `--version` and reports errors as `corrflow.errors` defines.
The callback of a command group takes `version: Version = False`.

A configuration file has the options' long names as keys, with - or _. An argument's key is its field's name:

    data: videos/
    keep-every: 500
    no-cycle: true
    format: [coco, jsonl]

Each value is text that is parsed as on the command line. Options on the command line override the file.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from corrflow.errors import InputError, errors_reported
from corrflow.file_budget import open_regular

MAX_CONFIG_BYTES = 1_000_000

_Texts = dict[str, str | list[str]]


def _apply_config(context: typer.Context, path: Path | None) -> None:
    """Make the values of a configuration file the defaults of the command's options."""
    if path is not None:
        with errors_reported():
            context.default_map = {**(context.default_map or {}), **_checked(context, read_config(path), path)}


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        print(f"corrflow {version('corrflow')}")
        raise typer.Exit


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.yaml",
        is_eager=True,
        callback=_apply_config,
        help="YAML file of options; options on the command line override it.",
    ),
]
Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
]


def with_options(function: Callable[[Any], None]) -> Callable[..., None]:
    """Turn `function(options: Dataclass)` into a Typer command with one option or argument for each field."""
    (cls,) = (hint for name, hint in typing.get_type_hints(function).items() if name != "return")
    hints = typing.get_type_hints(cls, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(cls)
    ]
    for name, annotation, default in (("config", Config, None), ("version", Version, False)):
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )

    @functools.wraps(function)
    def command(config: Path | None = None, version: bool = False, **values: Any) -> None:
        with errors_reported():
            function(cls(**values))

    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def read_config(path: Path) -> _Texts:
    """Return the texts of a YAML mapping of names to scalars or lists of scalars, names with _ in place of -.

    Values stay text, so YAML's types and tags have no effect. Raises InputError for any other content.
    """
    import yaml  # 30 ms, which `--help` does not need

    expected = f"expected a YAML file of options such as 'steps: 2000' in {str(path)!r}"
    try:
        with open_regular(path) as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise InputError(f"{expected}, got more than {MAX_CONFIG_BYTES:,} bytes; name another file")
        root = yaml.compose(content, Loader=yaml.SafeLoader)  # nodes alone: no object is constructed
    except OSError as error:
        raise InputError(f"{expected}, got an error ({error.strerror}); check the path") from None
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{expected}, got no valid YAML ({reason}); correct it") from None
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{expected}, got no mapping; write one 'name: value' a line")

    def text(node: object, name: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            raise InputError(f"{expected}, got no value or a nested one for {name!r}; write one value or a flat list")
        return node.value

    texts: _Texts = {}
    for key, value in root.value:
        name = text(key, "a name").replace("-", "_")
        if name in texts:
            raise InputError(f"{expected}, got {name!r} twice; remove one")
        listed = isinstance(value, yaml.SequenceNode)
        texts[name] = [text(item, name) for item in value.value] if listed else text(value, name)
    return texts


def _checked(context: typer.Context, texts: _Texts, path: Path) -> _Texts:
    """Return the texts by parameter name; raise InputError for an unknown option or a value of the wrong type."""
    parameters = {
        option.lstrip("-").replace("-", "_"): parameter
        for parameter in context.command.params
        if parameter.name not in ("config", "version", "help")
        for option in (parameter.opts if parameter.param_type_name == "option" else [parameter.name or ""])
        if parameter.param_type_name == "argument" or option.startswith("--")
    }
    checked: _Texts = {}
    for name, value in texts.items():
        if name not in parameters:
            raise InputError(
                f"expected names of options in {str(path)!r}, got {name!r}; choose from {', '.join(sorted(parameters))}"
            )
        parameter = parameters[name]
        several = getattr(parameter, "multiple", False) or parameter.nargs != 1
        if isinstance(value, list) and not several:
            raise InputError(f"expected one value of {name!r} in {str(path)!r}, got a list; write one value")
        values = [value] if several and isinstance(value, str) else value
        try:
            parameter.process_value(context, values)  # the default map is checked here to name its file
        except typer.BadParameter as error:
            raise InputError(
                f"expected a valid value of {name!r} in {str(path)!r}, got an error ({error.message.rstrip('.')});"
                " correct it"
            ) from None
        checked[parameter.name or name] = values
    return checked

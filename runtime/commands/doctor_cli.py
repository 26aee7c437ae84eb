"""Command line of corrflow-doctor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from corrflow.command_line import with_options

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Options of corrflow-doctor."""

    model: Annotated[Path | None, typer.Option(help="Model to test, and its engines. [quarter]")] = None
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False


@app.command(
    help="""Test the installation: which parts work, why others do not, and how to fix them.

    Each backend tracks a small clip. Exit code 1: a part is broken; an absent part is no error.

    \b
    Examples:
      corrflow-doctor
      corrflow-doctor --model artifacts/first    # and its engines
      corrflow-doctor --json > report.json
    """
)
@with_options
def doctor(options: DoctorOptions) -> None:
    from corrflow.runtime.commands.doctor import examine, healthy, machine

    if options.model is not None:
        from corrflow.runtime.artifacts.artifact import load_artifact
        from corrflow.runtime.artifacts.bundled import resolve_model

        load_artifact(resolve_model(options.model))  # a wrong path is an error, not a finding
    findings = []
    if options.json:
        from dataclasses import asdict
        from json import dumps

        findings = list(examine(options.model))
        report = {"healthy": healthy(findings), "machine": machine(), "findings": [asdict(f) for f in findings]}
        print(dumps(report, indent=2))
    else:
        about = machine()
        print(f"Python {', '.join([about.pop('python'), *about.values()])}", flush=True)
        for finding in examine(options.model):
            findings.append(finding)
            print(f"{finding.state:<7} {finding.part}: {finding.detail}", flush=True)
            if finding.remedy:
                print(f"{'':<7} -> {finding.remedy}")
    if not healthy(findings):
        raise SystemExit(1)


def main() -> None:
    """Run the console command."""
    app()


if __name__ == "__main__":
    main()

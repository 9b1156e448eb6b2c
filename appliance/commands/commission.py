# SPDX-License-Identifier: Apache-2.0
"""nearscan commission: set a pipeline's fault thresholds from what it measured of clean frames."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from appliance import __version__, config
from appliance.commands.options import config_option, json_option
from appliance.errors import ConfigError, StorageError
from appliance.faults.commissioned import Commissioned, Setup, commissioned_path, read_commissioned, write_commissioned
from appliance.faults.detector import Rule, default_thresholds
from appliance.faults.measurements import Measurements, measurement_files, read_measurements
from appliance.faults.thresholds import CommissioningError, learn_setup
from appliance.tables import table
from operators.stages.detect_anomalies import DETECTORS


@click.command()
@click.argument("pipeline")
@config_option
@click.option(
    "--rate",
    type=click.FloatRange(1e-6, 1e-2),
    default=1e-4,
    show_default=True,
    help="False alarms per clean frame to aim at, all rules together.",
)
@click.option("--all-clean", is_flag=True, help="Learn from every frame, also from those that default rules doubt.")
@click.option("--forget", is_flag=True, help="Delete what was measured so far, to begin anew; thresholds stay.")
@json_option
def commission(pipeline: str, file: Path, rate: float, all_clean: bool, forget: bool, as_json: bool) -> None:
    """Set thresholds of PIPELINE's fault detection from the newest frames it has seen: at least 500, all clean.

    They hold from the next scan on.
    """
    settings = config.load(file)
    if pipeline not in settings.pipelines:
        known = ", ".join(settings.pipelines) or "none"
        raise ConfigError(f"commission: no pipeline {pipeline!r} in {file}; known: {known}")
    path = commissioned_path(settings.site.data_dir, pipeline)
    files = measurement_files(path.parent, pipeline)
    if forget:
        for each in files:
            each.unlink(missing_ok=True)
        click.echo(f"{pipeline}: {len(files)} recordings deleted; the next frames are recorded anew")
        return
    setups, problems = _learn([read_measurements(each) for each in files], rate, all_clean)
    if not setups:
        nothing = f"no frames in {path.parent}; run the pipeline with a detect_anomalies stage"
        raise CommissioningError(f"commission: {pipeline}: {'; '.join(problems) or nothing}")
    learnt = Commissioned(
        pipeline=pipeline, version=__version__, false_alarm_rate=rate, setups={**_others(path), **setups}
    )
    _write(path, learnt)
    click.echo(json.dumps(learnt.model_dump(), indent=2) if as_json else _told(setups))
    for problem in problems:
        click.echo(f"left as it was: {problem}", err=True)


def _learn(recorded: list[Measurements], rate: float, all_clean: bool) -> tuple[dict[str, Setup], list[str]]:
    """Return what each setup gives, and why some give nothing."""
    setups, problems = {}, []
    for measured in recorded:
        try:
            setups[measured.setup] = learn_setup(measured, _rules_of(measured.rules), rate, all_clean=all_clean)
        except CommissioningError as error:
            problems.append(str(error))
    return setups, problems


def _rules_of(names: Iterable[str]) -> Mapping[str, Rule]:
    """The rules of the modality that has these."""
    return next((d.RULES for d in DETECTORS.values() if set(names) <= set(d.RULES)), {})


def _others(path: Path) -> dict[str, Setup]:
    """Setups that were commissioned before; none where their file is damaged, which the new one replaces."""
    try:
        before = read_commissioned(path)
    except StorageError as error:
        click.echo(f"{error}; what it held is given up", err=True)
        return {}
    return before.setups if before else {}


def _write(path: Path, learnt: Commissioned) -> None:
    try:
        write_commissioned(path, learnt)
        owner = path.parent.stat()
        if os.geteuid() == 0:  # the file belongs to the service's user, whoever runs this
            os.chown(path, owner.st_uid, owner.st_gid)
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror}; run this as the service's user or root") from error


def _told(setups: Mapping[str, Setup]) -> str:
    """A table for people."""
    parts = []
    rules = {name: rule for detector in DETECTORS.values() for name, rule in detector.RULES.items()}
    for name, setup in setups.items():
        rows = [
            (
                rule,
                rules[rule].what,
                f"{learnt.centre:.3g}",
                f"{learnt.threshold:.3g}",
                f"{rules[rule].default:.3g}",
                "less sensitive than by default" if learnt.threshold > (rules[rule].default or 0) else "",
            )
            for rule, learnt in setup.rules.items()
        ]
        head = ("rule", "measured", "usual", "threshold", "by default", "remark")
        parts.append(f"{name}, {setup.n_frames} frames:\n{table(head, rows)}")
        missing = [rule for rule in default_thresholds(_rules_of(setup.rules)) if rule not in setup.rules]
        if missing:
            parts.append(f"default thresholds stay for: {', '.join(missing)} (too few frames gave them a basis)")
    return "\n".join([*parts, "In force from the next scan on."])

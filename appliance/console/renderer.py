# SPDX-License-Identifier: Apache-2.0
"""The render thread: one, of low priority, that draws for all viewers in turn, newest view and newest volume only.

A turn is one band of a picture, some ten milliseconds; the next turn is of who has had least so far. What is compiled
holds no GIL. The first start after an update compiles, for up to a minute; pages are told.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from appliance.console.kpis import Kpis
from appliance.console.viewer import LEVELS, Task, Viewer
from appliance.console.volumes import Arrived, Volumes
from appliance.imaging.volume_message import Volume
from appliance.render.transfer import find_preset, presets
from appliance.render.view import View

if TYPE_CHECKING:
    from appliance.render.draw import Picture, Scene
    from appliance.render.on_gpu import OnGpu

MOST_VIEWERS = 16
_NICE = 10
_PATIENCE_S = 0.5  # a sharp picture of an older volume may take so long, then it gives way
_SLOW_S, _QUICK_S = 0.050, 0.012  # a draft slower than that gets coarser, a quicker one finer: 20 pictures a second
_PREPARING = "3D is being made ready: after an update that takes up to a minute"
_NOTHING = "no volume yet: a pipeline with the sink 'volume' makes one of each scan"


class Renderer:
    """Draws what viewers want. `add` and `remove` are called on the event loop."""

    def __init__(self, run_dir: Path, pipelines: tuple[str, ...], wants_gpu: bool = False) -> None:
        self.volumes = Volumes(run_dir, pipelines, self.wake)
        self.kpis = Kpis()
        self._viewers: set[Viewer] = set()
        self._jobs: dict[Viewer, _Job] = {}
        self._current: dict[str, Arrived] = {}  # by pipeline: what is begun now
        self._scenes: dict[str, tuple[Arrived, Scene]] = {}  # by pipeline: the current volume made ready
        self._least_s = 0.0
        self._wants_gpu, self._no_gpu = wants_gpu, ""
        self._caster: OnGpu | None = None
        self._is_ready = self._stopping = False
        self._something = threading.Event()
        self._thread = threading.Thread(target=self._run, name="render", daemon=True)

    def start(self) -> None:
        """Begin."""
        self.volumes.start()
        self._thread.start()

    def stop(self) -> None:
        """End; a band that is being drawn is finished first."""
        self._stopping = True
        self.wake()
        self.volumes.stop()
        self._thread.join(5)

    def wake(self) -> None:
        """Have the render thread look what is new."""
        self._something.set()

    def add(self, viewer: Viewer) -> bool:
        """Draw for `viewer` from now on; False: there are too many already."""
        if len(self._viewers) >= MOST_VIEWERS:
            return False
        viewer.used_s = self._least_s
        self._viewers = self._viewers | {viewer}
        self.wake()
        return True

    def remove(self, viewer: Viewer) -> None:
        """Draw for it no more."""
        self._viewers = self._viewers - {viewer}
        self.wake()

    def status(self) -> dict[str, Any]:
        """Return viewers, volumes and KPIs, as plain values."""
        return {
            "ready": self._is_ready,
            "device": "gpu" if self._caster and not self._caster.fault else "cpu",
            "viewers": len(self._viewers),
            "volumes": {name: _describe(arrived.volume) for name, arrived in self.volumes.newest.copy().items()},
            "faults": self.volumes.faults.copy(),
            "kpis": self.kpis.status(),
        }

    def alarms(self) -> dict[str, str]:
        """Return what people must know."""
        has_ended = self._thread.ident is not None and not self._thread.is_alive() and not self._stopping
        ended = "the render thread has ended; see the console's log, and restart it"
        no_gpu = self._caster.fault if self._caster else self._no_gpu
        return {key: text for key, text in (("3d", ended * has_ended), ("3d gpu", no_gpu)) if text}

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        try:
            self._prepare()
            while not self._stopping:
                self._something.clear()
                self._tell("")
                self._forget()
                viewer = self._next()
                if viewer is None:
                    self._something.wait(1.0)
                else:
                    self._turn(viewer)
        finally:
            self._is_ready = False
            self._tell("3D has ended: the console's log says why")

    def _prepare(self) -> None:
        """Compile, as soon as somebody looks or there is something to see."""
        while not (self._stopping or self._viewers or self.volumes.newest):
            self._something.wait(1.0)
            self._something.clear()
        if not self._stopping:
            self._tell(_PREPARING)
            _compile()
            if self._wants_gpu:
                from appliance.render.on_gpu import find_gpu

                self._caster, self._no_gpu = find_gpu()
            self._is_ready = True

    def _tell(self, preparing: str) -> None:
        for viewer in self._viewers:
            words = preparing or self.volumes.faults.get(viewer.pipeline, "")
            if not words and viewer.pipeline not in self.volumes.newest:
                words = _NOTHING
            if words and words != viewer.said:
                viewer.deliver({"state": "waiting", "text": words}, b"")
            viewer.said = words

    def _forget(self) -> None:
        """Keep nothing that nobody looks at."""
        self._jobs = {viewer: job for viewer, job in self._jobs.items() if viewer in self._viewers}
        watched = {viewer.pipeline for viewer in self._viewers}
        self._scenes = {name: scene for name, scene in self._scenes.items() if name in watched}

    def _adopt(self) -> None:
        """Turn to newer volumes; one whose pictures are still in the making holds back the next but one."""
        for pipeline, newest in self.volumes.newest.copy().items():
            current = self._current.get(pipeline)
            if all(job.task.arrived is current for viewer, job in self._jobs.items() if viewer.pipeline == pipeline):
                self._current[pipeline] = newest

    def _give_up(self) -> None:
        """Drop what nobody wants any more, and what takes so long that it would show an old volume."""
        for viewer, job in list(self._jobs.items()):
            is_old = self.volumes.newest.get(viewer.pipeline) is not job.task.arrived
            if job.task.level > 0 and is_old and time.monotonic() - job.began_s > _PATIENCE_S:
                viewer.is_slow |= job.task.level == 1
                del self._jobs[viewer]
            elif viewer.is_in_vain(job.task):
                del self._jobs[viewer]

    def _next(self) -> Viewer | None:
        """Begin what is to be begun; return who is next."""
        self._give_up()
        self._adopt()
        for viewer in self._viewers - self._jobs.keys():
            task = viewer.next_task(self._current.get(viewer.pipeline))
            if task is not None:
                self._jobs[viewer] = _Job(task, viewer.draft)
                viewer.used_s = max(viewer.used_s, self._least_s)  # who did nothing saved nothing up
        return min(self._jobs, key=lambda viewer: viewer.used_s, default=None)

    def _turn(self, viewer: Viewer) -> None:
        job = self._jobs[viewer]
        began_s = time.perf_counter()
        self._least_s = viewer.used_s
        if job.work is None:
            job.begin(self._scene(viewer.pipeline, job.task.arrived))
        result = job.step()
        spent_s = time.perf_counter() - began_s
        viewer.used_s += spent_s
        job.spent_s += spent_s
        if result is not None:
            header, encoded = result
            if job.task.level == 1:
                viewer.is_slow = time.monotonic() - job.began_s > _PATIENCE_S
            header["render_ms"] = round(job.spent_s * 1e3, 1)
            if job.task.level == 0:
                viewer.draft = _adapt(viewer.draft, job.spent_s)
            del self._jobs[viewer]
            viewer.done(job.task, header, encoded)

    def _scene(self, pipeline: str, arrived: Arrived) -> Scene:
        from appliance.render import ray_cast
        from appliance.render.draw import prepare

        kept = self._scenes.get(pipeline)
        if kept is None or kept[0] is not arrived:
            kept = (arrived, prepare(arrived.volume, self._caster or ray_cast))
            self._scenes[pipeline] = kept
        return kept[1]


class _Job:
    """One picture in the making."""

    def __init__(self, task: Task, draft: int) -> None:
        self.task, self.spent_s, self.began_s = task, 0.0, time.monotonic()
        self.work: Generator[None, None, Picture] | None = None
        self._draft = draft

    def begin(self, scene: Scene) -> None:
        """Prepare to draw `scene`."""
        from appliance.render.draw import DRAFTS, FINEST, SHARP, draw

        quality = (DRAFTS[self._draft], SHARP, FINEST)[self.task.level]
        self.work = draw(scene, self.task.wanted.view, quality)

    def step(self) -> tuple[dict[str, Any], bytes] | None:
        """Draw one band; after the last return the header for the page and the encoded picture."""
        assert self.work is not None
        try:
            next(self.work)
        except StopIteration as done:
            return self._finish(done.value)
        return None

    def _finish(self, picture: Picture) -> tuple[dict[str, Any], bytes]:
        view, volume = self.task.wanted.view, self.task.arrived.volume
        kind, encoded = _encode(picture.pixels, self.task.level)
        return {
            "state": "picture",
            "view": self.task.wanted.number,
            "quality": LEVELS[self.task.level],
            "format": kind,
            "width": view.width,
            "height": view.height,
            "mode": view.mode,
            "preset": find_preset(volume.modality, view.preset).name,
            "presets": [preset.name for preset in presets(volume.modality)],
            "panes": [pane.describe(volume.modality) for pane in picture.panes],
            "scan_id": volume.scan_id,
            "received_ns": volume.received_ns,
            "marks": [{"stage": mark.stage, "reason": mark.reason} for mark in volume.marks],
            **_describe(volume),
        }, encoded


def _describe(volume: Volume) -> dict[str, Any]:
    return {
        "modality": volume.modality,
        "version": volume.version,
        "complete": volume.complete,
        "shape": list(volume.array.shape),
        "filled": round(volume.filled, 3),
        "acquired_ns": volume.acquired_ns,
    }


def _encode(pixels: Any, level: int) -> tuple[str, bytes]:
    from PIL import Image

    out, image = io.BytesIO(), Image.fromarray(pixels)
    if level == len(LEVELS) - 1:
        image.save(out, "PNG", compress_level=1)
        return "image/png", out.getvalue()
    image.save(out, "JPEG", quality=(80, 92)[level], subsampling=(2, 0)[level])
    return "image/jpeg", out.getvalue()


def _adapt(draft: int, spent_s: float) -> int:
    if spent_s > _SLOW_S:
        return min(draft + 1, 2)
    return max(draft - 1, 0) if spent_s < _QUICK_S else draft


def _compile() -> None:
    """Draw something of each kind: numba compiles it, or loads what it compiled before."""
    from appliance.render.draw import DRAFTS, draw, prepare

    for dtype in ("int16", "uint8"):
        array = np.zeros((5, 5, 5), dtype)
        tiny = Volume(
            pipeline="", scan_id="", modality="MR", array=array, affine=np.eye(4), value_range=(0, 1), acquired_ns=0,
            received_ns=0, version=0,
        )  # fmt: skip
        for mode in ("volume", "mip", "oblique"):
            for _ in draw(prepare(tiny), View(mode=mode, width=64, height=64), DRAFTS[0]):  # type: ignore[arg-type]
                pass

# SPDX-License-Identifier: Apache-2.0
"""Volume rendering on a CPU beside a plain VTK script: the same volume, views, picture, samples and one thread.

    python benchmarks/render.py [--size 512] [--rounds 5] [--series FOLDER] [--json FILE]

Needs VTK, which the product does not: `pip install vtk` into a copy of the environment. Time to first image: from a
new volume in memory, with everything loaded, to its first picture. Frames per second: the same volume turned. VTK:
vtkFixedPointVolumeRayCastMapper (what vtkSmartVolumeMapper takes on a CPU), offscreen, automatic adjustment of
distances off. Both see the volume by parallel projection, with the same colours, opacities, light, and distance
between samples.

Quality: the correlation between both pictures, and the PSNR of each to its own picture at a quarter of the step (ours
then without a short cut), so that speed is not bought by leaving out. Floor: reading the volume once.
Times are CPU times: with one thread each, what a core of its own would show.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np
import vtk
from live import machine
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from appliance.imaging.volume_message import Volume
from appliance.render.draw import DRAFTS, SHARP, Quality, draw, prepare
from appliance.render.transfer import find_preset
from appliance.render.view import View, panes, read_view
from appliance.tables import table

SERIES = Path(__file__).parents[2] / "shared" / "data" / "series" / "ct_phantom_philips_S2010.tar.xz"
N_VIEWS = 12
TRUTH = Quality(1, 0.25, 0.0)
PRESETS = ("bone", "soft tissue")


def synthetic(n: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """A head of air, skin, bone and brain with noise as CT has it, edges as soft as a scanner's; HU, (z, y, x)."""
    axis = np.linspace(-1, 1, n, dtype=np.float32)
    z, y, x = axis[:, None, None], axis[:, None], axis
    r = np.sqrt((x / 0.72) ** 2 + (y / 0.9) ** 2 + (z / 0.95) ** 2)
    edge = np.float32(n / 3)  # a voxel and a half from one tissue to the next

    def inside(limit: float) -> np.ndarray:
        return np.float32(0.5) + np.float32(0.5) * np.tanh((limit - r) * edge / 2)

    hu = -1000 + 1040 * inside(0.97) + 1000 * (inside(0.90) - inside(0.80)) - 10 * inside(0.8)
    for k in range(12):  # vessels with contrast agent
        a = 2 * np.pi * k / 12
        d2 = (x - 0.35 * np.cos(a + 2 * z)) ** 2 + (y - 0.45 * np.sin(a + 2 * z)) ** 2
        hu += 260 * np.exp(-d2 / 0.0006) * inside(0.75)
    hu += np.random.default_rng(0).normal(0, 12, hu.shape).astype(np.float32)
    return np.clip(np.round(hu), -1024, 3071).astype(np.int16), np.diag([0.9, 0.9, 0.9, 1.0])


def read_series(archive: Path) -> tuple[np.ndarray, np.ndarray]:
    """A CT series as HU (z, y, x) and its affine."""
    import tarfile

    import pydicom

    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
        files = [path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith("LICENSE")]
        images = [pydicom.dcmread(path) for path in files]
    row, column = (np.array(images[0].ImageOrientationPatient[i : i + 3], float) for i in (0, 3))
    images.sort(key=lambda image: np.cross(row, column) @ np.array(image.ImagePositionPatient, float))
    first, last = (np.array(images[i].ImagePositionPatient, float) for i in (0, -1))
    dy, dx = map(float, images[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3] = np.stack([row * dx, column * dy, (last - first) / (len(images) - 1), first], 1)
    hu = [image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept) for image in images]
    return np.ascontiguousarray(np.stack(hu).round().astype(np.int16)), affine


def views(preset: str, size: int) -> list[View]:
    """A turn about the long axis, nodding."""
    found = []
    for k in range(N_VIEWS):
        turn, nod = 2 * math.pi * k / N_VIEWS + 0.1, 0.5 * math.sin(2 * math.pi * k / N_VIEWS + 0.3)
        (a, b), (c, d) = ((math.sin(angle / 2), math.cos(angle / 2)) for angle in (nod, turn))
        turned = [a * d, a * c, b * c, b * d]  # (0, 0, c, d) times (a, 0, 0, b)
        found.append(read_view({"preset": preset, "rotation": turned, "width": size, "height": size, "zoom": 1.1}))
    return found


class Ours:
    """The renderer of the product."""

    def __init__(self, array: np.ndarray, affine: np.ndarray) -> None:
        self.volume = Volume(
            pipeline="", scan_id="", modality="CT", array=array, affine=affine, value_range=(-1000, 1000),
            acquired_ns=0, received_ns=0, version=1,
        )  # fmt: skip
        self.scene = None

    def load(self) -> None:
        self.scene = prepare(self.volume)

    def picture(self, view: View, quality: Quality = SHARP) -> np.ndarray:
        work = draw(self.scene, view, quality)
        while True:
            try:
                next(work)
            except StopIteration as done:
                return done.value.pixels


class Peer:
    """A plain VTK script."""

    def __init__(self, array: np.ndarray, affine: np.ndarray, preset: str, size: int, step_mm: float) -> None:
        self.array, self.affine, self.preset, self.size, self.step_mm = array, affine, preset, size, step_mm
        self.renderer, self.window = vtk.vtkRenderer(), vtk.vtkRenderWindow()
        self.window.SetOffScreenRendering(1)
        self.window.SetMultiSamples(0)
        self.window.SetSize(size, size)
        self.window.AddRenderer(self.renderer)
        self.renderer.GetActiveCamera().ParallelProjectionOn()
        self.window.Render()

    def load(self) -> None:
        image = vtk.vtkImageData()
        image.SetDimensions(*self.array.shape[::-1])
        image.GetPointData().SetScalars(numpy_to_vtk(self.array.ravel()))
        mapper = self.mapper = vtk.vtkFixedPointVolumeRayCastMapper()
        mapper.SetInputData(image)
        mapper.SetNumberOfThreads(1)
        mapper.AutoAdjustSampleDistancesOff()
        mapper.LockSampleDistanceToInputSpacingOff()
        mapper.SetImageSampleDistance(1.0)
        sides = np.linalg.norm(self.affine[:3, :3], axis=0)
        image.SetSpacing(*sides)
        self.set_step(self.step_mm)
        volume = vtk.vtkVolume()
        volume.SetMapper(mapper)
        volume.SetProperty(self._property())
        matrix = self.affine.copy()
        matrix[:3, :3] /= sides
        user = vtk.vtkMatrix4x4()
        user.DeepCopy(matrix.ravel())
        volume.SetUserMatrix(user)
        self.renderer.RemoveAllViewProps()
        self.renderer.AddVolume(volume)

    def _property(self):
        colours, opacities, shown = vtk.vtkColorTransferFunction(), vtk.vtkPiecewiseFunction(), vtk.vtkVolumeProperty()
        for value, *colour, opacity in find_preset("CT", self.preset).points:
            colours.AddRGBPoint(value, *colour)
            opacities.AddPoint(value, opacity)
        shown.SetColor(colours)
        shown.SetScalarOpacity(opacities)
        shown.SetScalarOpacityUnitDistance(1.0)
        shown.SetInterpolationTypeToLinear()
        shown.ShadeOn()
        shown.SetAmbient(0.15)
        shown.SetDiffuse(0.85)
        shown.SetSpecular(0.25)
        shown.SetSpecularPower(16)
        return shown

    def set_step(self, step_mm: float) -> None:
        self.mapper.SetSampleDistance(step_mm)
        self.mapper.SetInteractiveSampleDistance(step_mm)

    def picture(self, view: View) -> None:
        (pane,) = panes(view, self.affine, self.array.shape)
        camera, reach = self.renderer.GetActiveCamera(), 2000.0
        camera.SetFocalPoint(*pane.centre_mm)
        camera.SetPosition(*(pane.centre_mm - pane.axes[2] * reach))
        camera.SetViewUp(*-pane.axes[1])
        camera.SetParallelScale(pane.pixel_mm * self.size / 2)
        self.renderer.ResetCameraClippingRange()
        self.window.Render()

    def pixels(self) -> np.ndarray:
        """The picture that was rendered last; not timed."""
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self.window)
        grab.ReadFrontBufferOff()
        grab.ShouldRerenderOff()
        grab.Update()
        return vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars()).reshape(self.size, self.size, 3)[::-1].copy()


def timed(action) -> float:
    """CPU time in ms: what one thread takes on a core of its own, whatever else runs on the machine."""
    began = time.process_time()
    action()
    return (time.process_time() - began) * 1e3


def psnr(picture: np.ndarray, truth: np.ndarray) -> float:
    inside = truth.max(-1) > 0
    return float(10 * np.log10(255**2 / ((picture.astype(float) - truth)[inside] ** 2).mean()))


def closeness(ours: Ours, peer: Peer, view: View) -> tuple[float, float, float]:
    """Correlation of both pictures; PSNR of each to its own at a quarter of the step."""
    peer.picture(view)
    mine, theirs = ours.picture(view), peer.pixels()
    peer.set_step(peer.step_mm * TRUTH.step)
    peer.picture(view)
    peer.set_step(peer.step_mm)
    correlation = np.corrcoef(mine.ravel(), theirs.ravel())[0, 1]
    return float(correlation), psnr(mine, ours.picture(view, TRUTH)), psnr(theirs, peer.pixels())


def compare(name: str, array: np.ndarray, affine: np.ndarray, preset: str, size: int, rounds: int) -> dict:
    """Rounds of ours and theirs in turn, so that a busy minute hits both; the best round of each."""
    ours = Ours(array, affine)
    ours.load()
    peer = Peer(array, affine, preset, size, ours.scene.step_mm)
    looks = views(preset, size)
    ours.picture(looks[0])  # compiled
    ours.picture(looks[0], DRAFTS[1])
    first, frame, draft, floor = [], [], [], []
    for _ in range(rounds):
        begins = ((renderer.load, lambda renderer=renderer: renderer.picture(looks[0])) for renderer in (ours, peer))
        first.append([timed(load) + timed(look) for load, look in begins])
        pairs = [(timed(lambda v=v: ours.picture(v)), timed(lambda v=v: peer.picture(v))) for v in looks]
        frame.append(np.mean(pairs, 0))
        draft.append(np.mean([timed(lambda v=v: ours.picture(v, DRAFTS[1])) for v in looks]))
        floor.append(timed(array.max))
    first, frame = np.min(first, 0), np.min(frame, 0)
    quality = [closeness(ours, peer, view) for view in looks[::3]]
    correlation, our_psnr, their_psnr = np.mean(quality, 0)
    return {
        "volume": name, "shape": list(array.shape), "preset": preset,
        "first_image_ms": {"ours": first[0], "vtk": first[1], "times": first[1] / first[0]},
        "frames_per_s": {"ours": 1e3 / frame[0], "vtk": 1e3 / frame[1], "times": frame[1] / frame[0]},
        "draft_frames_per_s": 1e3 / min(draft),
        "correlation": correlation, "psnr_db": {"ours": our_psnr, "vtk": their_psnr},
        "floor_ms": min(floor),
    }  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--size", type=int, default=512, help="pixels of a side")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--series", type=Path, default=SERIES, help="archive of a CT series")
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--pictures", type=Path, help="folder for both pictures of each case")
    options = arguments.parse_args()
    volumes = {"synthetic 256^3": synthetic()}
    if options.series.exists():
        volumes[options.series.name.partition(".")[0]] = read_series(options.series)
    cases = [
        compare(name, *volume, preset, options.size, options.rounds)
        for name, volume in volumes.items()
        for preset in PRESETS
    ]
    result = {"machine": machine(), "vtk": vtk.vtkVersion().GetVTKVersion(), "size": options.size, "cases": cases}
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2, default=float) + "\n")


def show(result: dict) -> None:
    head = ("volume", "preset", "first image ms", "VTK", "times", "frames/s", "VTK", "times", "draft/s", "corr.",
            "PSNR dB", "VTK", "floor ms")  # fmt: skip
    rows = [
        (
            case["volume"], case["preset"],
            *(round(case["first_image_ms"][who], 1) for who in ("ours", "vtk", "times")),
            *(round(case["frames_per_s"][who], 1) for who in ("ours", "vtk", "times")),
            round(case["draft_frames_per_s"], 1), round(case["correlation"], 3),
            *(round(case["psnr_db"][who], 1) for who in ("ours", "vtk")), round(case["floor_ms"], 1),
        )
        for case in result["cases"]
    ]  # fmt: skip
    print(f"{result['machine']['cpu']}, one thread each, {result['size']} x {result['size']}, VTK {result['vtk']}")
    print(table(head, rows))


if __name__ == "__main__":
    main()

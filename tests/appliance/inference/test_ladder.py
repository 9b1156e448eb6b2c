# SPDX-License-Identifier: Apache-2.0
"""One engine runs; whatever goes wrong with it costs single images their denoising, never the live path its time."""

import gc
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from appliance.errors import ModelError
from appliance.inference.ladder import Ladder, Rung

RUN_FAILURES = {  # what engines and drivers raise when it goes wrong in the middle of a scan
    "out of memory": MemoryError("Out of memory allocating 1,048,576 bytes"),
    "the GPU is gone": RuntimeError("cudaErrorDeviceUnavailable: CUDA-capable device(s) is/are busy or unavailable"),
    "the backend refuses": ModelError("tensorrt: run failed for shape (1, 2, 64, 48); see the GPU's kernel log"),
}
WAIT_S = 30.0  # for a thread in the background; nothing is measured


def started(model, *backends, best=lambda rung: True, **settings):
    ladder = Ladder([Rung(model, backend, "f32") for backend in backends], best, clock=lambda: 0, **settings)
    ladder.start()
    assert ladder.settled.wait(WAIT_S)
    return ladder


def serve(ladder, *arrays):
    return ladder.serve(ladder.engine(), arrays)


def until(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_first_that_passes_runs(model, backend, image):
    first, second = backend("first"), backend("second")
    ladder = started(model, first, second)
    assert str(ladder.running) == "first f32" and second.n_loads == 0
    (output,) = serve(ladder, image)
    assert output.shape == (1, 1, 64, 48)
    assert ladder.status()["model_state"] == "running"


def test_a_backend_that_misses_a_golden_case_is_stepped_over(model, backend):
    ladder = started(model, backend("fast", error=1e-3), backend("good"))
    assert str(ladder.running) == "good f32"
    assert ladder.degraded == ("fast f32: golden case 'checkerboard' missed by 0.001, tolerance 2e-05",)
    assert ladder.status()["degraded"] == ladder.degraded[0]


@pytest.mark.parametrize("error", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_does_not_pass(model, backend, error):
    ladder = started(model, backend("broken", error=error), backend("good"))
    assert str(ladder.running) == "good f32" and len(ladder.degraded) == 1


def test_what_is_not_there_counts_only_where_it_was_asked_for(model, backend):
    backends = backend("gpu", absent="no usable GPU", on_gpu=True), backend("cpu")
    assert started(model, *backends).degraded == ()
    assert started(model, *backends, best=lambda rung: rung.backend.on_gpu).degraded == ("gpu f32: no usable GPU",)


@pytest.mark.parametrize("failure", [ModelError("no"), RuntimeError("no"), MemoryError("no"), ImportError("no")])
def test_a_backend_that_cannot_load_is_stepped_over(model, backend, failure):
    ladder = started(model, backend("broken", load_fails=failure), backend("good"))
    assert str(ladder.running) == "good f32" and ladder.degraded == ("broken f32: no",)


def test_when_nothing_passes_every_reason_is_given(model, backend):
    ladder = started(model, backend("a", absent="not here"), backend("b", error=0.5))
    alarms = {}
    ladder.tell(alarms.__setitem__)
    with pytest.raises(ModelError) as caught:
        ladder.engine()
    reasons = "a f32: not here; b f32: golden case 'checkerboard' missed by 0.5, tolerance 2e-05"
    assert str(caught.value) == (
        f"mr-denoise: no backend reproduces its golden output here ({reasons}); restore the model"
    )
    assert ladder.status()["model_state"] == "pass-through"
    assert alarms["model mr-denoise"].endswith("restore the model; images pass through unprocessed")


@pytest.mark.parametrize("failure", RUN_FAILURES.values(), ids=RUN_FAILURES)
def test_a_backend_that_fails_while_images_flow(model, backend, image, failure):
    """The image that hit it passes through with the reason; so do those until the next backend is proved."""
    first, second = backend("first"), backend("second")
    second.gate.clear()
    ladder = started(model, first, second)
    alarms = {}
    ladder.tell(alarms.__setitem__)
    (good,) = serve(ladder, image)
    first.run_fails = failure
    with pytest.raises(ModelError) as caught:
        serve(ladder, image)
    assert str(caught.value) == f"mr-denoise: first f32 failed: {failure}"
    for _ in range(3):
        with pytest.raises(ModelError) as caught:
            serve(ladder, image)
        assert str(caught.value) == f"mr-denoise: preparing the next backend, first f32 failed: {failure}"
    assert alarms == {
        "model mr-denoise": f"preparing the next backend, first f32 failed: {failure}; images pass through unprocessed"
    }
    assert ladder.status()["model_state"] == "preparing"
    second.gate.set()
    assert ladder.settled.wait(WAIT_S)
    assert np.array_equal(serve(ladder, image)[0], good)
    assert ladder.degraded == (f"first f32: {failure}",)
    until(lambda: alarms["model mr-denoise"] == f"runs degraded on second f32: first f32: {failure}")
    assert first.n_loads == 1  # it is not tried again


def test_values_that_are_not_finite_step_down(model, backend, image):
    first = backend("first")
    ladder = started(model, first, backend("second"))
    first.error = np.nan
    with pytest.raises(ModelError, match="mr-denoise: first f32 gave values that are not finite"):
        serve(ladder, image)
    assert ladder.settled.wait(WAIT_S) and str(ladder.running) == "second f32"


def test_a_scan_with_values_that_are_not_finite_is_not_the_engines_fault(model, backend, image):
    ladder = started(model, backend("first"), backend("second"))
    broken = image.copy()
    broken[0, 1, 3, 3] = np.inf
    with pytest.raises(ModelError, match="mr-denoise: its input has values that are not finite; look at the scan"):
        serve(ladder, broken)
    assert str(ladder.running) == "first f32" and ladder.degraded == ()


def test_two_scans_that_hit_the_same_failure_step_down_once(model, backend, image):
    first, second, third = backend("first"), backend("second"), backend("third")
    ladder = started(model, first, second, third)
    engine = ladder.engine()
    first.run_fails = RuntimeError("gone")
    for _ in range(2):
        with pytest.raises(ModelError):
            ladder.serve(engine, (image,))
    until(lambda: ladder.running is not None)
    assert str(ladder.running) == "second f32" and third.n_loads == 0


def test_a_slow_machine_steps_down_and_then_passes_through(model, backend):
    """The clock says that every run takes 60 ms; the card allows 50."""
    ticks = iter(range(0, 10**13, 30_000_000))  # two looks at the clock are one run, and the time in between
    ladder = Ladder([Rung(model, backend(name), "f32") for name in "ab"], lambda rung: True, clock=ticks.__next__)
    assert not ladder.status()["degraded"] and ladder.status()["model_state"] == "preparing"
    ladder.start()
    assert ladder.settled.wait(WAIT_S)
    assert ladder.running is not None  # 30 ms
    ticks = iter(range(0, 10**13, 60_000_000))
    ladder = Ladder([Rung(model, backend(name), "f32") for name in "ab"], lambda rung: True, clock=ticks.__next__)
    ladder.start()
    assert ladder.settled.wait(WAIT_S)
    slow = "f32: too slow here: 60.0 ms at 32 x 32 (95th percentile, best of 5 rounds), the card's deadline is 50 ms"
    with pytest.raises(ModelError) as caught:
        ladder.engine()
    assert f"(a {slow}; b {slow})" in str(caught.value)


def test_one_disturbed_round_does_not_condemn_a_backend(model, backend):
    """Two good rounds are needed, of five."""
    now = [0]
    calls = [0]

    def clock():
        calls[0] += 1
        round_number = (calls[0] - 1) // 40  # 20 runs, the clock is read twice for each
        now[0] += 500_000_000 if round_number in (0, 2, 3) else 10_000_000
        return now[0]

    ladder = Ladder([Rung(model, backend("a"), "f32")], lambda rung: True, clock=clock)
    ladder.start()
    assert ladder.settled.wait(WAIT_S)
    assert ladder.engine().parity.p95_ms == pytest.approx(10)


def test_one_frame_in_n_is_run_again_on_the_reference(model, backend, image):
    first = backend("first")
    ladder = started(model, first, recheck_every=4)
    for n in range(1, 13):
        serve(ladder, image)
        if n % 4 == 0:  # one at a time waits; the next is taken once this one is done
            until(lambda n=n: ladder.status()["rechecks"] == n // 4)
    assert ladder.status()["recheck_max_error"] <= ladder.status()["parity_tolerance"]
    assert str(ladder.running) == "first f32"


def test_a_frame_that_misses_the_reference_steps_down(model, backend, image):
    """Wrong, but finite and plausible: only the reference shows it."""
    first = backend("first")
    ladder = started(model, first, backend("second"), recheck_every=2)
    first.error = 1e-3
    serve(ladder, image)
    serve(ladder, image)
    until(lambda: str(ladder.running) == "second f32")
    assert ladder.degraded == ("first f32: a frame missed the reference by 0.001, tolerance 2e-05",)


def test_what_is_checked_again_is_a_copy(model, backend, image):
    """Whoever has the arrays may write into them the moment they are handed out."""
    ladder = started(model, backend("first"), recheck_every=1)
    ladder._tasks.put(lambda _: held.wait(WAIT_S))  # the background is busy
    held = threading.Event()
    given = image.copy()
    (output,) = serve(ladder, given)
    given[:], output[:] = 7, 8
    held.set()
    until(lambda: ladder.status()["rechecks"] == 1)
    assert str(ladder.running) == "first f32"


def test_frames_are_not_held_up_by_a_slow_reference(model, backend, image):
    held = threading.Event()
    ladder = started(model, backend("first"), recheck_every=1)
    ladder._tasks.put(lambda _: held.wait(WAIT_S))
    for _ in range(20):
        serve(ladder, image)
    held.set()
    until(lambda: ladder.status()["rechecks"] == 1)  # the queue holds one


def test_the_reference_is_not_compared_with_itself(model, backend, image):
    ladder = started(model, backend("onnxruntime"), recheck_every=1)
    serve(ladder, image)
    assert not ladder._rechecking


def test_a_ladder_that_nobody_uses_ends_its_thread(model, backend):
    before = set(threading.enumerate())
    ladder = started(model, backend("first"))
    (thread,) = set(threading.enumerate()) - before
    gone = weakref.ref(ladder)
    del ladder
    gc.collect()
    thread.join(WAIT_S)
    assert not thread.is_alive() and gone() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_in_the_background_leaves_images_passing_through_and_is_told(model, backend):
    before = set(threading.enumerate())
    broken = backend("first", load_fails=ZeroDivisionError("a defect"))
    broken.gate.clear()
    ladder = Ladder([Rung(model, broken, "f32"), Rung(model, backend("second"), "f32")], lambda rung: True)
    ladder.start()
    (thread,) = set(threading.enumerate()) - before
    broken.gate.set()
    thread.join(WAIT_S)
    gc.collect()  # its exception is told now, and not to the next test
    with pytest.raises(ModelError) as caught:
        ladder.engine()
    assert str(caught.value) == "mr-denoise: defect in its background thread; report the log"
    assert ladder.status()["model_state"] == "pass-through"


OUT_OF_MEMORY = """
import resource
import threading
import numpy as np
from appliance.errors import ModelError
from appliance.inference.card import read_model, shipped_models
from appliance.inference.ladder import Ladder, Rung
from appliance.inference.onnxruntime import OnnxRuntime
from appliance.inference.openvino import OpenVino

model = read_model("mr-denoise", shipped_models())
rungs = [Rung(model, backend, "f32") for backend in (OnnxRuntime(), OpenVino())]
ladder = Ladder(rungs, lambda rung: True, clock=lambda: 0)
ladder.start()
ladder.settled.wait()
large = np.ones((1, 2, 1024, 1024), np.float32)
held = threading.Event()
ladder._tasks.put(lambda _: held.wait())  # the next backend is not loaded while memory is short
n_bytes = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (n_bytes + (8 << 20), resource.RLIM_INFINITY))
try:
    ladder.serve(ladder.engine(), (large,))
except ModelError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
held.set()
ladder.settled.wait()
print(ladder.running, ladder.serve(ladder.engine(), (large,))[0].shape)
"""


def test_a_real_backend_that_runs_out_of_memory_in_the_middle_of_a_scan():
    """ONNX Runtime in a process that may not have more memory."""
    child = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, timeout=120)
    told, then = child.stdout.splitlines()
    assert told.startswith("mr-denoise: onnxruntime f32 failed: onnxruntime: run failed for shape (1, 2, 1024, 1024): ")
    assert "Failed to allocate memory" in told
    assert then == "openvino f32 (1, 1, 1024, 1024)"

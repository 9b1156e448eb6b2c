# SPDX-License-Identifier: Apache-2.0
"""A real browser beside a running appliance: what a technologist sees while a coil drops out."""

import threading

import pytest
from browser import Browser, screenshot_folder
from console_bench import PASSWORDS

from appliance.console.accounts import Accounts, accounts_file
from appliance.mri.phantom import cine_kspace
from appliance.simulate.mri import stream_cine
from appliance.simulate.site import Site

SITE = """\
site: {name: mri-1, data_dir: $data_dir, run_dir: $run_dir, device: cpu}
destinations:
  pacs: {dicom: {host: 127.0.0.1, port: 9, ae_title: PACS}}
pipelines:
  mri-live:
    source: {mrd: {port: $mrd, bind: 127.0.0.1}}
    stages: [reconstruct, {denoise: {model: mr-denoise}}, detect_anomalies]
    sinks: [mrd_reply, {openigtlink: {port: $display}}, {dicom_results: {to: [pacs]}}, preview]
buffer: {reserve_gb: 0}
console: {port: $console, kiosk: [127.0.0.1]}
"""
DROPS_AT = 45


def cine(over):
    """A cine whose coil 5 gives nothing from frame DROPS_AT on, until `over` or 40 s."""
    frames = [cine_kspace(n, (192, 192), 8) for n in range(24)]
    for n in range(600):
        kspace = frames[n % 24]
        if n >= DROPS_AT:
            kspace = kspace.copy()
            kspace[5] = 0
        if over.is_set():
            return
        yield kspace


def look_at_what_became_of_it(page, site, folder):
    """Signed in: the scan in Today with its images, and owed to a pacs that is not there in Delivery."""
    Accounts(accounts_file(site.settings)).add("technologist", "technologist", PASSWORDS["technologist"])
    page.sign_in(f"127.0.0.1:{site.ports['console']}", "technologist", PASSWORDS["technologist"])
    page.press("3")
    page.wait_for("document.getElementById('today-rows').innerText.includes('delivering')")
    page.ask("document.querySelector('#today-rows tr').click()")
    page.wait_for("document.querySelector('.stored img').naturalWidth === 192")
    page.wait_for("document.getElementById('today-detail').innerText.includes('mr-denoise')")
    page.wait_for("/denoise\\s.*\\d ms/.test(document.getElementById('today-detail').innerText)")
    page.screenshot(folder / "console-today-real.png")
    page.press("4")
    page.wait_for("document.getElementById('destinations').innerText.includes('cannot be reached')")
    page.screenshot(folder / "console-delivery-real.png")


@pytest.mark.peer
def test_the_page_shows_the_live_image_says_that_a_coil_is_out_and_later_that_nothing_is_live(tmp_path):
    site = Site(tmp_path, SITE, ports=("mrd", "display", "console"))
    over = threading.Event()
    scan = threading.Thread(
        target=stream_cine, args=("127.0.0.1", site.ports["mrd"], cine(over)), kwargs={"frame_rate_hz": 15}
    )
    try:
        site.start()
        scan.start()
        with Browser(tmp_path / "profile") as page:
            page.open(f"http://127.0.0.1:{site.ports['console']}/")
            page.wait_for("document.getElementById('state').innerText.includes('LIVE')")
            page.wait_for("document.getElementById('marks').innerText.includes('coil 5 gives no data')")
            page.screenshot(screenshot_folder(tmp_path) / "console-live.png")
            over.set()
            page.wait_for("document.getElementById('state').innerText.includes('NO LIVE DATA')")
            scan.join(60)
            look_at_what_became_of_it(page, site, screenshot_folder(tmp_path))
            assert page.messages == []
    finally:
        over.set()
        if scan.is_alive():
            scan.join(60)
        site.stop()

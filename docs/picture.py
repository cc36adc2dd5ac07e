"""Takes the picture of the page for the README: ``python docs/picture.py backdoor-audit-report/audit.html``; needs chromium."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURE = Path(__file__).with_name("page.png")
WIDTH, HEIGHT = 1280, 1100  # px of the window: the top of the page
MOST = 300_000  # bytes


def main() -> None:
    """Draw the top of the page in a browser without a window, with few colours, and write ``docs/page.png``."""
    page = Path(sys.argv[1]).resolve()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None or not page.is_file():
        sys.exit(f"{page if browser else 'chromium'}: not found")
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch, "page.png")
        switches = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={scratch}"]
        size = [f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={raw}"]
        subprocess.run([browser, *switches, *size, page.as_uri()], check=True, capture_output=True)
        with Image.open(raw) as picture:
            picture.convert("RGB").quantize(128).save(PICTURE, optimize=True)
    taken = PICTURE.stat().st_size
    if taken > MOST:
        sys.exit(f"{PICTURE}: {taken} bytes; at most {MOST}")
    print(f"{PICTURE}: {taken} bytes")


if __name__ == "__main__":
    main()

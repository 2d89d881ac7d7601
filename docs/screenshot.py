"""Screenshots of the explain page for README, light and dark: ``python -m docs.screenshot``.

It requires Chromium.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
QUESTION = "Who built the bridge?"
CONTEXT = (
    "The Orlo bridge was opened in 1931. It was built by Marta Venn, an engineer from Lund. "
    "The stone came from a quarry that her brother Anton owned."
)
SCHEMES = {"dark": 0, "light": 1}  # Blink's numbers of preferred color schemes
SIZE = "1000,720"


def main() -> None:
    """Write docs/explain-light.png and docs/explain-dark.png.

    Raises:
        SystemExit: Chromium is not installed.
    """
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    chromium = next(found, None)
    if chromium is None:
        sys.exit("docs.screenshot requires Chromium: install it")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "answer.html")
        asked = ["--question", QUESTION, "--context", CONTEXT, str(page)]
        subprocess.run([sys.executable, "-m", "bertqa", "explain", *asked], check=True)
        for scheme, number in SCHEMES.items():
            picture = FOLDER / f"explain-{scheme}.png"
            command = [
                chromium, "--headless=new", "--no-sandbox", "--hide-scrollbars",
                f"--user-data-dir={folder}/{scheme}", f"--window-size={SIZE}",
                f"--blink-settings=preferredColorScheme={number}", f"--screenshot={picture}",
            ]  # fmt: skip
            subprocess.run([*command, page.as_uri()], check=True, stderr=subprocess.DEVNULL)
            print(f"{picture}: {picture.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()

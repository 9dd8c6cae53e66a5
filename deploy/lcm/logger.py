"""Records everything on an LCM network with the logger of the extra `lcm`: `python -m deploy.lcm.logger FILE [URL]`.

The file is flushed ten times a second; `surefoot collect` makes a data set of it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lcm

from deploy.lcm.channels import URL

READY = "logger: ready"


def main() -> None:
    """Become lcm-logger."""
    file, *rest = sys.argv[1:]
    url = rest[0] if rest else URL
    print(READY, flush=True)
    os.execv(Path(lcm.LCM_BIN_DIR) / "lcm-logger", ["lcm-logger", f"--lcm-url={url}", "--force", file])


if __name__ == "__main__":
    main()

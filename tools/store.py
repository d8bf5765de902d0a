"""python3 dev.py store FOLDER [--clear] : what lies in a store's folder (ComfyUI's user/klein_store), those asked for last at
the end; with --clear it is removed."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from klein.store.disk import Disk


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--clear", action="store_true")
    given = options.parse_args(arguments)
    disk = Disk(given.folder, 0)
    for entry in disk.entries():
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        print(f"{used}  {entry.nbytes / 2**20:8.2f} MB  {entry.key[:12]}  {entry.what}")
    count, nbytes = disk.usage()
    print(f"{count} entries, {nbytes / 2**20:.1f} MB{', removed' * given.clear}")
    if given.clear:
        disk.clear()


if __name__ == "__main__":
    main()

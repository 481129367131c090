"""Puts the repository on the import path: `training` is not part of the installed package."""

import sys
from pathlib import Path

# Last, so that an installed rnnt_fastdecode goes before the sources, which may not be built.
sys.path.append(str(Path(__file__).parents[2]))

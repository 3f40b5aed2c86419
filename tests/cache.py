"""The directory of files that can be rebuilt, which all machines of a run share.

It has what is made of the embedded model and of the embedder: 3 s of a core, and 220 MB. The
process that starts a run makes and removes it; workers and programs inherit its name.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

_VARIABLE = "TESTS_CACHE"

if _VARIABLE not in os.environ:
    os.environ[_VARIABLE] = tempfile.mkdtemp(prefix="llmasos-cache-")
    atexit.register(shutil.rmtree, os.environ[_VARIABLE], ignore_errors=True)
CACHE = Path(os.environ[_VARIABLE])

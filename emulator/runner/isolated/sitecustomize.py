"""Loaded by every Python that a job or deployment starts: hides the checkout that the emulator was installed from.

A job sees its uploaded snapshot and its environment's packages, nothing else. An editable install would let an import
work here that fails in Azure.
"""

import os
import sys

_hidden = os.environ.get("EMULATOR_HIDDEN_PATH")
if _hidden:
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != _hidden]
    sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]

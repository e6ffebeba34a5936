"""Subinterpreters: attncache belongs to the main interpreter, and says so elsewhere instead of hanging.

Covered: the import and a second one in a subinterpreter of a process with and without attncache in its main interpreter,
with a watchdog. Not covered: interpreters with a GIL of their own, which NumPy itself refuses.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

IMPORTS = """
import faulthandler, sys, warnings
faulthandler.dump_traceback_later(30, exit=True)
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
if sys.argv[1] == "first":
    import attncache
code = '''
import warnings
warnings.simplefilter("ignore")
for _ in range(2):
    try:
        import attncache
    except ImportError as error:
        print(error, flush=True)
    else:
        raise AssertionError("imported")
'''
interpreter = interpreters.create("legacy") if sys.version_info >= (3, 13) else interpreters.create(isolated=False)
if sys.version_info >= (3, 13):
    failed = interpreters.exec(interpreter, code)
    assert failed is None, failed
else:
    interpreters.run_string(interpreter, code)
import attncache, numpy as np
cache = attncache.AttentionCache()
cache.push(np.ones((1, 1, 2, 2), np.float32))
assert cache.rows(0, 0).tolist() == [1, 1]
print("done")
"""


@pytest.mark.parametrize("main", ["first", "later"])
def test_an_import_in_a_subinterpreter_is_an_import_error_that_says_so(main: str, tmp_path: Path) -> None:
    pytest.importorskip("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")
    command = [sys.executable, "-c", IMPORTS, main]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    said = "attncache must be imported in the main interpreter, not in a subinterpreter\n"
    assert (ran.returncode, ran.stdout) == (0, said * 2 + "done\n"), ran.stderr

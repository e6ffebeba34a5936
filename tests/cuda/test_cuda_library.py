"""How the library is found and what is said when it cannot be used; that nothing else looks for it.

Libraries that are wrong are compiled on the spot. Not covered: a real driver; its statuses are played.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import attncache.cuda
from attncache import AttentionCache
from attncache.cuda import library
from cuda.compilers import NO_GXX, find_gxx
from cuda.header import CONSTANTS, FUNCTIONS
from cuda.launching import Emulated
from cuda.placing import put


def compiled(code: str, folder: Path) -> Path:
    """A shared library of that C++ code."""
    compiler = find_gxx()
    if compiler is None:
        pytest.skip(NO_GXX)
    source, built = folder / "wrong.cpp", folder / library.NAME
    source.write_text(f'extern "C" {{ {code} }}')
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", built], check=True)
    return built


def assert_not_usable(why: str) -> None:
    assert not attncache.cuda.is_available()
    reason = attncache.cuda.why_not()
    assert reason is not None
    assert why in reason

    class OnDevice:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, **_: object) -> object:
            raise AssertionError("asked for memory on a device that cannot be used")

    cache = AttentionCache()
    with pytest.raises(ValueError, match="must lie in CPU memory here, got an array on a CUDA device, and") as raised:
        cache.push(OnDevice())
    assert why in str(raised.value)
    assert cache.is_empty


def test_a_package_without_the_library_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "PATH", tmp_path / library.NAME)
    assert_not_usable("attncache was built without CUDA")
    assert_not_usable("ATTNCACHE_CUDA=ON")


def test_a_library_is_looked_for_again_once_it_was_not_there(
    tmp_path: Path, emulated_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / library.NAME
    monkeypatch.setattr(library, "PATH", path)
    assert not attncache.cuda.is_available()
    path.symlink_to(emulated_library)
    assert attncache.cuda.why_not() is None


def test_a_damaged_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / library.NAME
    path.write_bytes(b"\x7fELF and nothing more")
    monkeypatch.setattr(library, "PATH", path)
    assert_not_usable(f"{path} cannot be loaded, it is damaged or incomplete")


def test_a_library_of_another_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "PATH", compiled("int attncache_cuda_interface() { return 77; }", tmp_path))
    assert_not_usable(f"must have interface version {CONSTANTS['INTERFACE']}, got 77")


WHOLE = [f"int attncache_cuda_{name}() {{ return {CONSTANTS['INTERFACE']}; }}" for name in FUNCTIONS]


@pytest.mark.parametrize("lacking", FUNCTIONS)
def test_a_library_without_one_of_its_functions_is_named(
    lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "".join(line for line in WHOLE if f"_{lacking}()" not in line)
    monkeypatch.setattr(library, "PATH", compiled(code, tmp_path))
    assert_not_usable(f"damaged or incomplete: {library.PATH}: undefined symbol: attncache_cuda_{lacking}")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (35, "no usable NVIDIA driver found"),
        (100, "the NVIDIA driver finds no device"),
        (3, "CUDA cannot be used"),
    ],
)
def test_a_machine_without_driver_or_device_is_told(status: int, words: str, emulated: Emulated) -> None:
    assert attncache.cuda.why_not() is None
    emulated.fail("cudaGetDeviceCount", 0, status)
    assert_not_usable(words)


def test_a_layer_outlives_the_devices_that_can_be_used(emulated: Emulated) -> None:
    cache = AttentionCache()
    cache.push(put(np.ones((1, 1, 2, 2), np.float32)))
    emulated.fail("cudaGetDeviceCount", 0, 35)
    emulated.fail("cudaLaunchKernel", 0, 35)
    with pytest.raises(RuntimeError, match=r"attncache_cuda_rows: .* \(status 35\)"):
        cache.rows()
    assert repr(cache)


CODE = """
import sys
import numpy as np
from attncache import AttentionCache
cache = AttentionCache()
cache.push(np.ones((1, 1, 2, 2), np.float32))
cache.push_qk(np.ones((1, 1, 2, 2), np.float32), np.ones((1, 1, 2, 2), np.float32))
cache.rows(), cache.top_k(1), cache.head_mean(0), cache.cpu(), repr(cache), cache.devices
print(*sorted(name for name in sys.modules if name.startswith(("attncache.cuda", "ctypes", "torch"))))
import attncache.cuda
print(*sorted(name for name in sys.modules if name.startswith("torch")))
"""


def test_layers_in_cpu_memory_load_nothing_of_it() -> None:
    ran = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    assert not [name for name in ran.stdout.split() if not name.startswith(("ctypes", "_ctypes"))]

"""The emulation itself: faults that kernels may have end a launch with a status and words, and the host stays outside.

Covered: barriers that diverge or that ended threads miss, warp operations that not all lanes reach, fresh shared and
device memory that is not zero, reads and writes outside of memory, misaligned reads, memory that lies gigabytes apart, launches
that no device takes, failures on demand, and that orders of threads really vary. What the emulation does to the real kernels:
test_emulated.py and test_planted.py.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda import emulated
from cuda.calls import POINTER, Device, Failed
from cuda.compilers import NO_GXX, find_gxx

LAUNCH_FAILURE, INVALID_CONFIGURATION, OUT_OF_MEMORY = 719, 9, 2
KERNELS = """
#include "launch.cuh"
namespace {
__device__ float* out_of(float* out) { return out + blockIdx.x * blockDim.x + threadIdx.x; }
__global__ void order_kernel(float* out) {
    __shared__ int next;
    if (threadIdx.x == 0) next = 0;
    __syncthreads();
    *out_of(out) = static_cast<float>(atomicAdd(&next, 1));
}
__global__ void fresh_shared_kernel(float* out) {
    __shared__ float items[64];
    *out_of(out) = items[threadIdx.x];
}
__global__ void diverging_kernel(float* out) {
    if (threadIdx.x % 2 == 0) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    *out_of(out) = 0;
}
__global__ void ended_kernel(float* out) {
    if (threadIdx.x == 5) return;
    __syncthreads();
    *out_of(out) = 0;
}
__global__ void half_a_warp_kernel(float* out) {
    *out_of(out) = threadIdx.x % 32 < 16 ? __shfl_xor_sync(0xffffffff, 1.0F, 1) : 0.0F;
}
__global__ void not_in_its_mask_kernel(float* out) { *out_of(out) = __shfl_sync(1U, 1.0F, 0); }
__global__ void from_outside_its_mask_kernel(float* out) {
    *out_of(out) = threadIdx.x % 32 < 8 ? __shfl_down_sync(0xffU, 1.0F, 1) : 0.0F;
}
__global__ void reading_outside_kernel(float* out) { *out_of(out) = __ldg(out + 64 + threadIdx.x); }
__global__ void misaligned_kernel(float* out) { *out_of(out) = __uint_as_float(__ldg(reinterpret_cast<uint4*>(out + 1)).x); }
__global__ void writing_behind_kernel(float* out) { if (threadIdx.x == 63) out[threadIdx.x + 1] = 1; }
__global__ void far_away_kernel(float* out) { out[4096 * 16] = 1; }
__global__ void votes_kernel(float* out) {
    const unsigned lane = threadIdx.x % 32;
    const unsigned odd = __ballot_sync(0xffffffff, lane % 2);
    const unsigned same = __match_any_sync(0xffffffff, lane / 8);
    float sum = 0;
    if (lane < 8) sum = __shfl_up_sync(0xff, static_cast<float>(lane), 1) + __shfl_xor_sync(0xff, static_cast<float>(lane), 1);
    *out_of(out) = static_cast<float>(odd >> 24) + static_cast<float>(same >> (lane / 8 * 8)) * 1000 + sum * 1000000;
}
using Kernel = void (*)(float*);
constexpr Kernel kKernels[] = {order_kernel, fresh_shared_kernel, diverging_kernel, ended_kernel, half_a_warp_kernel,
                               not_in_its_mask_kernel, from_outside_its_mask_kernel, reading_outside_kernel, misaligned_kernel, writing_behind_kernel,
                               far_away_kernel, votes_kernel};
}  // namespace
extern "C" __attribute__((visibility("default"))) int attncache_cuda_try(int kernel, unsigned blocks, unsigned threads,
                                                                         float* out) {
    return attncache::cuda::status_of([=] {
        void* arguments[] = {const_cast<float**>(&out)};
        attncache::cuda::check(cudaLaunchKernel(kKernels[kernel], dim3(blocks), dim3(threads), arguments, 0, nullptr));
    });
}
"""
NAMES = (
    "order", "fresh_shared", "diverging", "ended", "half_a_warp", "not_in_its_mask", "from_outside_its_mask", "reading_outside",
    "misaligned", "writing_behind", "far_away", "votes",
)  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_gxx() is None:
        pytest.skip(NO_GXX)
    folder = tmp_path_factory.mktemp("shim")
    (folder / "kernels").mkdir()
    for name in ("attncache_cuda.h", "launch.cuh", "memory.cu", "runtime.cu", "staging.cu"):
        (folder / "kernels" / name).write_bytes((emulated.CUDA / name).read_bytes())
    (folder / "kernels" / "faults.cu").write_text(KERNELS, encoding="utf-8")
    return emulated.build(folder / "built", kernels=folder / "kernels")


@pytest.fixture
def device(library: Path) -> Any:
    device = Device(emulated.load(library))
    device.library.shim_clear()
    yield device
    device.library.shim_clear()


def attempt(device: Device, kernel: str, blocks: int = 1, threads: int = 64) -> np.ndarray[Any, Any]:
    out = np.empty((blocks, threads), np.float32)
    with device.memory(out.nbytes) as memory:
        try:
            device.call("try", NAMES.index(kernel), blocks, threads, POINTER(memory))
            return device.to_host(memory, out)
        except Failed:
            words = device.library.shim_words().decode()
            device.library.shim_clear()  # so that the memory can be given back
            raise Failed(LAUNCH_FAILURE, words) from None


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        ("diverging", "diverged: thread .* at __syncthreads, .*, but thread .* at __syncthreads"),
        ("ended", "diverged: thread .* at __syncthreads, .*; thread 5 has ended"),
        ("half_a_warp", "diverged: thread .* at __shfl_xor_sync, .* has ended"),
        ("not_in_its_mask", "__shfl_sync by a lane outside its mask"),
        ("from_outside_its_mask", "__shfl_down_sync from a lane outside its mask"),
        ("reading_outside", "a read of 4 bytes outside of every allocation"),
        ("misaligned", "a misaligned read of 16 bytes"),
    ],
)
def test_a_fault_ends_the_launch_with_words(kernel: str, words: str, device: Device) -> None:
    with pytest.raises(Failed, match=words):
        attempt(device, kernel)


def test_after_a_fault_every_call_fails_until_it_is_cleared(device: Device) -> None:
    with pytest.raises(Failed):
        device.call("try", NAMES.index("ended"), 1, 64, None)
    with pytest.raises(Failed) as raised:
        device.call("synchronize", None)
    assert raised.value.status == LAUNCH_FAILURE
    device.library.shim_clear()
    device.call("synchronize", None)


def test_a_write_behind_memory_is_seen_when_it_is_given_back(device: Device) -> None:
    with pytest.raises(Failed), device.memory(63 * 4) as memory:
        device.call("try", NAMES.index("writing_behind"), 1, 64, POINTER(memory - 4))
    assert device.library.shim_words() == b"something wrote behind an allocation of 252 bytes"


def test_fresh_memory_is_not_zero(device: Device) -> None:
    poison = np.full(64, 0xCDCDCDCD, np.uint32).view(np.float32)
    for _ in range(2):
        assert (attempt(device, "fresh_shared", blocks=3) == poison).all()
    with device.memory(256) as memory:
        assert (device.to_host(memory, np.empty(64, np.float32)) == poison).all()


def test_memory_lies_as_far_apart_as_asked_and_nothing_lies_between(device: Device) -> None:
    distance = 5 << 30
    with device.memory(300) as memory:
        device.library.shim_leap(distance)
        with device.memory(300) as far:
            assert far == memory + distance
            assert device.library.shim_live_bytes() == 600
            for between in (memory + 4096, memory + distance // 2, far - 4096):
                with pytest.raises(Failed):
                    device.to_host(between, np.empty(1, np.float32))


def test_orders_of_threads_vary_with_the_seed_alone(device: Device) -> None:
    def order(seed: int) -> list[float]:
        device.library.shim_seed(seed)
        return list(attempt(device, "order")[0])

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert sorted(order(1)) == list(range(64))


def test_votes_and_shuffles_give_what_cuda_gives(device: Device) -> None:
    lane = np.arange(64) % 32
    from_others = np.where(lane == 0, 0, lane - 1) + (lane ^ 1)
    expected = 0xAA + (0xFFFFFFFF >> (lane // 8 * 8) & 0xFF) * 1000 + np.where(lane < 8, from_others, 0) * 1000000
    assert (attempt(device, "votes")[0] == expected.astype(np.float32)).all()


@pytest.mark.parametrize(("blocks", "threads"), [(0, 32), (1, 0), (1, 1025)])
def test_launches_that_no_device_takes_fail(blocks: int, threads: int, device: Device) -> None:
    with device.memory(4) as memory, pytest.raises(Failed) as raised:
        device.call("try", 0, blocks, threads, POINTER(memory))
    assert raised.value.status == INVALID_CONFIGURATION


def test_calls_are_recorded_and_fail_on_demand(device: Device) -> None:
    device.library.shim_fail(b"cudaMallocFromPoolAsync", 2, OUT_OF_MEMORY)
    with device.memory(100):
        with pytest.raises(Failed, match="out of memory on the CUDA device"), device.memory(200):
            pass
        with device.memory(300):
            pass
    calls = device.library.shim_calls().decode().splitlines()
    allocated, freed = "cudaMallocFromPoolAsync", "cudaFreeAsync"
    about_memory = [call.split()[0] for call in calls if call.startswith((allocated, freed, "cudaGetLastError"))]
    assert about_memory == [allocated, allocated, "cudaGetLastError", allocated, freed, freed]
    assert f"{allocated} 100 stream=(nil)" in calls
    device.library.shim_fail(b"cudaStreamSynchronize", 0, OUT_OF_MEMORY)
    for _ in range(3):
        with pytest.raises(Failed):
            device.call("synchronize", None)


def test_copies_must_name_device_memory(device: Device) -> None:
    host = np.zeros(4, np.float32)
    address, size = POINTER(host.ctypes.data), ctypes.c_size_t(16)
    with pytest.raises(Failed):
        device.call("copy_to_device", address, address, size, None)
    with device.memory(8) as memory, pytest.raises(Failed):
        device.call("copy_to_host", address, POINTER(memory), size, None)


@pytest.mark.parametrize("fault", ["host", "far_away"])
def test_touching_device_memory_from_outside_ends_the_process(fault: str, library: Path) -> None:
    code = f"""
import ctypes, sys
sys.path[:0] = {[str(emulated.ROOT / "tests"), str(emulated.ROOT)]!r}
from pathlib import Path
from cuda import emulated
from cuda.calls import Device, POINTER
device = Device(emulated.load(Path({str(library)!r})))
with device.memory(256) as memory:
    if {fault!r} == "host":
        ctypes.string_at(memory, 4)
    else:
        device.call("try", {NAMES.index("far_away")}, 1, 32, POINTER(memory))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGSEGV, done.stderr
    assert ("outside of every allocation" in done.stderr) == (fault == "far_away")

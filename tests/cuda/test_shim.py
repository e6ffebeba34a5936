"""The emulation itself: faults that kernels may have end a launch with a status and words, and the host stays outside.

Covered: barriers that diverge or that ended threads miss, warp operations that not all lanes reach, each rule of the
race detector from both sides, reads of what nobody wrote, accesses outside of memory or off their alignment, memory that
lies gigabytes apart, launches that no device takes, failures on demand, and that orders of threads really vary. What the
emulation does to the real kernels: test_emulated.py, test_races.py and test_planted.py.
"""

from __future__ import annotations

import ctypes
import re
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
    if (threadIdx.x >= 64) items[threadIdx.x - 64] = 1;
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
__global__ void garbage_pointer_kernel(float* out) {
    *out_of(out) = *reinterpret_cast<float*>(reinterpret_cast<std::uintptr_t>(out) ^ std::uintptr_t{1} << 62);
}
__global__ void outside_of_shared_kernel(float* out) {
    __shared__ float items[64];
    items[threadIdx.x] = 1;
    __syncthreads();
    *out_of(out) = items[threadIdx.x + 1];
}
__global__ void turned_without_barrier_kernel(float* out) {
    __shared__ float items[64];
    items[threadIdx.x] = 0;
    __syncthreads();
    items[threadIdx.x] = 1;
    *out_of(out) = items[63 - threadIdx.x];
}
__global__ void turned_kernel(float* out) {
    __shared__ float items[64];
    for (int i = 0; i < 2; ++i) {
        items[threadIdx.x] = 1;
        __syncthreads();
        *out_of(out) = items[63 - threadIdx.x];
        __syncthreads();
    }
}
__global__ void overwritten_kernel(float* out) {
    __shared__ float items[64];
    items[threadIdx.x] = 1;
    __syncthreads();
    *out_of(out) = items[63 - threadIdx.x];
    items[threadIdx.x] = 2;
}
__global__ void written_twice_kernel(float* out) { out[blockIdx.x * blockDim.x] = 1; }
__global__ void of_other_block_kernel(float* out) { out[threadIdx.x] = 1; }
__global__ void read_by_other_block_kernel(float* out) {
    *out_of(out) = 1;
    if (blockIdx.x != gridDim.x / 2) *out_of(out) += out[gridDim.x / 2 * blockDim.x + threadIdx.x];
}
__global__ void warps_kernel(float* out) {
    __shared__ float items[64];
    items[threadIdx.x] = 1;
    __syncwarp();
    *out_of(out) = items[threadIdx.x ^ 31];
}
__global__ void across_warps_kernel(float* out) {
    __shared__ float items[64];
    items[threadIdx.x] = 0;
    __syncthreads();
    items[threadIdx.x] = 1;
    __syncwarp();
    *out_of(out) = items[63 - threadIdx.x];
}
__global__ void half_warps_kernel(float* out) {
    __shared__ float items[64];
    items[threadIdx.x] = 1;
    __syncwarp(threadIdx.x % 32 < 16 ? 0xffffU : 0xffff0000U);
    *out_of(out) = items[threadIdx.x ^ 15];
}
__global__ void across_half_warps_kernel(float* out) {
    __shared__ float items[64];
    items[threadIdx.x] = 0;
    __syncthreads();
    items[threadIdx.x] = 1;
    __syncwarp(threadIdx.x % 32 < 16 ? 0xffffU : 0xffff0000U);
    *out_of(out) = items[threadIdx.x ^ 31];
}
__global__ void voted_kernel(float* out) {
    __shared__ float items[64];
    items[threadIdx.x] = 0;
    __syncthreads();
    items[threadIdx.x] = 1;
    const float sum = __shfl_xor_sync(0xffffffff, 1.0F, 1);
    *out_of(out) = items[threadIdx.x ^ 31] + sum;
}
__global__ void counted_kernel(float* out) {
    *out_of(out) = 0;
    if (threadIdx.x >= 32) atomicAdd(reinterpret_cast<unsigned*>(out_of(out)), 1U);
}
__global__ void counted_by_blocks_kernel(float* out) { atomicAdd(reinterpret_cast<unsigned*>(out), 1U); }
__global__ void added_kernel(float* out) { *out += 1; }
__global__ void constant_kernel(float* out) {
    *out_of(out) = 1;
    *out_of(out) = __ldg(out_of(out));
}
__global__ void votes_kernel(float* out) {
    const unsigned lane = threadIdx.x % 32;
    const unsigned odd = __ballot_sync(0xffffffff, lane % 2);
    const unsigned same = __match_any_sync(0xffffffff, lane / 8);
    float sum = 0;
    if (lane < 8) sum = __shfl_up_sync(0xff, static_cast<float>(lane), 1) + __shfl_xor_sync(0xff, static_cast<float>(lane), 1);
    *out_of(out) = static_cast<float>(odd >> 24) + static_cast<float>(same >> (lane / 8 * 8)) * 1000 + sum * 1000000;
}
using Kernel = void (*)(float*);
constexpr Kernel kKernels[] = {KERNELS};
}  // namespace
extern "C" __attribute__((visibility("default"))) int attncache_cuda_try(int kernel, unsigned blocks, unsigned threads,
                                                                         float* out) {
    return attncache::cuda::status_of([=] {
        void* arguments[] = {const_cast<float**>(&out)};
        attncache::cuda::check(cudaLaunchKernel(kKernels[kernel], dim3(blocks), dim3(threads), arguments, 0, nullptr));
    });
}
"""
NAMES = re.findall(r"(\w+)_kernel\(float", KERNELS)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_gxx() is None:
        pytest.skip(NO_GXX)
    folder = tmp_path_factory.mktemp("shim")
    (folder / "kernels").mkdir()
    for name in ("launch.cuh", "memory.cu", "runtime.cu", "staging.cu"):
        (folder / "kernels" / name).write_bytes((emulated.CUDA / name).read_bytes())
    (folder / "kernels" / "faults.cu").write_text(
        KERNELS.replace("{KERNELS}", "{" + ", ".join(f"{name}_kernel" for name in NAMES) + "}"), encoding="utf-8"
    )
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


RACE = "race in {0} memory: {1} after {2} by thread \\d+ of block \\d+, which nothing orders: thread .* of block .*"


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        ("diverging", "diverged: thread .* at __syncthreads, .*, but thread .* at __syncthreads"),
        ("ended", "diverged: thread .* at __syncthreads, .*; thread 5 has ended"),
        ("half_a_warp", "diverged: thread .* at __shfl_xor_sync, .* has ended"),
        ("not_in_its_mask", "__shfl_sync by a lane outside its mask"),
        ("from_outside_its_mask", "__shfl_down_sync from a lane outside its mask"),
        ("reading_outside", "a read of 4 bytes outside of every allocation"),
        ("writing_behind", "a write of 4 bytes outside of every allocation"),
        ("far_away", "a write of 4 bytes outside of every allocation"),
        ("garbage_pointer", "an access outside of all memory"),
        ("outside_of_shared", "a read of 4 bytes outside of every __shared__ variable"),
        ("misaligned", "misaligned: a read of 16 bytes"),
        ("fresh_shared", "a read of what nobody wrote"),
        ("turned_without_barrier", RACE.format("shared", "a (read|write)", "a (read|write)")),
        ("overwritten", RACE.format("shared", "a (read|write)", "a (read|write)")),
        ("written_twice", RACE.format("device", "a write", "a write")),
        ("across_warps", RACE.format("shared", "a (read|write)", "a (read|write)")),
        ("across_half_warps", RACE.format("shared", "a (read|write)", "a (read|write)")),
        ("voted", RACE.format("shared", "a (read|write)", "a (read|write)")),
        ("constant", "through __ldg of what this launch writes"),
    ],
)
def test_a_fault_ends_the_launch_with_words(kernel: str, words: str, device: Device) -> None:
    for seed in range(4):
        device.library.shim_seed(seed)
        with pytest.raises(Failed, match=words):
            attempt(device, kernel)


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [("of_other_block", "a write after a write"), ("read_by_other_block", "a (read after a write|write after a read)")],
)
def test_blocks_of_a_launch_race(kernel: str, kind: str, device: Device) -> None:
    with pytest.raises(Failed, match=f"race in device memory: {kind} by thread"):
        attempt(device, kernel, blocks=3)


def test_plain_and_atomic_accesses_race_and_atomic_ones_do_not(device: Device) -> None:
    with device.copied(np.zeros(64, np.float32)) as memory:
        device.call("try", NAMES.index("counted_by_blocks"), 3, 64, POINTER(memory))
        assert device.to_host(memory, np.empty(1, np.uint32)) == 3 * 64
        device.call("try", NAMES.index("added"), 1, 1, POINTER(memory))
        with pytest.raises(Failed):
            device.call("try", NAMES.index("added"), 3, 1, POINTER(memory))
        device.library.shim_clear()


@pytest.mark.parametrize("kernel", ["turned", "warps", "half_warps", "counted", "order"])
def test_what_is_ordered_does_not_race(kernel: str, device: Device) -> None:
    for seed in range(4):
        device.library.shim_seed(seed)
        attempt(device, kernel, blocks=3)


def test_after_a_fault_every_call_fails_until_it_is_cleared(device: Device) -> None:
    with pytest.raises(Failed):
        device.call("try", NAMES.index("ended"), 1, 64, None)
    with pytest.raises(Failed) as raised:
        device.call("synchronize", None)
    assert raised.value.status == LAUNCH_FAILURE
    device.library.shim_clear()
    device.call("synchronize", None)


def test_a_copy_of_what_nobody_wrote_fails(device: Device) -> None:
    with pytest.raises(Failed), device.memory(256) as memory:
        device.to_host(memory, np.empty(64, np.float32))
    assert device.library.shim_words() == b"a copy whose byte 0 nobody wrote"


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


def test_touching_device_memory_from_outside_ends_the_process(library: Path) -> None:
    code = f"""
import ctypes, sys
sys.path[:0] = {[str(emulated.ROOT / "tests"), str(emulated.ROOT)]!r}
from pathlib import Path
from cuda import emulated
from cuda.calls import Device
with Device(emulated.load(Path({str(library)!r}))).memory(256) as memory:
    ctypes.string_at(memory, 4)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGSEGV, done.stderr

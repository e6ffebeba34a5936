"""divisor.cuh against the division of the host, by g++ and the emulation's header.

Covered: every divisor up to 4096 and those around each power of two, each with the numbers around 0, around its
multiples near 2^32, 2^62 and 2^63, and at random; divisors below 1 are refused. Exact, so compared by equality.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cuda.compilers import CUDA_SOURCES, NO_GXX, find_gxx
from cuda.emulated import SHIM
from tests.support.patterns import SEED

PROGRAM = """
#include <cstdio>
#include <random>
#include "divisor.cuh"

using namespace attncache::cuda;
constexpr std::int64_t kGreatest = INT64_MAX;
std::int64_t n_checked = 0;

bool agrees(std::int64_t n, const Divisor& divisor) {
    if (n < 0) return true;
    ++n_checked;
    const auto [quotient, rest] = divided(n, divisor);
    if (quotient == n / divisor.value && rest == n % divisor.value) return true;
    std::printf("%lld / %lld gave %lld\\n", static_cast<long long>(n), static_cast<long long>(divisor.value),
                static_cast<long long>(quotient));
    return false;
}

bool agrees_around(std::int64_t d, std::mt19937_64& random) {
    const Divisor divisor = Divisor::of(d);
    for (const std::int64_t place : {std::int64_t{0}, std::int64_t{1} << 32, std::int64_t{1} << 62, kGreatest}) {
        const std::int64_t multiple = place / d * d;
        for (const std::int64_t n : {place - 1, place, multiple - 1, multiple, d - 1, d}) {
            if (!agrees(n, divisor)) return false;
        }
        if (multiple < kGreatest && !agrees(multiple + 1, divisor)) return false;
    }
    for (int i = 0; i < 200; ++i) {
        if (!agrees(static_cast<std::int64_t>(random() >> (1 + random() % 60)), divisor)) return false;
    }
    return true;
}

bool is_refused(std::int64_t d) {
    try {
        Divisor::of(d);
        return false;
    } catch (const Failure& failure) {
        return failure.status == ATTNCACHE_CUDA_BAD_ARGUMENT;
    }
}

int main() {
    std::mt19937_64 random(SEED);
    for (std::int64_t d = 1; d <= 4096; ++d) {
        if (!agrees_around(d, random)) return 1;
    }
    for (int s = 12; s < 63; ++s) {
        for (const std::int64_t near : {-1, 0, 1}) {
            if (!agrees_around((std::int64_t{1} << s) + near, random)) return 1;
        }
    }
    if (!agrees_around(kGreatest, random) || !agrees_around(kGreatest - 1, random)) return 1;
    if (!is_refused(0) || !is_refused(-3)) return 2;
    std::printf("%lld quotients agree\\n", static_cast<long long>(n_checked));
}
"""


@pytest.mark.skipif(find_gxx() is None, reason=NO_GXX)
def test_quotients_by_product_are_those_of_division(tmp_path: Path) -> None:
    source, program = tmp_path / "divisor.cpp", tmp_path / "divisor"
    source.write_text(PROGRAM.replace("SEED", str(SEED)), encoding="utf-8")
    flags = [
        "-std=c++20",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-fsanitize=undefined",
        "-fno-sanitize-recover=all",
    ]
    includes = [f"-I{SHIM}", f"-I{CUDA_SOURCES}", f"-I{CUDA_SOURCES.parent / 'include'}"]
    subprocess.run([str(find_gxx()), *flags, *includes, str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    print(done.stdout)

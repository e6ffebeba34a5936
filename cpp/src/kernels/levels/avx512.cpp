#define ATTNCACHE_LEVEL avx512
#include "../simd/avx512.hpp"
#include "../make_table.inl.hpp"

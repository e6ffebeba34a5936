#define ATTNCACHE_LEVEL avx2
#include "../simd/avx2.hpp"
#include "../make_table.inl.hpp"

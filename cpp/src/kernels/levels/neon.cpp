#define ATTNCACHE_LEVEL neon
#include "../simd/neon.hpp"
#include "../make_table.inl.hpp"

#define ATTNCACHE_LEVEL scalar
#include "../simd/scalar.hpp"
#include "../make_table.inl.hpp"

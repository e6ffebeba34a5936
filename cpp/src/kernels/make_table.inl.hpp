// Fills the KernelTable of one level: included once by each file in levels/, after that level's Simd struct.
#include "kernel_table.hpp"
#include "rows/convert.inl.hpp"
#include "rows/gather.inl.hpp"
#include "rows/mean.inl.hpp"
#include "rows/collect.inl.hpp"

#define ATTNCACHE_QUOTE_(x) #x
#define ATTNCACHE_QUOTE(x) ATTNCACHE_QUOTE_(x)

namespace attncache::ATTNCACHE_LEVEL {

template <class T>
constexpr RowKernels row_kernels = {widen<T>, gather<T>, column<T>, mean<T>, mean_column<T>, collect<T>};

extern const KernelTable kernel_table;
const KernelTable kernel_table = {
    ATTNCACHE_QUOTE(ATTNCACHE_LEVEL),
    Simd::instructions,
    {row_kernels<half>, row_kernels<bfloat16>, row_kernels<float>},
    {
        // to float16                 to bfloat16                    to float32
        {convert<half, half>, convert<half, bfloat16>, convert<half, float>},
        {convert<bfloat16, half>, convert<bfloat16, bfloat16>, convert<bfloat16, float>},
        {convert<float, half>, convert<float, bfloat16>, convert<float, float>},
        {convert_double<half>, convert_double<bfloat16>, convert<double, float>},
    },
};

}  // namespace attncache::ATTNCACHE_LEVEL

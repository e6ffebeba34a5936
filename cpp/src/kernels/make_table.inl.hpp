// Fills the KernelTable of one level: included once by each file in levels/, after that level's Simd struct.
#include "kernel_table.hpp"
#include "rows/convert.inl.hpp"
#include "rows/gather.inl.hpp"
#include "rows/mean.inl.hpp"
#include "rows/collect.inl.hpp"
#include "rows/threshold.inl.hpp"
#include "rows/panel.inl.hpp"
#include "rows/scores.inl.hpp"
#include "rows/softmax.inl.hpp"

#define ATTNCACHE_QUOTE_(x) #x
#define ATTNCACHE_QUOTE(x) ATTNCACHE_QUOTE_(x)

namespace attncache::ATTNCACHE_LEVEL {

template <class T>
constexpr RowKernels row_kernels = {widen<T>,       gather<T>,    column<T>,  mean<T>,
                                    mean_column<T>, threshold<T>, collect<T>, panel<T>};

extern const KernelTable kernel_table;
const KernelTable kernel_table = {
    ATTNCACHE_QUOTE(ATTNCACHE_LEVEL),
    Simd::instructions,
    {row_kernels<half>, row_kernels<bfloat16>, row_kernels<float>},
    {
        // to float16                 to bfloat16                    to float32
        {copy<half>, convert<half, bfloat16>, convert<half, float>},
        {convert<bfloat16, half>, copy<bfloat16>, convert<bfloat16, float>},
        {convert<float, half>, convert<float, bfloat16>, copy<float>},
        {convert<double, half>, convert<double, bfloat16>, convert<double, float>},
    },
    {
        {copy_streamed<half>, convert_streamed<half, bfloat16>, convert_streamed<half, float>},
        {convert_streamed<bfloat16, half>, copy_streamed<bfloat16>, convert_streamed<bfloat16, float>},
        {convert_streamed<float, half>, convert_streamed<float, bfloat16>, copy_streamed<float>},
        {convert_streamed<double, half>, convert_streamed<double, bfloat16>, convert_streamed<double, float>},
    },
    order,
    scores,
    softcap,
    softmax_part,
    row_weights,
    column_weights,
};

}  // namespace attncache::ATTNCACHE_LEVEL

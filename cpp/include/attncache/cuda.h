/* The interface of libattncache_cuda, plain C: patterns on a device, answered on it. The library (cpp/cuda/) implements
 * it; the core (cpp/src/device/) loads the library at run time and calls it through a table of these functions.
 *
 * The contracts are those of cpp/include/attncache/queries.hpp: same shapes, orders, ties, NaN rule; head means have
 * the same bits as on the CPU. Every function returns a status: 0, or a cudaError_t (positive), or one of the negative
 * codes below. Work is enqueued on `stream` (a cudaStream_t; 1 is the legacy default one and 2 that of the thread, as
 * CUDA and DLPack count) of the current device; nothing waits for it but attncache_cuda_copy_to_host and
 * attncache_cuda_synchronize. Pointers named device_* are device memory, all others host memory, read before the call
 * returns. */
#ifndef ATTNCACHE_CUDA_H
#define ATTNCACHE_CUDA_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define ATTNCACHE_CUDA_API __declspec(dllexport)
#else
#define ATTNCACHE_CUDA_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define ATTNCACHE_CUDA_INTERFACE 3 /* changes with every change of this file */

enum attncache_cuda_dtype { ATTNCACHE_CUDA_FLOAT16 = 0, ATTNCACHE_CUDA_BFLOAT16 = 1, ATTNCACHE_CUDA_FLOAT32 = 2 };
enum attncache_cuda_status { ATTNCACHE_CUDA_BAD_ARGUMENT = -1, ATTNCACHE_CUDA_TOO_LARGE = -2 };

/* A [batch, head, query, key] array on the device, keys contiguous; strides in bytes, any alignment of at least an
 * item. */
struct attncache_cuda_pattern {
    const void* device_data;
    int32_t dtype;
    int64_t batch_size, n_heads, seq_q, seq_k;
    int64_t batch_stride, head_stride, query_stride;
};

/* What a query picks: layers of one shape (dtypes and strides may differ), and indices inside their axes, in any order,
 * repeats allowed. With mean_heads the listed heads are added in that order from +0 and divided by their number; the
 * mean of no heads is NaN. */
struct attncache_cuda_selection {
    const struct attncache_cuda_pattern* layers;
    int64_t n_layers;
    const int64_t* batches;
    int64_t n_batches;
    const int64_t* heads;
    int64_t n_heads;
    int32_t mean_heads;
};

/* A layer of queries and keys, see cpp/include/attncache/factored.hpp: pattern structs hold [batch, head, query, item]
 * and [batch, key head, key, item]. hidden: bytes [batch, key] on the device, 1 hides; or NULL. sinks: float [head] on
 * the device or NULL. lse: float [batch, head, query] on the device or NULL. */
struct attncache_cuda_factored {
    struct attncache_cuda_pattern query, key;
    float scale, softcap; /* softcap 0: none */
    int32_t causal;
    int64_t window; /* 0: none */
    const uint8_t* device_hidden;
    const float* device_sinks;
    const float* device_lse;
};

ATTNCACHE_CUDA_API int attncache_cuda_interface(void);             /* ATTNCACHE_CUDA_INTERFACE of the library */
ATTNCACHE_CUDA_API const char* attncache_cuda_message(int status); /* words for a status, never NULL */
ATTNCACHE_CUDA_API int attncache_cuda_device_count(int* count);    /* cudaErrorInsufficientDriver etc. as status */
ATTNCACHE_CUDA_API int attncache_cuda_set_device(int device);
ATTNCACHE_CUDA_API int attncache_cuda_get_device(int* device);
ATTNCACHE_CUDA_API int attncache_cuda_allocate(size_t n_bytes, void* stream, void** device_memory);
ATTNCACHE_CUDA_API int attncache_cuda_free(void* device_memory, void* stream);
ATTNCACHE_CUDA_API int attncache_cuda_copy_to_host(void* to, const void* device_from, size_t n_bytes,
                                                   void* stream); /* waits */
ATTNCACHE_CUDA_API int attncache_cuda_copy_to_device(void* device_to, const void* from, size_t n_bytes, void* stream);
ATTNCACHE_CUDA_API int attncache_cuda_synchronize(void* stream);
/* What is enqueued on `stream` from now on begins after all that is on `other` now; the host waits for neither. */
ATTNCACHE_CUDA_API int attncache_cuda_stream_wait(void* stream, void* other);
/* The device that the memory lies on (cudaPointerGetAttributes); ATTNCACHE_CUDA_BAD_ARGUMENT if it is the host's. */
ATTNCACHE_CUDA_API int attncache_cuda_device_of(const void* device_memory, int* device);

/* What a caller should let lines take that it has computed only to rank them or to pick from them. */
ATTNCACHE_CUDA_API int64_t attncache_cuda_scratch_bytes(void);

/* float [layer, batch, head, position, key]; head axis of length 1 with mean_heads. Also head_mean: all positions. */
ATTNCACHE_CUDA_API int attncache_cuda_rows(const struct attncache_cuda_selection* selection, const int64_t* positions,
                                           int64_t n_positions, float* device_out, void* stream);
/* float [layer, batch, head, position, query] */
ATTNCACHE_CUDA_API int attncache_cuda_columns(const struct attncache_cuda_selection* selection,
                                              const int64_t* positions, int64_t n_positions, float* device_out,
                                              void* stream);
/* float [layer, batch, head, from, to] */
ATTNCACHE_CUDA_API int attncache_cuda_edges(const struct attncache_cuda_selection* selection, const int64_t* from,
                                            int64_t n_from, const int64_t* to, int64_t n_to, float* device_out,
                                            void* stream);
/* The k <= length heaviest of each of n_lines lines of floats (rows or columns computed before): heaviest first, equal
 * weights (-0 equals +0) to the lower position, NaN after every number (NaNs among themselves by position).
 * int64 and float [line, k]; the weights are those found there, bit for bit. Lines of 2^31 floats are too large. */
ATTNCACHE_CUDA_API int attncache_cuda_top_k(const float* device_lines, int64_t n_lines, int64_t length, int64_t k,
                                            int64_t* device_positions, float* device_weights, void* stream);
/* The same of rows as they are stored, without mean_heads: int64 and float [layer, batch, head, position, k]. */
ATTNCACHE_CUDA_API int attncache_cuda_top_k_rows(const struct attncache_cuda_selection* selection,
                                                 const int64_t* positions, int64_t n_positions, int64_t k,
                                                 int64_t* device_positions, float* device_weights, void* stream);
/* Rows of one factored layer: float [batch, head, position, key]; with mean_heads the mean over the listed heads.
 * Bounded as attncache/factored.hpp says, with the device's expf and tanhf (bounds in CUDA's programming guide). */
ATTNCACHE_CUDA_API int attncache_cuda_factored_rows(const struct attncache_cuda_factored* layer, const int64_t* batches,
                                                    int64_t n_batches, const int64_t* heads, int64_t n_heads,
                                                    int32_t mean_heads, const int64_t* positions, int64_t n_positions,
                                                    float* device_out, void* stream);

#ifdef __cplusplus
}
#endif
#endif

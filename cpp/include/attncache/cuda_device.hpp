// CUDA devices and the layers in their memory. The bindings make such layers; everything else sees Layer and Device.
#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <variant>

#include "attncache/cuda.h"
#include "attncache/device.hpp"
#include "attncache/factored.hpp"

namespace attncache {

class CudaLibrary;

/// One CUDA device. It lives as long as the process.
class CudaDevice final : public Device {
public:
    CudaDevice(const CudaLibrary& library, int number);

    const std::string& name() const override { return name_; }
    void rows(const Selection& selection, std::span<const std::int64_t> positions, const Out& out) const override;
    void columns(const Selection& selection, std::span<const std::int64_t> positions, const Out& out) const override;
    void edges(const Selection& selection, std::span<const std::int64_t> from_positions,
               std::span<const std::int64_t> to_positions, const Out& out) const override;
    void top_k(const Selection& selection, std::span<const std::int64_t> positions, Direction direction, std::int64_t k,
               std::int64_t* top_positions, float* top_weights) const override;
    std::shared_ptr<const Layer> cpu(const Layer& layer) const override;

    /// What is enqueued on `stream` from now on begins after all that is on `other` now; the host waits for neither.
    void wait(void* stream, void* other) const;
    /// Copies from the device, once all that is on `stream` is done.
    void copy_to_host(void* to, const void* device_from, std::size_t n_bytes, void* stream) const;

    const CudaLibrary& library() const { return library_; }
    int number() const { return number_; }

private:
    const CudaLibrary& library_;
    int number_;
    std::string name_;

    template <class Fill>
    void answer(const Selection& selection, std::size_t n_per_plane, const Out& out, const Fill& fill) const;
};

/// The CUDA devices of this process, as a library that was built for them shows them.
class CudaDevices {
public:
    /// Those of the library at `path`, which is loaded once. Throws std::runtime_error, which says what is wrong with
    /// it.
    static CudaDevices& of(const std::string& path);

    /// Why none can be used, in plain words; empty if one can.
    std::string why_not() const;
    /// Throws std::runtime_error if there is none of that number.
    const CudaDevice& device(int number);
    /// The device that memory lies on; nullptr if it is the host's. Of no memory, the current device.
    const CudaDevice* device_of(const void* address);
    /// The number of this thread's current device.
    int current() const;
    void make_current(int number) const;

private:
    explicit CudaDevices(const CudaLibrary& library) : library_(library) {}

    const CudaLibrary& library_;
    std::mutex mutex_;
    std::map<int, CudaDevice> devices_;  // guarded by the mutex; none is ever removed
};

/// An array of four axes on a device, and what keeps its memory valid.
struct Borrowed {
    PatternView view;  // its address is the device's
    std::shared_ptr<const void> owner;
};

/// Memory on a device that is freed after all that its stream was given to do until then.
class CudaMemory {
public:
    CudaMemory() = default;
    CudaMemory(const CudaDevice& device, std::size_t n_bytes, void* stream);
    ~CudaMemory();
    CudaMemory(CudaMemory&& other) noexcept;
    CudaMemory& operator=(CudaMemory&&) = delete;

    template <class Item>
    Item* as() const {
        return static_cast<Item*>(address_);
    }

private:
    const CudaDevice* device_ = nullptr;
    void* stream_ = nullptr;
    void* address_ = nullptr;
};

/// A layer in the memory of a CUDA device that somebody else owns: a pattern, or queries and keys. All work with it is
/// in the order of its stream. Its memory goes back when that work is done, which the layer's end waits for.
class CudaLayer final : public Layer {
public:
    CudaLayer(const CudaDevice& device, Borrowed pattern, void* stream);
    /// `lse` as for FactoredLayer.
    CudaLayer(const CudaDevice& device, Borrowed query, Borrowed key, Scoring scoring, std::vector<float> lse,
              void* stream);
    ~CudaLayer() override { finish(); }

    std::int64_t n_bytes() const override;
    Costs costs() const override;
    void read_lines(const LineRequest& request, const LinesOut& out) const override;

    void* stream() const { return stream_; }
    /// The pattern of a dense layer, otherwise nullptr.
    const attncache_cuda_pattern* pattern() const { return std::get_if<attncache_cuda_pattern>(&lies_); }
    /// The queries and keys of a factored one, otherwise nullptr.
    const attncache_cuda_factored* factored() const { return std::get_if<attncache_cuda_factored>(&lies_); }

    /// Notes that there is work on the stream that the host does not wait for.
    void mark_in_use() const { is_in_use_.store(true, std::memory_order_relaxed); }
    /// Waits for such work.
    void finish() const noexcept;
    /// A copy in CPU memory.
    std::shared_ptr<const Layer> cpu() const;

private:
    const CudaDevice& cuda_;
    void* stream_;
    std::vector<Borrowed> borrowed_;  // the pattern; or queries, then keys
    Scoring scoring_;
    std::vector<float> lse_;
    std::vector<CudaMemory> uploaded_;  // what the struct below points at
    std::variant<attncache_cuda_pattern, attncache_cuda_factored> lies_;
    mutable std::atomic<bool> is_in_use_{false};

    const void* uploaded(const void* values, std::size_t n_bytes);
    std::shared_ptr<const DenseLayer> copy_of(const PatternView& view) const;
};

}  // namespace attncache

// The layers of one Python cache and their indexes. Every access holds the GIL, which orders pushes and queries;
// queries that release it keep the layers they read.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "attncache/factored.hpp"
#include "attncache/index.hpp"
#include "attncache/store.hpp"
#include "numpy_api.hpp"

namespace attncache::python {

namespace py = pybind11;

/// The index of one batch item, built or not.
struct BatchIndex {
    HeadMeanIndex index;
    py::object owner;  // a capsule that shares the index: the base of every view of it
    IndexRule rule;
    bool is_building = false;  // by another thread, which has released the GIL
};

/// A layer in the memory of a device: no code of this library can read it, only the Python object that has it can.
struct DeviceLayer {
    py::object layer;  // of attncache.cuda
    std::string device;
    bool is_factored;
    std::int64_t n_bytes;
};

/// One layer: a dense pattern, queries and keys, or either of them on a device. What reads CPU memory is reached only
/// through accessors that refuse a layer on a device (ValueError), whose own pattern has a shape and no address.
class StoredLayer {
public:
    explicit StoredLayer(std::shared_ptr<const Layer> dense);
    explicit StoredLayer(std::shared_ptr<const FactoredLayer> factored);
    StoredLayer(const Shape& shape, DType dtype, DeviceLayer device);

    const Shape& shape() const { return pattern_.shape; }
    DType dtype() const { return pattern_.dtype; }
    bool is_factored() const { return factored_ != nullptr || device_.is_factored; }
    std::int64_t n_bytes() const;

    bool is_on_device() const { return static_cast<bool>(device_.layer); }
    /// "cpu", or the name of its device.
    const std::string& device() const { return device_.device; }
    const py::object& device_layer() const { return device_.layer; }

    /// The dense pattern; of queries and keys a view with shape and dtype alone.
    const PatternView& pattern() const {
        if (is_on_device()) refuse_to_read();
        return pattern_;
    }
    /// The queries and keys; nullptr if the layer is dense.
    const std::shared_ptr<const FactoredLayer>& factored() const {
        if (is_on_device()) refuse_to_read();
        return factored_;
    }
    /// A capsule that shares the dense pattern: the base of every view of it.
    const py::object& owner() const { return owner_; }

    /// Calls ask(layer) with the dense pattern or the factored layer.
    template <class Ask>
    void ask(const Ask& ask) const {
        if (factored() != nullptr) {
            ask(*factored_);
        } else {
            ask(pattern_);
        }
    }

    std::vector<BatchIndex> indexes;

private:
    PatternView pattern_;
    std::shared_ptr<const FactoredLayer> factored_;
    py::object owner_;
    DeviceLayer device_{{}, "cpu", false, 0};

    [[noreturn]] void refuse_to_read() const;
};

/// Whether indexes are built: never, when they pay, or with each push.
enum class IndexPolicy : std::uint8_t { off, automatic, eager };

struct Store {
    IndexPolicy policy = IndexPolicy::automatic;
    std::vector<std::shared_ptr<StoredLayer>> layers;

    std::int64_t n_layers() const { return static_cast<std::int64_t>(layers.size()); }
};

/// The store inside a Python object; TypeError if that is no Store, or one whose __init__ never ran (pybind11's own
/// conversion would hand out unwritten memory for such an object, so bound functions take py::object and call this).
Store& store_of(PyObject* self);
/// The same for a `self` that CPython has checked to be a Store, as it does before it calls a method descriptor.
Store& store_in(PyObject* self);
inline Store& store_of(const py::object& self) { return store_of(self.ptr()); }

/// The index of a batch item if there is one: built already, or now because with this query of `query_bytes` it pays.
/// Never waits for another thread that builds it; nullptr means that the query is to be answered directly. The caller
/// shares `layer`: building releases the GIL, and the store may let go of its own.
const BatchIndex* index_for_query(const Store& store, const std::shared_ptr<StoredLayer>& layer, std::int64_t batch,
                                  std::int64_t query_bytes);

/// Puts a built index in its place, with the capsule that owns it.
void set_index(BatchIndex& place, HeadMeanIndex index);

}  // namespace attncache::python

// DLPack capsules, in and out, of arrays that this library itself does not read: attncache.cuda says what they mean.
#include <pybind11/critical_section.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "bind.hpp"
#include "dlpack.hpp"

namespace attncache::python {
namespace {

using dlpack::ManagedTensor;
using dlpack::VersionedTensor;

void check_version(const ManagedTensor&) {}
void check_version(const VersionedTensor& managed) {
    if (managed.major == VersionedTensor::kMajor) return;
    throw py::buffer_error("the array must come as DLPack 1, got version " + std::to_string(managed.major));
}

/// Takes what a capsule holds out of it. The object that owns it from then on calls its deleter, once.
template <class Managed>
py::tuple take(const py::object& given) {
    const py::scoped_critical_section alone(given);  // of two threads that bring one capsule, one takes it
    auto* const managed = static_cast<Managed*>(PyCapsule_GetPointer(given.ptr(), Managed::kFresh));
    if (managed == nullptr || PyCapsule_SetName(given.ptr(), Managed::kTaken) != 0) throw py::error_already_set();
    const std::shared_ptr<Managed> shared(managed, [](Managed* p) {
        if (p->deleter != nullptr) p->deleter(p);
    });
    check_version(*managed);
    const dlpack::Tensor& tensor = managed->tensor;
    if (tensor.ndim < 0) throw py::buffer_error("the array must have axes, got " + std::to_string(tensor.ndim));
    const auto n = static_cast<std::size_t>(tensor.ndim);
    const std::vector<std::int64_t> shape(tensor.shape, tensor.shape + n);
    std::vector<std::int64_t> strides(n, 1);
    for (std::size_t i = n; i-- > 0;) {
        if (tensor.strides != nullptr) {
            strides[i] = tensor.strides[i];
        } else if (i + 1 < n) {
            strides[i] = strides[i + 1] * shape[i + 1];
        }
    }
    const auto address = reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset;
    return py::make_tuple(capsule_of(shared), address, py::make_tuple(tensor.device.type, tensor.device.id),
                          py::make_tuple(tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes),
                          py::tuple(py::cast(shape)), py::tuple(py::cast(strides)));
}

/// (owner, address, device, dtype, shape, strides in items) of a DLPack capsule, which is used up by it.
py::tuple dlpack_taken(const py::object& capsule) {
    if (PyCapsule_IsValid(capsule.ptr(), VersionedTensor::kFresh)) return take<VersionedTensor>(capsule);
    if (PyCapsule_IsValid(capsule.ptr(), ManagedTensor::kFresh)) return take<ManagedTensor>(capsule);
    throw py::buffer_error("__dlpack__ must return a DLPack capsule that nobody has used, got " +
                           std::string(py::repr(capsule)));
}

/// The memory of an array that goes out: what the struct points at, and what keeps the array alive.
template <class Managed>
struct Given {
    Managed managed{};
    std::vector<std::int64_t> shape;
    std::vector<std::int64_t> strides;
    std::shared_ptr<const void> owner;
};

void set_version(ManagedTensor&) {}
void set_version(VersionedTensor& managed) { managed.major = VersionedTensor::kMajor; }

/// The destructor of a capsule that nobody took.
template <class Managed>
void let_go(PyObject* capsule) {
    if (!PyCapsule_IsValid(capsule, Managed::kFresh)) return;
    auto* const managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule, Managed::kFresh));
    managed->deleter(managed);
}

template <class Managed>
py::object give(std::unique_ptr<Given<Managed>> given) {
    Managed& managed = given->managed;
    set_version(managed);
    managed.context = given.get();
    managed.deleter = [](Managed* p) { delete static_cast<Given<Managed>*>(p->context); };
    auto capsule = py::reinterpret_steal<py::object>(PyCapsule_New(&managed, Managed::kFresh, let_go<Managed>));
    if (!capsule) throw py::error_already_set();
    given.release();  // the capsule's, or of whoever takes it
    return capsule;
}

template <class Managed>
py::object give(const py::object& owner, std::uintptr_t address, std::pair<int, int> device, std::pair<int, int> dtype,
                std::vector<std::int64_t> shape) {
    auto given = std::make_unique<Given<Managed>>();
    given->owner = keep_alive(owner);
    given->strides.assign(shape.size(), 1);
    for (std::size_t i = shape.size(); i-- > 1;) given->strides[i - 1] = given->strides[i] * shape[i];
    given->shape = std::move(shape);
    dlpack::Tensor& tensor = given->managed.tensor;
    tensor.data = reinterpret_cast<void*>(address);
    tensor.device = {device.first, device.second};
    tensor.ndim = static_cast<std::int32_t>(given->shape.size());
    tensor.dtype = {static_cast<std::uint8_t>(dtype.first), static_cast<std::uint8_t>(dtype.second), 1};
    tensor.shape = given->shape.data();
    tensor.strides = given->strides.data();
    return give(std::move(given));
}

/// A capsule of a C-contiguous array that lies at `address` as long as `owner` lives.
py::object dlpack_given(const py::object& owner, std::uintptr_t address, std::pair<int, int> device,
                        std::pair<int, int> dtype, std::vector<std::int64_t> shape, bool is_versioned) {
    return is_versioned ? give<VersionedTensor>(owner, address, device, dtype, std::move(shape))
                        : give<ManagedTensor>(owner, address, device, dtype, std::move(shape));
}

}  // namespace

void bind_dlpack(py::module_& module) {
    using namespace py::literals;
    module.def("dlpack_taken", dlpack_taken, "capsule"_a);
    module.def("dlpack_given", dlpack_given, "owner"_a, "address"_a, "device"_a, "dtype"_a, "shape"_a,
               "is_versioned"_a);
}

}  // namespace attncache::python

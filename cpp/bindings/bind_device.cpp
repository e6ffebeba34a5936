// Layers on a device: made of arrays that Python has taken apart; and arrays there that answers are written into.
#include <pybind11/critical_section.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "attncache/cuda_device.hpp"
#include "bind.hpp"
#include "device_out.hpp"
#include "dlpack.hpp"
#include "layer_arguments.hpp"

namespace attncache::python {
namespace {

void check_version(const dlpack::ManagedTensor&) {}
void check_version(const dlpack::VersionedTensor& managed) {
    if (managed.major == dlpack::VersionedTensor::kMajor) return;
    throw py::buffer_error("the array must come as DLPack 1, got version " + std::to_string(managed.major));
}

bool is_read_only(const dlpack::ManagedTensor&) { return false; }
bool is_read_only(const dlpack::VersionedTensor& managed) { return (managed.flags & 1) != 0; }

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
                          py::tuple(py::cast(shape)), py::tuple(py::cast(strides)), is_read_only(*managed));
}

/// (owner, address, device, dtype, shape, strides in items, whether it is read-only) of a DLPack capsule, which is used
/// up by it.
py::tuple dlpack_taken(const py::object& capsule) {
    using dlpack::ManagedTensor, dlpack::VersionedTensor;
    if (PyCapsule_IsValid(capsule.ptr(), VersionedTensor::kFresh)) return take<VersionedTensor>(capsule);
    if (PyCapsule_IsValid(capsule.ptr(), ManagedTensor::kFresh)) return take<ManagedTensor>(capsule);
    throw py::buffer_error("__dlpack__ must return a DLPack capsule that nobody has used, got " +
                           std::string(py::repr(capsule)));
}

void* stream_of(std::uintptr_t handle) { return reinterpret_cast<void*>(handle); }

/// An attncache.cuda.arrays.DeviceArray of four axes.
struct Given {
    Borrowed borrowed;
    int device;
    void* stream;

    explicit Given(const py::tuple& array)
        : device(array[2].cast<int>()), stream(stream_of(array[6].cast<std::uintptr_t>())) {
        const auto shape = array[4].cast<std::array<std::int64_t, 4>>();
        const auto strides = array[5].cast<std::array<std::int64_t, 4>>();
        const auto* const data = static_cast<const std::byte*>(stream_of(array[1].cast<std::uintptr_t>()));
        const DType dtype = dtype_named(array[3].cast<std::string>());
        const PatternView view{data,       dtype,      {shape[0], shape[1], shape[2], shape[3]},
                               strides[0], strides[1], strides[2]};
        borrowed = {view, keep_alive(array[0])};
    }
};

bool is_finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
    return Py_IsFinalizing() != 0;
#else
    return _Py_IsFinalizing() != 0;
#endif
}

/// A layer whose end waits for its work without the GIL. The end of the process ends all work, and whoever owns the
/// memory may be gone by then: it is not given back.
std::shared_ptr<Layer> ending_without_gil(CudaLayer* layer) {
    return {layer, [](CudaLayer* ending) {
                if (is_finalizing()) return;
                if (PyGILState_Check() != 0) {
                    const py::gil_scoped_release released;
                    ending->finish();
                }
                delete ending;
            }};
}

std::shared_ptr<Layer> dense(CudaDevices& devices, const py::tuple& pattern) {
    Given given(pattern);
    return ending_without_gil(new CudaLayer(devices.device(given.device), std::move(given.borrowed), given.stream));
}

std::shared_ptr<Layer> factored(CudaDevices& devices, const py::tuple& query, const py::tuple& key,
                                const ScoringTuple& scoring, const py::object& lse) {
    Given queries(query);
    Given keys(key);
    const CudaDevice& device = devices.device(queries.device);
    std::vector<float> row_lse = lse_from(lse, queries.borrowed.view.shape);
    const py::gil_scoped_release released;
    device.wait(queries.stream, keys.stream);
    return ending_without_gil(new CudaLayer(device, std::move(queries.borrowed), std::move(keys.borrowed),
                                            scoring_of(scoring), std::move(row_lse), queries.stream));
}

/// Makes a device the current one of this thread, and returns the number of the one before.
int use(const CudaDevices& devices, int number) {
    const int before = devices.current();
    if (before != number) devices.make_current(number);
    return before;
}

py::object device_of(CudaDevices& devices, std::uintptr_t address) {
    const CudaDevice* const device = devices.device_of(stream_of(address));
    return device == nullptr ? py::none() : py::object(py::int_(device->number()));
}

py::object why_not(const CudaDevices& devices) {
    const std::string reason = devices.why_not();
    return reason.empty() ? py::none() : py::object(py::str(reason));
}

/// A new array of the bytes at an address, once all that is on the stream is done.
py::object bytes_of(CudaDevices& devices, int number, std::uintptr_t address, std::int64_t n_bytes,
                    std::uintptr_t stream) {
    const npy_intp dims[] = {static_cast<npy_intp>(n_bytes)};
    auto array = py::reinterpret_steal<py::object>(new_array(dims, NPY_UINT8));
    void* const to = PyArray_DATA(reinterpret_cast<PyArrayObject*>(array.ptr()));
    const CudaDevice& device = devices.device(number);
    const py::gil_scoped_release released;
    device.copy_to_host(to, stream_of(address), static_cast<std::size_t>(n_bytes), stream_of(stream));
    return array;
}

}  // namespace

std::optional<Out> device_out(PyObject* out, const Device* device, std::span<const npy_intp> dims) {
    if (device == nullptr || out == nullptr || out == Py_None || PyArray_Check(out)) return std::nullopt;
    py::tuple shape(dims.size());
    for (std::size_t i = 0; i < dims.size(); ++i) shape[i] = py::int_(dims[i]);
    const py::object found =
        py::module_::import("attncache.cuda.arrays").attr("result_on")(py::handle(out), device->name(), shape);
    if (found.is_none()) return std::nullopt;
    const auto [address, stream] = found.cast<std::pair<std::uintptr_t, std::uintptr_t>>();
    return Out(static_cast<float*>(stream_of(address)), stream_of(stream));
}

void bind_device(py::module_& module) {
    using namespace py::literals;
    py::class_<CudaDevices, std::unique_ptr<CudaDevices, py::nodelete>>(module, "CudaDevices", py::is_final())
        .def(py::init([](const std::string& path) { return &CudaDevices::of(path); }), "path"_a)
        .def("why_not", why_not)
        .def("use", use, "device"_a)
        .def("device_of", device_of, "address"_a)
        .def(
            "wait",
            [](CudaDevices& devices, int device, std::uintptr_t stream, std::uintptr_t other) {
                devices.device(device).wait(stream_of(stream), stream_of(other));
            },
            "device"_a, "stream"_a, "other"_a)
        .def("bytes_of", bytes_of, "device"_a, "address"_a, "n_bytes"_a, "stream"_a)
        .def("dense", dense, "pattern"_a)
        .def("factored", factored, "query"_a, "key"_a, "scoring"_a, "lse"_a);
    module.def("dlpack_taken", dlpack_taken, "capsule"_a);
}

}  // namespace attncache::python

// attncache._core: the C++ core as seen from Python.
#define ATTNCACHE_IMPORTS_NUMPY
#include "numpy_api.hpp"

#include <new>
#include <stdexcept>

#include "attncache/simd.hpp"
#include "attncache/threads.hpp"
#include "bind.hpp"
#include "gil.hpp"

namespace {

int import_numpy() {
    import_array1(-1);
    return 0;
}

constexpr const char* kNotHere = "attncache must be imported in the main interpreter, not in a subinterpreter";

bool is_main_interpreter() { return PyInterpreterState_Get() == PyInterpreterState_Main(); }

}  // namespace

// Of the main interpreter alone: in another one pybind11 would wait for ever, and NumPy's state is that of the first.
// pybind11 3.1 compiles the two options in this order alone.
PYBIND11_MODULE(_core_of_main, module, pybind11::mod_gil_not_used(), pybind11::multiple_interpreters::not_supported()) {
    // From 3.13 on, PyInit__core itself runs in the main interpreter, whoever imports.
    if (!is_main_interpreter()) throw pybind11::import_error(kNotHere);
    if (import_numpy() < 0) throw pybind11::error_already_set();
    attncache::simd::use_environment();
    attncache::num_threads();  // reads its environment variable, so that a wrong one fails here
    module.attr("__version__") = ATTNCACHE_VERSION;
    pybind11::register_local_exception_translator([](std::exception_ptr thrown) {
        try {
            if (thrown) std::rethrow_exception(thrown);
        } catch (const std::bad_alloc& error) {
            attncache::python::set_no_memory(error);
        } catch (const std::length_error& error) {
            attncache::python::set_no_memory(error);
        }
    });
    attncache::Face::release = attncache::python::release_reference;
    attncache::python::bind_layer(module);
    const auto store = attncache::python::bind_store(module);
    attncache::python::add_hot_calls(store);
    attncache::python::bind_device(module);
    attncache::python::bind_queries(module);
    attncache::python::bind_settings(module);
}

extern "C" PYBIND11_EXPORT PyObject* PyInit__core() {
    if (is_main_interpreter()) return PyInit__core_of_main();
    PyErr_SetString(PyExc_ImportError, kNotHere);
    return nullptr;
}

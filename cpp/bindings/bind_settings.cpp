// What concerns the whole process: SIMD level, number of threads, freed memory.
#include <algorithm>
#include <string>

#include "attncache/memory.hpp"
#include "attncache/simd.hpp"
#include "attncache/threads.hpp"
#include "bind.hpp"
#include "arguments.hpp"

namespace attncache::python {
namespace {

py::tuple names(std::span<const std::string_view> levels) {
    py::tuple result(levels.size());
    for (std::size_t i = 0; i < levels.size(); ++i) result[i] = py::str(levels[i].data(), levels[i].size());
    return result;
}

void set_threads(const py::object& n) {
    const std::int64_t number = whole_number(n.ptr(), "n");
    if (number < 1) throw py::value_error("n must be at least 1, got " + std::string(py::str(n)));
    set_num_threads(static_cast<int>(std::min<std::int64_t>(number, 1'000'000)));
}

void use_level(const py::object& level) { simd::use(text(level, "level")); }

}  // namespace

void bind_settings(py::module_& module) {
    using namespace py::literals;
    module.def("simd_compiled", [] { return names(simd::compiled()); });
    module.def("simd_available", [] { return names(simd::available()); });
    module.def("simd_active", [] { return py::str(std::string(simd::active())); });
    module.def("simd_active_instructions", [] { return py::str(std::string(simd::active_instructions())); });
    module.def("simd_use", use_level, "level"_a);
    module.def("give_back_freed_memory", give_back_freed_memory, py::call_guard<py::gil_scoped_release>());
    module.def("get_num_threads", num_threads);
    module.def("set_num_threads", set_threads, "n"_a);
}

}  // namespace attncache::python

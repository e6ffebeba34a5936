// The structs of DLPack 1.0 (https://dmlc.github.io/dlpack/latest/c_api.html), the way arrays cross libraries.
#pragma once

#include <cstdint>

namespace attncache::dlpack {

struct Device {
    std::int32_t type;
    std::int32_t id;
};

struct DataType {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // in items; nullptr: C-contiguous
    std::uint64_t byte_offset;
};

/// What a capsule named "dltensor" holds.
struct ManagedTensor {
    static constexpr const char* kFresh = "dltensor";
    static constexpr const char* kTaken = "used_dltensor";

    Tensor tensor;
    void* context;
    void (*deleter)(ManagedTensor*);
};

/// What a capsule named "dltensor_versioned" holds.
struct VersionedTensor {
    static constexpr const char* kFresh = "dltensor_versioned";
    static constexpr const char* kTaken = "used_dltensor_versioned";
    static constexpr std::uint32_t kMajor = 1;

    std::uint32_t major;
    std::uint32_t minor;
    void* context;
    void (*deleter)(VersionedTensor*);
    std::uint64_t flags;
    Tensor tensor;
};

}  // namespace attncache::dlpack

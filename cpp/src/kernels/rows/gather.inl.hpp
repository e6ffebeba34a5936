// Items that do not lie next to each other, as floats: copied block by block, then widened at full width. Exact.
namespace attncache::ATTNCACHE_LEVEL {
namespace {

/// Enough items to keep many cache misses in flight, few enough to stay in the first cache level.
constexpr std::size_t kGatherBlock = 64;

/// An item at any byte offset.
template <class T>
T item_at(const std::byte* p) {
    T item;
    std::memcpy(&item, p, sizeof item);
    return item;
}

template <class T>
void gather(const std::byte* const* addresses, std::size_t n, float* out) {
    T items[kGatherBlock];
    for (std::size_t begin = 0; begin < n; begin += kGatherBlock) {
        const std::size_t length = n - begin < kGatherBlock ? n - begin : kGatherBlock;
        for (std::size_t i = 0; i < length; ++i) items[i] = item_at<T>(addresses[begin + i]);
        convert_items(items, length, out + begin);
    }
}

template <class T>
void column(const std::byte* first, std::int64_t stride, std::size_t n, float* out) {
    T items[kGatherBlock];
    for (std::size_t begin = 0; begin < n; begin += kGatherBlock) {
        const std::size_t length = n - begin < kGatherBlock ? n - begin : kGatherBlock;
        for (std::size_t i = 0; i < length; ++i, first += stride) items[i] = item_at<T>(first);
        convert_items(items, length, out + begin);
    }
}

}  // namespace
}  // namespace attncache::ATTNCACHE_LEVEL

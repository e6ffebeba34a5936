// Head means that are made while a layer is copied.
#pragma once

#include "attncache/head_mean.hpp"
#include "copying.hpp"

namespace attncache {

/// Copies all rows of `source` into the memory of `layer`, which is `copy`, and puts the head mean of every batch item
/// into its slot.
void copy_with_head_means(const SourceArray& source, const LayerCopy& copy, const Layer& layer);

}  // namespace attncache

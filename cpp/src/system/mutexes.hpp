// Mutexes that a fork cannot leave locked in the child.
#pragma once

#include <mutex>

namespace attncache {

/// The mutex of an object. Few serve all, so nobody may lock a second one while holding one, nor run code of others. A
/// fork waits for all of them, so that the child finds them free and what they guard whole.
std::mutex& mutex_of(const void* object);

}  // namespace attncache

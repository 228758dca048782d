// Threads that exist only while one call runs, so that a fork between calls finds none.
#pragma once

#include <cstddef>
#include <functional>

namespace stoker {

// Runs job(0) ... job(count - 1), begun in this order, on up to `threads` threads of which the
// caller is one. The first exception stops what has not begun, and is thrown after the join.
void run_parallel(std::size_t count, unsigned threads, const std::function<void(std::size_t)>& job);

}  // namespace stoker

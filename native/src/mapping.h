// Chunks of a pool side by side in one address range; what is written stays in this process.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "memory.h"

namespace stoker {

class Mapping {
 public:
  // `pool_fd` may be closed afterwards. `byte_count` ends in the last of `chunks`.
  Mapping(int pool_fd, const std::vector<std::size_t>& chunks, std::size_t byte_count);

  std::span<std::byte> bytes() const { return memory_.bytes().first(byte_count_); }
  // Maps every page now, so that no later access faults.
  void populate() const { stoker::populate(memory_.bytes(), false); }

 private:
  Memory memory_;
  std::size_t byte_count_;
};

}  // namespace stoker

// Chunks of a pool side by side in one address range; what is written stays in this process.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "memory.h"

namespace stoker {

class Mapping {
 public:
  // Address space alone, which reads as zeros: whatever refers to it may be made ahead of `map`,
  // and in a process that forks the one that maps.
  explicit Mapping(std::size_t byte_count);

  // `pool_fd` may be closed afterwards. The bytes end in the last of `chunks`.
  void map(int pool_fd, const std::vector<std::size_t>& chunks);

  std::span<std::byte> bytes() const { return memory_.bytes().first(byte_count_); }
  // Maps every page now, so that no later access faults.
  void populate() const { stoker::populate(memory_.bytes(), false); }

 private:
  std::size_t byte_count_;
  Memory memory_;
};

}  // namespace stoker

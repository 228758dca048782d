// Private memory of this process to load into, as `load_file` does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "memory.h"

namespace stoker {

class Region {
 public:
  explicit Region(std::size_t byte_count, bool huge_pages = true);

  std::span<std::byte> bytes() const { return memory_.bytes().first(byte_count_); }
  // The memory from `ordinal` chunks on: one chunk, or what is left in whole pages.
  std::span<std::byte> chunk(std::size_t ordinal) const;
  bool has_huge_pages() const { return stoker::has_huge_pages(memory_.data()); }

  // Has the file's own pages, copied on write, stand at `offset`; false where that cannot be.
  bool borrow(std::size_t offset, int fd, std::uint64_t file_offset, std::size_t byte_count);

  // Gives the pages that lie wholly in the range back; what they held is lost.
  void discard(std::size_t offset, std::size_t byte_count);

 private:
  Memory memory_;
  std::size_t byte_count_;
};

}  // namespace stoker

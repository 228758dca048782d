// Private memory that one file is read into.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "memory.h"

namespace stoker {

class Region {
 public:
  Region(std::size_t byte_count, bool huge_pages);

  std::span<std::byte> bytes() const { return memory_.bytes().first(byte_count_); }
  bool has_huge_pages() const { return stoker::has_huge_pages(memory_.data()); }

  // Reads bytes [file_offset, file_offset + byte_count) of the file to the region's front.
  void read_file(const std::string& path, std::uint64_t file_offset, std::size_t byte_count,
                 unsigned threads, bool direct);

 private:
  Memory memory_;
  std::size_t byte_count_;
};

}  // namespace stoker

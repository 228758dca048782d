// A range of mapped memory, aligned so that huge pages can back it, unmapped on destruction.
#pragma once

#include <cstddef>
#include <span>

namespace stoker {

class Memory {
 public:
  static Memory anonymous(std::size_t bytes, bool huge_pages);
  static Memory shared(int fd, std::size_t bytes, bool huge_pages);
  // Address space only; the caller maps into it.
  static Memory reserved(std::size_t bytes);

  Memory(Memory&& other) noexcept;
  Memory& operator=(Memory&&) = delete;
  ~Memory();

  std::byte* data() const { return base_; }
  std::size_t size() const { return size_; }
  std::span<std::byte> bytes() const { return {base_, size_}; }

 private:
  Memory(std::byte* base, std::size_t size) : base_(base), size_(size) {}

  std::byte* base_;
  std::size_t size_;
};

// Whether the kernel maps this range by huge pages, read from the process's own memory map.
bool has_huge_pages(const std::byte* address);

// Fault pages in without changing what they hold; `write` makes them writable at once.
void populate(std::span<std::byte> range, bool write);

}  // namespace stoker

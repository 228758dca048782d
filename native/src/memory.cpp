#include "memory.h"

#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

#include "chunk.h"
#include "error.h"

// Older C libraries do not name these advices of Linux 5.14.
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace stoker {
namespace {

std::byte* reserve(std::size_t bytes, std::size_t alignment) {
  const std::size_t padded = bytes + alignment;
  void* start =
      ::mmap(nullptr, padded, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) throw SystemError(errno, "cannot reserve address space");
  auto* base = static_cast<std::byte*>(start);
  const std::size_t head =
      (alignment - reinterpret_cast<std::uintptr_t>(base) % alignment) % alignment;
  if (head > 0) ::munmap(base, head);
  if (padded - head > bytes) ::munmap(base + head + bytes, padded - head - bytes);
  return base + head;
}

std::size_t alignment_for(std::size_t bytes) {
  return bytes >= huge_page_bytes ? huge_page_bytes : page_bytes;
}

std::size_t whole_pages(std::size_t bytes) {
  // Far above any address space, and far below where the sums would overflow.
  if (bytes > std::size_t{1} << 56) throw SystemError(ENOMEM, "cannot reserve address space");
  return round_up(bytes == 0 ? 1 : bytes, page_bytes);
}

}  // namespace

Memory::Memory(Memory&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Memory::~Memory() {
  if (base_ != nullptr) ::munmap(base_, size_);
}

Memory Memory::reserved(std::size_t bytes) {
  const std::size_t size = whole_pages(bytes);
  return {reserve(size, alignment_for(size)), size};
}

Memory Memory::anonymous(std::size_t bytes, bool huge_pages) {
  Memory memory = reserved(bytes);
  void* mapped = ::mmap(memory.data(), memory.size(), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  if (mapped == MAP_FAILED) throw SystemError(errno, "cannot map memory");
  // Refused on kernels without huge pages, where small ones serve as well.
  if (huge_pages) ::madvise(memory.data(), memory.size(), MADV_HUGEPAGE);
  return memory;
}

Memory Memory::shared(int fd, std::size_t bytes, bool huge_pages) {
  Memory memory = reserved(bytes);
  void* mapped =
      ::mmap(memory.data(), memory.size(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
  if (mapped == MAP_FAILED) throw SystemError(errno, "cannot map shared memory");
  if (huge_pages) ::madvise(memory.data(), memory.size(), MADV_HUGEPAGE);
  return memory;
}

bool has_huge_pages(const std::byte* address) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> maps(std::fopen("/proc/self/smaps", "re"),
                                                             &std::fclose);
  if (!maps) return false;
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  bool inside = false;
  char line[512];
  while (std::fgets(line, sizeof line, maps.get()) != nullptr) {
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
    unsigned long kibibytes = 0;
    if (std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &begin, &end) == 2) {
      if (inside) return false;
      inside = begin <= wanted && wanted < end;
    } else if (inside && (std::sscanf(line, "ShmemPmdMapped: %lu", &kibibytes) == 1 ||
                          std::sscanf(line, "AnonHugePages: %lu", &kibibytes) == 1)) {
      if (kibibytes > 0) return true;
    }
  }
  return false;
}

void populate(std::span<std::byte> range, bool write) {
  const int advice = write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
  int result = 0;
  do {
    result = ::madvise(range.data(), range.size(), advice);
  } while (result != 0 && (errno == EINTR || errno == EAGAIN));
  if (result == 0) return;
  if (errno != EINVAL) throw SystemError(errno, "cannot fault memory in");
  // A kernel without these advices: touch each page by an access that changes no byte.
  for (std::size_t at = 0; at < range.size(); at += page_bytes) {
    std::atomic_ref<unsigned char> byte(reinterpret_cast<unsigned char&>(range[at]));
    if (write) {
      byte.fetch_or(0, std::memory_order_relaxed);
    } else {
      static_cast<void>(byte.load(std::memory_order_relaxed));
    }
  }
}

}  // namespace stoker

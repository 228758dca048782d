#include "mapping.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <stdexcept>
#include <string>

#include "chunk.h"
#include "error.h"

namespace stoker {
namespace {

// In whole chunks, so that a huge page can hold the end; what no machine has is left as it is.
std::size_t whole_chunks(std::size_t bytes) {
  return bytes >> 56 == 0 ? chunks_for(bytes) * chunk_bytes : bytes;
}

void check(int pool_fd, const std::vector<std::size_t>& chunks, std::size_t byte_count) {
  if (chunks_for(byte_count) != chunks.size())
    throw std::invalid_argument("expected the chunks of " + std::to_string(byte_count) +
                                " bytes, found " + std::to_string(chunks.size()) + " chunks");
  struct stat status{};
  if (::fstat(pool_fd, &status) != 0) throw SystemError(errno, "cannot look at the pool");
  const std::size_t held = static_cast<std::size_t>(status.st_size) / chunk_bytes;
  for (const std::size_t chunk : chunks)
    if (chunk >= held)
      throw std::invalid_argument("expected chunks of a pool of " + std::to_string(held) +
                                  ", found chunk " + std::to_string(chunk));
}

}  // namespace

Mapping::Mapping(std::size_t byte_count)
    : byte_count_(byte_count), memory_(Memory::reserved(whole_chunks(byte_count))) {
  if (::mprotect(memory_.data(), memory_.size(), PROT_READ) != 0)
    throw SystemError(errno, "cannot reserve address space");
}

void Mapping::map(int pool_fd, const std::vector<std::size_t>& chunks) {
  check(pool_fd, chunks, byte_count_);
  for (std::size_t first = 0; first < chunks.size();) {
    std::size_t last = first + 1;
    while (last < chunks.size() && chunks[last] == chunks[last - 1] + 1) ++last;
    std::byte* const address = memory_.data() + first * chunk_bytes;
    const std::size_t length = (last - first) * chunk_bytes;
    // Not reserved: private pages are the exception, and many instances map the same weights.
    const void* mapped =
        ::mmap(address, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
               pool_fd, static_cast<off_t>(chunks[first] * chunk_bytes));
    if (mapped == MAP_FAILED) throw SystemError(errno, "cannot map chunks of the pool");
    ::madvise(address, length, MADV_HUGEPAGE);
    first = last;
  }
}

}  // namespace stoker

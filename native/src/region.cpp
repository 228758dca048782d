#include "region.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>
#include <string>

#include "chunk.h"
#include "error.h"

namespace stoker {

Region::Region(std::size_t byte_count, bool huge_pages)
    : memory_(Memory::anonymous(byte_count, huge_pages)), byte_count_(byte_count) {}

std::span<std::byte> Region::chunk(std::size_t ordinal) const {
  const std::span<std::byte> all = memory_.bytes();
  if (ordinal >= chunks_for(all.size()))
    throw std::invalid_argument("expected a chunk below " + std::to_string(chunks_for(all.size())) +
                                ", found " + std::to_string(ordinal));
  const std::size_t begin = ordinal * chunk_bytes;
  return all.subspan(begin, std::min(chunk_bytes, all.size() - begin));
}

bool Region::borrow(std::size_t offset, int fd, std::uint64_t file_offset, std::size_t byte_count) {
  const std::size_t length = round_up(byte_count, page_bytes);
  if (offset % page_bytes != 0 || file_offset % page_bytes != 0 || offset > memory_.size() ||
      length > memory_.size() - offset)
    return false;
  void* mapped = ::mmap(memory_.data() + offset, length, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_FIXED, fd, static_cast<off_t>(file_offset));
  if (mapped == MAP_FAILED) return false;
  try {
    populate({memory_.data() + offset, length}, false);
  } catch (const SystemError&) {
    return false;  // the file has shrunk meanwhile; a read will say so
  }
  return true;
}

void Region::discard(std::size_t offset, std::size_t byte_count) {
  if (offset > byte_count_ || byte_count > byte_count_ - offset)
    throw std::invalid_argument("expected a range within " + std::to_string(byte_count_) +
                                " bytes, found " + std::to_string(byte_count) + " at " +
                                std::to_string(offset));
  const std::size_t begin = round_up(offset, page_bytes);
  const std::size_t end = (offset + byte_count) / page_bytes * page_bytes;
  if (begin >= end) return;
  if (::madvise(memory_.data() + begin, end - begin, MADV_DONTNEED) != 0)
    throw SystemError(errno, "madvise");
}

}  // namespace stoker

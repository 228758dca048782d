#include "region.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <stdexcept>

#include "chunk.h"
#include "file.h"
#include "workers.h"

namespace stoker {

Region::Region(std::size_t byte_count, bool huge_pages)
    : memory_(Memory::anonymous(byte_count, huge_pages)), byte_count_(byte_count) {}

void Region::read_file(const std::string& path, std::uint64_t file_offset, std::size_t byte_count,
                       unsigned threads, bool direct) {
  if (byte_count > byte_count_)
    throw std::invalid_argument("expected at most the region's " + std::to_string(byte_count_) +
                                " bytes to read, found " + std::to_string(byte_count));
  // Opened once: were the file replaced meanwhile, the parts would be of two files.
  const SourceFile source(path, direct);
  const std::atomic<bool> cancelled{false};
  run_parallel(chunks_for(byte_count), threads, [&](std::size_t unit) {
    const std::size_t begin = unit * chunk_bytes;
    source.read(memory_.bytes().subspan(begin), file_offset + begin,
                std::min(chunk_bytes, byte_count - begin), cancelled);
  });
}

}  // namespace stoker

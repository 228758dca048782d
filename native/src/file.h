// Files with their errors: every failure names the path.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "file_descriptor.h"
#include "lanes.h"

namespace stoker {

// A sealed memory file of fixed size that nobody can shrink under a reader.
Descriptor make_memory_file(const char* name, std::size_t bytes);
// Gives an unsealed memory file its size for good.
void seal_memory_file(int fd, std::size_t bytes);

// How a range came from a file.
enum class Way : std::uint8_t { direct_by_ring, direct, buffered, cached, borrowed };

// A file to read ranges from, past the page cache where that is the cheaper way.
class SourceFile {
 public:
  SourceFile(std::string path, bool direct);

  int fd() const { return buffered_.get(); }

  // Whether the page cache holds all of the range.
  bool is_cached(std::uint64_t offset, std::size_t count) const;

  // Reads exactly `count` bytes to the front of `target`. What lies in `target` behind them may
  // be overwritten up to the next page boundary. `cancelled` is looked at between requests.
  // Several threads may read at once.
  Way read(std::span<std::byte> target, std::uint64_t offset, std::size_t count,
           const std::atomic<bool>& cancelled, Lanes* lanes = nullptr) const;
  // The same from the page cache, where `is_cached` found it.
  Way read_cached(std::span<std::byte> target, std::uint64_t offset, std::size_t count,
                  const std::atomic<bool>& cancelled) const;

 private:
  struct Range;

  bool may_read_directly(const Range& range) const;
  bool read_by_ring(Ring& ring, const Range& range) const;
  bool read_directly(const Range& range, const std::atomic<bool>& cancelled) const;
  void read_buffered(const Range& range, const std::atomic<bool>& cancelled) const;
  [[noreturn]] void fail_short(const Range& range, std::size_t found) const;
  [[noreturn]] void fail(int code, std::uint64_t offset) const;

  std::string path_;
  Descriptor buffered_;
  std::optional<Descriptor> direct_;
  // Some file systems grant the open and refuse the read.
  mutable std::atomic<bool> direct_works_{true};
};

// Writes `count` bytes from the front of `source` to a temporary name, syncs, and renames.
// `source` is readable up to the page boundary behind `count`.
void write_file(const std::string& path, std::span<const std::byte> source, std::size_t count);

}  // namespace stoker

// Files with their errors: every failure names the path.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace stoker {

// An open descriptor, closed on destruction.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor();

  int get() const { return fd_; }

 private:
  int fd_;
};

// A sealed memory file of fixed size that nobody can shrink under a reader.
Descriptor make_memory_file(const char* name, std::size_t bytes);

// A file to read ranges from, past the page cache where that is the cheaper way.
class SourceFile {
 public:
  SourceFile(std::string path, bool direct);

  // Reads exactly `count` bytes to the front of `target`. What lies in `target` behind them may
  // be overwritten up to the next page boundary. `cancelled` is looked at between requests.
  // Several threads may read at once.
  void read(std::span<std::byte> target, std::uint64_t offset, std::size_t count,
            const std::atomic<bool>& cancelled) const;

 private:
  bool is_cached(std::uint64_t offset, std::size_t count) const;

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

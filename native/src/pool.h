// The node's memory for checkpoints: one sealed memory file, handed out in whole chunks.
#pragma once

#include <atomic>
#include <cstddef>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "file.h"
#include "lanes.h"
#include "memory.h"
#include "turns.h"

namespace stoker {

class Pool {
 public:
  // Holds as many whole chunks as fit in `capacity_bytes`; at least one must. `memory_file` is an
  // empty memory file to use, or the one of an earlier pool, whose bytes stay where they are. If
  // that was of another capacity its memory is given back, and this pool has a file of its own.
  explicit Pool(std::size_t capacity_bytes, std::optional<int> memory_file = std::nullopt);
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool();

  int fd() const { return file_.get(); }
  // The same memory through a descriptor that cannot be written by.
  int reader_fd() const { return reader_.get(); }
  std::size_t chunk_count() const { return chunk_count_; }
  std::size_t free_count() const;
  bool has_huge_pages() const { return huge_pages_; }

  // The lowest free chunks, all or none: neighbours map in one piece.
  std::vector<std::size_t> allocate(std::size_t count);
  // These very chunks, all or none: one that is not free, or named twice, is refused.
  void claim(const std::vector<std::size_t>& chunks);
  // All or none: a chunk that is not allocated, or named twice, is refused.
  void release(const std::vector<std::size_t>& chunks);

  std::span<std::byte> chunk(std::size_t index) const;

  // What all loads into the pool share: the rings, and whose turn it is to use the disk.
  Lanes& lanes() { return lanes_; }
  Turns& turns() { return turns_; }

  // Faults every chunk in from the front, in threads that run only when nothing else would.
  void prefault(unsigned threads);
  std::size_t prefaulted_bytes() const { return prefaulted_bytes_; }

 private:
  void mark(const std::vector<std::size_t>& chunks, bool allocated);
  void prefault_chunks();

  std::size_t chunk_count_;
  Descriptor file_;
  Descriptor reader_;
  Memory memory_;
  bool huge_pages_;
  Lanes lanes_;
  Turns turns_;

  mutable std::mutex mutex_;
  std::vector<bool> allocated_;
  std::size_t free_count_;

  std::vector<std::jthread> threads_;
  int owner_process_;
  std::atomic<bool> stopping_{false};
  std::atomic<std::size_t> next_to_prefault_{0};
  std::atomic<std::size_t> faulted_bytes_{0};
  std::atomic<std::size_t> prefaulted_bytes_{0};
};

}  // namespace stoker

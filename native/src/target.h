// Where the chunks of a load end: the memory to bring each one to, and what follows.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "lanes.h"
#include "turns.h"

namespace stoker {

class Target {
 public:
  Target() = default;
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;
  virtual ~Target() = default;

  virtual std::size_t chunk_count() const = 0;

  // Memory for a whole chunk, aligned to pages. Waits while a bounded target is full; Cancelled
  // once `cancelled` is set.
  virtual std::span<std::byte> acquire(std::size_t ordinal, const std::atomic<bool>& cancelled) = 0;
  // The chunk was not brought, or did not verify: its memory is no longer used.
  virtual void abandon(std::size_t ordinal) noexcept = 0;
  // The first `byte_count` bytes are verified. Published at once, or when they are where they go.
  virtual void deliver(std::size_t ordinal, std::size_t byte_count) = 0;
  // Returns when all that was delivered is published.
  virtual void finish() {}
  // Wakes whoever waits in `acquire`.
  virtual void cancel() noexcept {}

  // The bytes of a delivered chunk, for as long as the target keeps them in host memory.
  virtual std::span<const std::byte> kept(std::size_t ordinal) const = 0;

  // Lets pages of the page cache stand for the chunk; false where the target has its own.
  virtual bool borrow(std::size_t /*ordinal*/, int /*fd*/, std::uint64_t /*file_offset*/,
                      std::size_t /*byte_count*/) {
    return false;
  }
  // Ways to read into this memory with less work for the kernel; none by default.
  virtual Lanes* lanes() { return nullptr; }
  // Whose turn it is on the disk, shared with other loads; none where a load is alone.
  virtual Turns* turns() { return nullptr; }
};

}  // namespace stoker

// One checkpoint on its way into the pool: each chunk is filled, verified, and published.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "digest.h"
#include "pool.h"
#include "progress.h"

namespace stoker {

// Chunk `ordinal` of the load lies in the file at `file_offset`.
struct ReadRequest {
  std::string path;
  std::uint64_t file_offset;
  std::size_t ordinal;
};

class Load {
 public:
  // Chunk i of the load goes to pool chunk `chunks[i]`, has `sizes[i]` bytes, and must have
  // `digests[i]` where one is given.
  Load(std::shared_ptr<Pool> pool, std::vector<std::size_t> chunks, std::vector<std::size_t> sizes,
       std::vector<std::optional<Digest>> digests, std::shared_ptr<Progress> progress);

  // Reads, verifies and publishes every request, in this order but several at a time.
  void read(const std::vector<ReadRequest>& requests, unsigned threads, bool direct);

  // The memory to fill chunk `ordinal` in, until `commit` verifies and publishes it. A refused
  // chunk, or one given up by `abandon`, may be filled or read again.
  std::span<std::byte> fill(std::size_t ordinal);
  Digest commit(std::size_t ordinal);
  void abandon(std::size_t ordinal);

  // Writes a committed chunk to `path`, whole or not at all.
  void write(std::size_t ordinal, const std::string& path) const;
  // The digest of a committed chunk.
  std::optional<Digest> digest_of(std::size_t ordinal) const;

  const std::shared_ptr<Pool>& pool() const { return pool_; }
  void cancel() { cancelled_ = true; }

 private:
  enum class Stage : std::uint8_t { empty, filling, busy, committed };
  struct Chunk {
    std::size_t pool_chunk = 0;
    std::size_t size = 0;
    std::optional<Digest> expected;
    Digest found{};
    std::atomic<Stage> stage{Stage::empty};
  };

  Chunk& chunk(std::size_t ordinal);
  const Chunk& chunk(std::size_t ordinal) const;
  void claim(Chunk& chunk, std::size_t ordinal, Stage from, Stage to);
  void read_one(const ReadRequest& request, bool direct);
  void verify_and_publish(Chunk& chunk, const ReadRequest& origin);

  std::shared_ptr<Pool> pool_;
  std::shared_ptr<Progress> progress_;
  std::vector<Chunk> chunks_;
  std::atomic<bool> cancelled_{false};
};

}  // namespace stoker

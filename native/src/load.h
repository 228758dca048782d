// One checkpoint on its way: each chunk is brought, verified, and delivered to the load's target.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "digest.h"
#include "file.h"
#include "target.h"
#include "turns.h"

namespace stoker {

// Chunk `ordinal` of the load lies in the file at `file_offset`.
struct ReadRequest {
  std::string path;
  std::uint64_t file_offset;
  std::size_t ordinal;
};

class Load {
 public:
  // Chunk i has `sizes[i]` bytes, and must have `digests[i]` where one is given. With `learn`,
  // the others' digests are computed too when they are read.
  Load(std::shared_ptr<Target> target, const std::vector<std::size_t>& sizes,
       const std::vector<std::optional<Digest>>& digests, bool learn);

  // Brings, verifies and delivers every request, in this order but several at a time. On the
  // disk, an earlier deadline goes before a later one of another load.
  void read(const std::vector<ReadRequest>& requests, unsigned threads, bool direct,
            double deadline);

  // The memory to fill chunk `ordinal` in, until `commit` verifies and delivers it. A refused
  // chunk, or one given up by `abandon`, may be filled or read again.
  std::span<std::byte> fill(std::size_t ordinal);
  Digest commit(std::size_t ordinal);
  void abandon(std::size_t ordinal);

  // Returns when every committed chunk is where it goes.
  void finish() { target_->finish(); }

  // Writes a committed chunk to `path`, whole or not at all.
  void write(std::size_t ordinal, const std::string& path) const;
  // The digest of a committed chunk, where it was computed.
  std::optional<Digest> digest_of(std::size_t ordinal) const;

  const std::shared_ptr<Target>& target() const { return target_; }
  void cancel();

  // How many chunks came by which way.
  std::size_t count_of(Way way) const { return ways_[static_cast<std::size_t>(way)]; }

 private:
  enum class Stage : std::uint8_t { empty, filling, busy, committed };
  struct Chunk {
    std::size_t size = 0;
    std::optional<Digest> expected;
    std::optional<Digest> found;
    std::span<std::byte> memory;  // while it is being filled
    std::atomic<Stage> stage{Stage::empty};
  };
  class Files;

  Chunk& chunk(std::size_t ordinal);
  const Chunk& chunk(std::size_t ordinal) const;
  void claim(Chunk& chunk, std::size_t ordinal, Stage from, Stage to);
  void read_one(const ReadRequest& request, const SourceFile& source, double deadline);
  Way bring(const ReadRequest& request, const SourceFile& source, double deadline);
  void verify_and_deliver(Chunk& chunk, const ReadRequest& origin, bool learn);

  std::shared_ptr<Target> target_;
  bool learn_;
  std::vector<Chunk> chunks_;
  Turns own_turns_;
  std::array<std::atomic<std::size_t>, 5> ways_{};
  std::atomic<bool> cancelled_{false};
};

}  // namespace stoker

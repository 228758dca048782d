#include "load.h"

#include <stdexcept>
#include <utility>

#include "chunk.h"
#include "error.h"
#include "file.h"
#include "workers.h"

namespace stoker {

Load::Load(std::shared_ptr<Pool> pool, std::vector<std::size_t> chunks,
           std::vector<std::size_t> sizes, std::vector<std::optional<Digest>> digests,
           std::shared_ptr<Progress> progress)
    : pool_(std::move(pool)), progress_(std::move(progress)), chunks_(chunks.size()) {
  if (sizes.size() != chunks.size() || digests.size() != chunks.size() ||
      progress_->chunk_count() != chunks.size())
    throw std::invalid_argument("expected as many sizes, digests and chunks of progress as the " +
                                std::to_string(chunks.size()) + " chunks");
  for (std::size_t ordinal = 0; ordinal < chunks.size(); ++ordinal) {
    if (sizes[ordinal] == 0 || sizes[ordinal] > chunk_bytes)
      throw std::invalid_argument("expected sizes from 1 to " + std::to_string(chunk_bytes) +
                                  ", found " + std::to_string(sizes[ordinal]));
    static_cast<void>(pool_->chunk(chunks[ordinal]));
    chunks_[ordinal].pool_chunk = chunks[ordinal];
    chunks_[ordinal].size = sizes[ordinal];
    chunks_[ordinal].expected = digests[ordinal];
  }
}

Load::Chunk& Load::chunk(std::size_t ordinal) {
  return const_cast<Chunk&>(std::as_const(*this).chunk(ordinal));
}

const Load::Chunk& Load::chunk(std::size_t ordinal) const {
  if (ordinal < chunks_.size()) return chunks_[ordinal];
  throw std::invalid_argument("expected a chunk below " + std::to_string(chunks_.size()) +
                              ", found " + std::to_string(ordinal));
}

void Load::claim(Chunk& chunk, std::size_t ordinal, Stage from, Stage to) {
  if (cancelled_) throw Cancelled();
  Stage stage = from;
  if (chunk.stage.compare_exchange_strong(stage, to) || (stage == to && to == Stage::filling))
    return;
  constexpr const char* names[] = {"empty", "being filled", "being read or verified", "committed"};
  throw std::invalid_argument("expected chunk " + std::to_string(ordinal) + " to be " +
                              names[static_cast<std::size_t>(from)] + ", found it " +
                              names[static_cast<std::size_t>(stage)]);
}

void Load::read(const std::vector<ReadRequest>& requests, unsigned threads, bool direct) {
  for (const ReadRequest& request : requests) static_cast<void>(chunk(request.ordinal));
  run_parallel(requests.size(), threads,
               [&](std::size_t index) { read_one(requests[index], direct); });
}

void Load::read_one(const ReadRequest& request, bool direct) {
  Chunk& target = chunk(request.ordinal);
  claim(target, request.ordinal, Stage::empty, Stage::busy);
  try {
    const SourceFile source(request.path, direct);
    source.read(pool_->chunk(target.pool_chunk), request.file_offset, target.size, cancelled_);
  } catch (...) {
    target.stage = Stage::empty;
    throw;
  }
  verify_and_publish(target, request);
}

std::span<std::byte> Load::fill(std::size_t ordinal) {
  Chunk& target = chunk(ordinal);
  claim(target, ordinal, Stage::empty, Stage::filling);
  return pool_->chunk(target.pool_chunk).first(target.size);
}

Digest Load::commit(std::size_t ordinal) {
  Chunk& target = chunk(ordinal);
  claim(target, ordinal, Stage::filling, Stage::busy);
  verify_and_publish(target, {"", 0, ordinal});
  return target.found;
}

void Load::abandon(std::size_t ordinal) {
  Stage stage = Stage::filling;
  chunk(ordinal).stage.compare_exchange_strong(stage, Stage::empty);
}

void Load::verify_and_publish(Chunk& chunk, const ReadRequest& origin) {
  chunk.found = digest(pool_->chunk(chunk.pool_chunk).first(chunk.size));
  if (chunk.expected && *chunk.expected != chunk.found) {
    chunk.stage = Stage::empty;
    throw ChunkError(origin.ordinal, origin.path, origin.file_offset, hex(*chunk.expected),
                     hex(chunk.found));
  }
  chunk.stage = Stage::committed;
  progress_->publish(origin.ordinal);
}

void Load::write(std::size_t ordinal, const std::string& path) const {
  const Chunk& source = chunk(ordinal);
  if (source.stage != Stage::committed)
    throw std::invalid_argument("expected chunk " + std::to_string(ordinal) +
                                " to be committed before it is written");
  write_file(path, pool_->chunk(source.pool_chunk), source.size);
}

std::optional<Digest> Load::digest_of(std::size_t ordinal) const {
  const Chunk& source = chunk(ordinal);
  if (source.stage != Stage::committed) return std::nullopt;
  return source.found;
}

}  // namespace stoker

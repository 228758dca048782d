#include "load.h"

#include <mutex>
#include <stdexcept>
#include <utility>

#include "chunk.h"
#include "error.h"
#include "workers.h"

namespace stoker {

// The files of one `read`, each open from its first request to its last: were a file replaced
// meanwhile, its chunks would be of two files.
class Load::Files {
 public:
  Files(const std::vector<ReadRequest>& requests, bool direct)
      : direct_(direct), file_of_(requests.size()) {
    for (std::size_t index = 0; index < requests.size(); ++index) {
      if (index == 0 || requests[index].path != requests[index - 1].path) ++file_count_;
      file_of_[index] = file_count_ - 1;
    }
    files_ = std::vector<Shared>(file_count_);
    for (const std::size_t file : file_of_) ++files_[file].uses;
  }

  std::shared_ptr<const SourceFile> open(std::size_t index, const std::string& path) {
    Shared& file = files_[file_of_[index]];
    const std::lock_guard lock(file.mutex);
    if (!file.source) file.source = std::make_shared<const SourceFile>(path, direct_);
    std::shared_ptr<const SourceFile> source = file.source;
    if (--file.uses == 0) file.source.reset();
    return source;
  }

 private:
  struct Shared {
    std::mutex mutex;
    std::shared_ptr<const SourceFile> source;
    std::size_t uses = 0;
  };

  bool direct_;
  std::size_t file_count_ = 0;
  std::vector<std::size_t> file_of_;
  std::vector<Shared> files_;
};

Load::Load(std::shared_ptr<Target> target, const std::vector<std::size_t>& sizes,
           const std::vector<std::optional<Digest>>& digests, bool learn)
    : target_(std::move(target)), learn_(learn), chunks_(sizes.size()), own_turns_(device_turns) {
  if (digests.size() != sizes.size() || target_->chunk_count() != sizes.size())
    throw std::invalid_argument("expected as many sizes and digests as the " +
                                std::to_string(target_->chunk_count()) + " chunks");
  for (std::size_t ordinal = 0; ordinal < sizes.size(); ++ordinal) {
    if (sizes[ordinal] == 0 || sizes[ordinal] > chunk_bytes)
      throw std::invalid_argument("expected sizes from 1 to " + std::to_string(chunk_bytes) +
                                  ", found " + std::to_string(sizes[ordinal]));
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
  if (chunk.stage.compare_exchange_strong(stage, to)) return;
  constexpr const char* names[] = {"empty", "being filled", "being read or verified", "committed"};
  throw std::invalid_argument("expected chunk " + std::to_string(ordinal) + " to be " +
                              names[static_cast<std::size_t>(from)] + ", found it " +
                              names[static_cast<std::size_t>(stage)]);
}

void Load::read(const std::vector<ReadRequest>& requests, unsigned threads, bool direct,
                double deadline) {
  for (const ReadRequest& request : requests) static_cast<void>(chunk(request.ordinal));
  Files files(requests, direct);
  run_parallel(requests.size(), threads, [&](std::size_t index) {
    const ReadRequest& request = requests[index];
    read_one(request, *files.open(index, request.path), deadline);
  });
}

void Load::read_one(const ReadRequest& request, const SourceFile& source, double deadline) {
  Chunk& target = chunk(request.ordinal);
  claim(target, request.ordinal, Stage::empty, Stage::busy);
  try {
    ++ways_[static_cast<std::size_t>(bring(request, source, deadline))];
  } catch (...) {
    target_->abandon(request.ordinal);
    target.stage = Stage::empty;
    throw;
  }
  verify_and_deliver(target, request, learn_);
}

Way Load::bring(const ReadRequest& request, const SourceFile& source, double deadline) {
  Chunk& target = chunk(request.ordinal);
  const bool cached = source.is_cached(request.file_offset, target.size);
  if (cached && target_->borrow(request.ordinal, source.fd(), request.file_offset, target.size)) {
    target.memory = {};
    return Way::borrowed;
  }
  target.memory = target_->acquire(request.ordinal, cancelled_);
  if (cached)
    return source.read_cached(target.memory, request.file_offset, target.size, cancelled_);
  Turns* shared = target_->turns();
  const Turns::Turn turn(shared == nullptr ? own_turns_ : *shared, deadline);
  return source.read(target.memory, request.file_offset, target.size, cancelled_, target_->lanes());
}

std::span<std::byte> Load::fill(std::size_t ordinal) {
  Chunk& target = chunk(ordinal);
  if (target.stage == Stage::filling) return target.memory.first(target.size);
  claim(target, ordinal, Stage::empty, Stage::busy);
  try {
    target.memory = target_->acquire(ordinal, cancelled_);
  } catch (...) {
    target.stage = Stage::empty;
    throw;
  }
  target.stage = Stage::filling;
  return target.memory.first(target.size);
}

Digest Load::commit(std::size_t ordinal) {
  Chunk& target = chunk(ordinal);
  claim(target, ordinal, Stage::filling, Stage::busy);
  verify_and_deliver(target, {"", 0, ordinal}, true);
  return *target.found;
}

void Load::abandon(std::size_t ordinal) {
  Chunk& target = chunk(ordinal);
  Stage stage = Stage::filling;
  if (!target.stage.compare_exchange_strong(stage, Stage::busy)) return;
  target_->abandon(ordinal);
  target.stage = Stage::empty;
}

void Load::verify_and_deliver(Chunk& chunk, const ReadRequest& origin, bool learn) {
  if (chunk.expected || learn) {
    const std::span<const std::byte> memory =
        chunk.memory.empty() ? target_->kept(origin.ordinal) : chunk.memory;
    chunk.found = digest(memory.first(chunk.size));
  }
  if (chunk.expected && *chunk.expected != *chunk.found) {
    target_->abandon(origin.ordinal);
    chunk.stage = Stage::empty;
    throw ChunkError(origin.ordinal, origin.path, origin.file_offset, hex(*chunk.expected),
                     hex(*chunk.found));
  }
  // Before the delivery: who is told of the chunk may ask for it at once.
  chunk.stage = Stage::committed;
  try {
    target_->deliver(origin.ordinal, chunk.size);
  } catch (...) {
    chunk.stage = Stage::empty;
    throw;
  }
}

void Load::cancel() {
  cancelled_ = true;
  target_->cancel();
}

void Load::write(std::size_t ordinal, const std::string& path) const {
  const Chunk& source = chunk(ordinal);
  if (source.stage != Stage::committed)
    throw std::invalid_argument("expected chunk " + std::to_string(ordinal) +
                                " to be committed before it is written");
  const std::span<const std::byte> kept = target_->kept(ordinal);
  if (kept.empty())
    throw std::invalid_argument("expected chunk " + std::to_string(ordinal) +
                                " to be kept in memory until it is written");
  write_file(path, kept, source.size);
}

std::optional<Digest> Load::digest_of(std::size_t ordinal) const {
  const Chunk& source = chunk(ordinal);
  if (source.stage != Stage::committed) return std::nullopt;
  return source.found;
}

}  // namespace stoker

#include "memory_target.h"

#include <stdexcept>
#include <string>
#include <utility>

#include "chunk.h"

namespace stoker {

PoolTarget::PoolTarget(std::shared_ptr<Pool> pool, std::vector<std::size_t> chunks,
                       std::shared_ptr<Progress> progress)
    : pool_(std::move(pool)), chunks_(std::move(chunks)), progress_(std::move(progress)) {
  if (progress_->chunk_count() != chunks_.size())
    throw std::invalid_argument("expected as many chunks of progress as the " +
                                std::to_string(chunks_.size()) + " chunks, found " +
                                std::to_string(progress_->chunk_count()));
  for (const std::size_t chunk : chunks_) static_cast<void>(pool_->chunk(chunk));
}

std::span<std::byte> PoolTarget::acquire(std::size_t ordinal, const std::atomic<bool>&) {
  return pool_->chunk(chunks_.at(ordinal));
}

void PoolTarget::deliver(std::size_t ordinal, std::size_t) { progress_->publish(ordinal); }

std::span<const std::byte> PoolTarget::kept(std::size_t ordinal) const {
  return pool_->chunk(chunks_.at(ordinal));
}

RegionTarget::RegionTarget(std::shared_ptr<Region> region, std::shared_ptr<Progress> progress,
                           bool may_borrow)
    : region_(std::move(region)), progress_(std::move(progress)), may_borrow_(may_borrow) {
  if (progress_->total_bytes() > region_->bytes().size())
    throw std::invalid_argument("expected a region of at least " +
                                std::to_string(progress_->total_bytes()) + " bytes, found " +
                                std::to_string(region_->bytes().size()));
}

std::span<std::byte> RegionTarget::acquire(std::size_t ordinal, const std::atomic<bool>&) {
  const std::span<std::byte> memory = region_->chunk(ordinal);
  // In the threads of the load, several at once: faults one after the other cost more than a disk.
  populate(memory, true);
  return memory;
}

void RegionTarget::deliver(std::size_t ordinal, std::size_t) { progress_->publish(ordinal); }

std::span<const std::byte> RegionTarget::kept(std::size_t ordinal) const {
  return region_->chunk(ordinal);
}

bool RegionTarget::borrow(std::size_t ordinal, int fd, std::uint64_t file_offset,
                          std::size_t byte_count) {
  return may_borrow_ && region_->borrow(ordinal * chunk_bytes, fd, file_offset, byte_count);
}

}  // namespace stoker

// A load that ends in host memory: chunks of a pool, or a region of this process.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "pool.h"
#include "progress.h"
#include "region.h"
#include "target.h"

namespace stoker {

class PoolTarget : public Target {
 public:
  // Chunk i of the load is pool chunk `chunks[i]`.
  PoolTarget(std::shared_ptr<Pool> pool, std::vector<std::size_t> chunks,
             std::shared_ptr<Progress> progress);

  std::size_t chunk_count() const override { return chunks_.size(); }
  std::span<std::byte> acquire(std::size_t ordinal, const std::atomic<bool>& cancelled) override;
  void abandon(std::size_t) noexcept override {}
  void deliver(std::size_t ordinal, std::size_t byte_count) override;
  std::span<const std::byte> kept(std::size_t ordinal) const override;
  Lanes* lanes() override { return &pool_->lanes(); }
  Turns* turns() override { return &pool_->turns(); }

 private:
  std::shared_ptr<Pool> pool_;
  std::vector<std::size_t> chunks_;
  std::shared_ptr<Progress> progress_;
};

class RegionTarget : public Target {
 public:
  // Chunk i of the load lies at i * chunk_bytes of the region. With `may_borrow`, pages of the
  // page cache may take the place of the region's own.
  RegionTarget(std::shared_ptr<Region> region, std::shared_ptr<Progress> progress, bool may_borrow);

  std::size_t chunk_count() const override { return progress_->chunk_count(); }
  std::span<std::byte> acquire(std::size_t ordinal, const std::atomic<bool>& cancelled) override;
  void abandon(std::size_t) noexcept override {}
  void deliver(std::size_t ordinal, std::size_t byte_count) override;
  std::span<const std::byte> kept(std::size_t ordinal) const override;
  bool borrow(std::size_t ordinal, int fd, std::uint64_t file_offset,
              std::size_t byte_count) override;

 private:
  std::shared_ptr<Region> region_;
  std::shared_ptr<Progress> progress_;
  bool may_borrow_;
};

}  // namespace stoker
